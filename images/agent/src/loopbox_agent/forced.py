"""forced: owns the filling of one tool's arguments by the model, bound by the tool's own schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

from pydantic import JsonValue

from loopbox_agent.arguments import ArgumentsInvalidError, fit_arguments
from loopbox_agent.engine import Engine
from loopbox_agent.errors import AgentError
from loopbox_agent.sandbox import Tool
from loopbox_agent.schemas import VALIDATORS, SchemaUnfitError
from loopbox_agent.settings import Settings
from loopbox_agent.structured import grammar_of
from loopbox_agent.wire import ChatOrder, Message, Options

__all__ = ["ArgumentsInvalidError", "ModelOutputInvalidError", "bound", "check_arguments", "fill"]

TRIES = 2
TOKENS = 384


class ModelOutputInvalidError(AgentError):
    """The model did not fill in the tool's arguments."""

    code: ClassVar[str] = "model_output_invalid"
    status: ClassVar[int] = 502


def check_arguments(tool: Tool, arguments: Mapping[str, JsonValue]) -> None:
    """Check arguments against the tool's schema as they are. Raises ArgumentsInvalidError saying where not."""
    try:
        problem = VALIDATORS.problem(tool.schema, dict(arguments))
    except SchemaUnfitError as error:
        raise ArgumentsInvalidError(f"{tool.name}: its schema cannot be checked: {error}") from error
    if problem is not None:
        raise ArgumentsInvalidError(f"{tool.name}: {problem}; nothing was run.")


def bound(schema: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the schema for generation: only what is required, every string with an end."""
    made = grammar_of(schema)
    properties = made.get("properties")
    required = made.get("required")
    if isinstance(properties, dict) and isinstance(required, list) and required:
        made["properties"] = {name: value for name, value in properties.items() if name in required}
    made["additionalProperties"] = False
    return made


async def fill(
    engine: Engine, settings: Settings, tool: Tool, instruction: str, *, seed: int | None
) -> tuple[dict[str, JsonValue], int, int]:
    """Return the arguments, and the tokens read and generated. Raises ModelOutputInvalidError."""
    told = (
        f"You call the tool `{tool.name}`: {tool.description.splitlines()[0] if tool.description else ''}\n"
        f"Its arguments follow this JSON schema: {json.dumps(tool.schema.get('properties', {}))[:2000]}\n"
        "Answer with the JSON object of the arguments for the user's request and nothing else."
    )
    read = generated = 0
    reason = ""
    for attempt in range(TRIES):
        order = ChatOrder(
            model=settings.model,
            messages=(Message(role="system", content=told), Message(role="user", content=instruction)),
            options=Options(
                num_ctx=settings.num_ctx,
                num_predict=TOKENS,
                temperature=0.0 if attempt == 0 else 0.7,
                seed=(seed or 1) + attempt,
            ),
            format=bound(tool.schema),
        )
        text = ""
        async with engine.chat(order) as chunks:
            async for chunk in chunks:
                text += chunk.message.content
                if chunk.done:
                    read += chunk.prompt_eval_count
                    generated += chunk.eval_count
        try:
            arguments = fit_arguments(tool.name, tool.schema, text)
        except ArgumentsInvalidError as error:
            reason = str(error)
            continue
        return arguments, read, generated
    raise ModelOutputInvalidError(
        f"The model did not fill in the arguments of {tool.name} in {TRIES} tries ({reason[:200]}); nothing was run. "
        "Say more in the instruction, or give the arguments in tool_choice."
    )
