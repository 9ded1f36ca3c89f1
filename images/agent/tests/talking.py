"""Models that say what a test wants, and the dialogue with one, as a run holds it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import JsonValue
from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, ModelResponseStreamEvent, TextPart, ToolCallPart
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.settings import ModelSettings

from loopbox_agent.dialogue import Dialogue
from loopbox_agent.sandbox import Outcome
from loopbox_agent.tool_spec import ToolSpec
from loopbox_agent.turn_calls import TurnCalls

Answer = Callable[[Sequence[ModelMessage]], ModelResponse]


@dataclass
class Said(StreamedResponse):
    """An answer that is known before it is streamed."""

    whole: ModelResponse = field(kw_only=True)

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        for place, part in enumerate(self.whole.parts):
            if isinstance(part, TextPart):
                for event in self._parts_manager.handle_text_delta(vendor_part_id=place, content=part.content):
                    yield event
            elif isinstance(part, ToolCallPart):
                given = part.args if isinstance(part.args, str) else part.args_as_dict()
                yield self._parts_manager.handle_tool_call_part(
                    vendor_part_id=place, tool_name=part.tool_name, args=given, tool_call_id=part.tool_call_id
                )
        self._usage = self.whole.usage

    model_name = provider_name = "said"
    provider_url = None
    timestamp = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Speaking(Model):
    """A model that streams what a function answers."""

    answer: Answer

    def __post_init__(self) -> None:
        super().__init__()

    model_name = system = "said"

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,  # Any: the framework's own signature
    ) -> AsyncGenerator[StreamedResponse]:
        del model_settings, run_context
        yield Said(model_request_parameters, whole=self.answer(messages))

    async def request(self, *_: object) -> ModelResponse:
        raise NotImplementedError


def saying(*answers: ModelResponse | str) -> Speaking:
    """Return a model that gives these answers, one after the other, the last one for ever."""
    left = [answer if isinstance(answer, ModelResponse) else ModelResponse([TextPart(answer)]) for answer in answers]
    return Speaking(lambda _: left.pop(0) if len(left) > 1 else left[0])


@dataclass
class Made:
    """Makes every call by one function, and keeps what was asked of it."""

    answer: Callable[[str, Mapping[str, JsonValue]], Any] = lambda _name, _arguments: "ok"
    calls: list[tuple[str, Mapping[str, JsonValue]]] = field(default_factory=list)

    async def call(self, tool: ToolSpec, call_id: str, arguments: Mapping[str, JsonValue]) -> Outcome:
        del call_id
        self.calls.append((tool.name, arguments))
        said = self.answer(tool.name, arguments)
        return Outcome(said if isinstance(said, str) else await said, {}, is_error=False)


def dialogue(model: Model, made: Made | None = None, tools: Sequence[ToolSpec] = (), **more: Any) -> Dialogue:
    """Return a dialogue; Any: fields of it."""
    given: dict[str, Any] = {"settings": {}, "most_turns": 50, "tell": lambda _name, _body: None, **more}
    return Dialogue(model=model, tools=TurnCalls(made or Made(), tools), **given)
