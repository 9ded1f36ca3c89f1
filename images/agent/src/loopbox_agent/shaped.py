"""shaped: owns an answer under a caller's JSON schema: asked for, checked, repaired once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue
from pydantic_ai.messages import InstructionPart, ModelMessage, ModelRequest, ModelResponse, TextPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.settings import ModelSettings

from loopbox_agent.clean import show
from loopbox_agent.structured import Shape, settle_output


@dataclass(frozen=True, slots=True)
class ShapedAnswer:
    """An answer that fits."""

    value: JsonValue
    text: str  #: as it may be shown
    added: tuple[ModelMessage, ...]  #: what was said for it, the repair left out
    input_tokens: int
    output_tokens: int


async def shaped_answer(  # noqa: PLR0913 one question and what it stands in
    model: Model,
    settings: ModelSettings,
    shape: Shape,
    prompt: str,
    *,
    system: str | None,
    history: Sequence[ModelMessage],
) -> ShapedAnswer:
    """Ask for the answer. Raises OutputInvalidError when two answers in a row do not fit, and what the model raises."""
    parameters = ModelRequestParameters(
        output_mode="native",
        output_object=OutputObjectDefinition(json_schema=dict(shape.grammar)),
        instruction_parts=[InstructionPart(content=system)] if system else None,
    )
    said: list[ModelMessage] = []
    responses: list[ModelResponse] = []

    async def ask(words: str) -> str:
        said.append(ModelRequest.user_text_prompt(words))
        response = await model.request([*history, *said], settings, parameters)
        said.append(response)
        responses.append(response)
        return response.text or ""

    text = await ask(prompt)
    value = await settle_output(shape, text, ask)
    last = show(responses[-1].text or "").text
    return ShapedAnswer(
        value,
        last,
        (ModelRequest.user_text_prompt(prompt), ModelResponse([TextPart(last)])),
        sum(response.usage.input_tokens for response in responses),
        sum(response.usage.output_tokens for response in responses),
    )
