"""answer: owns one answer of the engine while it comes: words, thoughts and calls as pydantic-ai's parts."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from pydantic import JsonValue
from pydantic_ai._parts_manager import ModelResponsePartsManager
from pydantic_ai._special_tokens import restore_special_tokens_in_stream
from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models import StreamedResponse
from pydantic_ai.usage import RequestUsage

from loopbox_agent.arguments import repair_json
from loopbox_agent.calls_in_text import CallFilter, FoundCall, Piece, Text, Thought
from loopbox_agent.wire import AnswerPiece, CalledTool, ChatChunk

PROVIDER: Final = "ollama"
LONGEST_ID: Final = 64  #: characters of a call's identity

Counted = Callable[[int, int], None]  #: given the engine's counts of the prompt and of the answer


@dataclass(slots=True)
class Answer:
    """Turns an answer's pieces into parts, in order, each call under an identity of its own."""

    offered: frozenset[str]
    taken: set[str] = field(default_factory=set)  #: identities of calls in the history
    called: bool = False
    _filter: CallFilter = field(init=False)
    _block: int = 0  #: words after a call are another block

    def __post_init__(self) -> None:
        self._filter = CallFilter(self.offered)

    def feed(self, piece: AnswerPiece, parts: ModelResponsePartsManager) -> Iterator[ModelResponseStreamEvent]:
        """Yield what this piece adds."""
        if piece.thinking:
            yield from parts.handle_thinking_delta(vendor_part_id=f"thought{self._block}", content=piece.thinking)
        if piece.content:
            yield from self._add(self._filter.feed(piece.content), parts)
        for call in piece.tool_calls:
            yield self._call(*_read(call), parts, identity=call.id)

    def close(self, parts: ModelResponsePartsManager) -> Iterator[ModelResponseStreamEvent]:
        """Yield what was held back; the answer is done."""
        yield from self._add(self._filter.close(), parts)

    def _add(self, pieces: list[Piece], parts: ModelResponsePartsManager) -> Iterator[ModelResponseStreamEvent]:
        for piece in pieces:
            match piece:
                case Text(text):
                    yield from parts.handle_text_delta(vendor_part_id=f"text{self._block}", content=text)
                case Thought(text):
                    yield from parts.handle_thinking_delta(vendor_part_id=f"thought{self._block}", content=text)
                case FoundCall(name, arguments):
                    yield self._call(name, arguments, parts)

    def _call(
        self,
        name: str,
        arguments: dict[str, JsonValue] | str,
        parts: ModelResponsePartsManager,
        *,
        identity: str | None = None,
    ) -> ModelResponseStreamEvent:
        if not identity or len(identity) > LONGEST_ID or identity in self.taken:
            identity = f"call_{secrets.token_hex(6)}"
        self.taken.add(identity)
        self.called = True
        self._block += 1
        return parts.handle_tool_call_part(
            vendor_part_id=identity, tool_name=name, args=arguments, tool_call_id=identity
        )


def _read(call: CalledTool) -> tuple[str, dict[str, JsonValue] | str]:
    given = call.function.arguments
    if isinstance(given, str):
        read = repair_json(given)
        return call.function.name, read if isinstance(read, dict) else given
    return call.function.name, dict(given or {})


@dataclass
class OllamaResponse(StreamedResponse):
    """An answer while it comes."""

    chunks: AsyncIterator[ChatChunk] = field(kw_only=True)
    alias: str = field(kw_only=True)
    answer: Answer = field(kw_only=True)
    counted: Counted = field(kw_only=True)
    begun_at: datetime = field(default_factory=lambda: datetime.now(UTC), kw_only=True)

    def __aiter__(self) -> AsyncIterator[ModelResponseStreamEvent]:
        """Yield the answer's events, without those that the framework adds for its own graph."""
        if self._event_iterator is None:
            self._event_iterator = restore_special_tokens_in_stream(
                self._get_event_iterator(), self._parts_manager.special_token_restorer
            )
        return self._event_iterator

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        async for chunk in self.chunks:
            for event in self.answer.feed(chunk.message, self._parts_manager):
                yield event
            if chunk.done:
                for event in self.answer.close(self._parts_manager):
                    yield event
                self._usage = RequestUsage(input_tokens=chunk.prompt_eval_count, output_tokens=chunk.eval_count)
                self.finish_reason = (
                    "length" if chunk.done_reason == "length" else "tool_call" if self.answer.called else "stop"
                )
                self.counted(chunk.prompt_eval_count, chunk.eval_count)
        self._finished = True

    @property
    def model_name(self) -> str:
        """The alias."""
        return self.alias

    @property
    def provider_name(self) -> str:
        """The provider's name."""
        return PROVIDER

    @property
    def provider_url(self) -> str | None:
        """Nothing to tell: the gateway's address is internal."""
        return None

    @property
    def timestamp(self) -> datetime:
        """When it began."""
        return self.begun_at
