"""interactions: owns reading what the agent recorded: its framework's messages, which calls failed, how it ended. Pure.

A record is one run, as the agent's /agents/interactions tells it: {"messages": […], "tools": […], "run_id",
"thread_id", "outcome": "completed" or another end, "rating": "good"|"bad"|null, "better": what the answer should have
been}; all but the messages may be missing. "failed_calls" may name calls whose result is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from loopbox_trainer.chat_forms import arguments_of, text_of_content, tools_of_chat
from loopbox_trainer.failures import is_failure
from loopbox_trainer.rows import Call, Message, Outcome, Row, RowError, Tool

Record = Mapping[str, Any]  # Any: JSON that the agent wrote

#: Parts that say nothing to learn from.
_SILENT: Final = frozenset({"thinking", "builtin-tool-call", "builtin-tool-return"})
#: Ends that the model alone brought about; that somebody cancelled, or an engine was away, says nothing of it.
_ENDED_BADLY: Final = frozenset({"arguments_invalid", "model_output_invalid", "output_invalid"})


@dataclass
class _Telling:
    """The messages so far."""

    failed_calls: frozenset[str]
    messages: list[Message] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)  #: places of results that tell of a failure
    said: str = ""  #: the rules, as last told

    def rules(self, text: str) -> None:
        """Tell the rules, which every request repeats."""
        if text and text != self.said:
            self.said = text
            self.messages.append(Message("system", text))

    def result(self, part: Record) -> None:
        """Add what a tool answered."""
        text = _words(part.get("content"))
        outcome = part.get("outcome", "success")
        if (
            outcome != "success"
            or part["part_kind"] == "retry-prompt"
            or str(part.get("tool_call_id")) in self.failed_calls
            or is_failure(text)
        ):
            self.failed.append(len(self.messages))
        self.messages.append(Message("tool", text, name=str(part["tool_name"])[:128]))

    def take_back(self) -> None:
        """Drop an answer that the agent's own check refused: the next one stands in its place."""
        if self.messages and self.messages[-1].role == "assistant" and not self.messages[-1].tool_calls:
            self.messages.pop()


def row_of_interaction(record: Record, tools: tuple[Tool, ...] = ()) -> Row:
    """Return one recorded interaction as a row. tools: on offer where the record does not say. Raises RowError."""
    telling = _Telling(frozenset(map(str, record.get("failed_calls") or ())))
    for message in record["messages"]:
        if message["kind"] == "request":
            _request(message, telling)
        else:
            _response(message, telling)
    meta: dict[str, Any] = {"origin": str(record.get("run_id") or "")[:200]}  # Any: JSON
    if telling.failed:
        meta["failed"] = telling.failed
    better = record.get("better")
    if isinstance(better, str) and better.strip():
        meta["better"] = better
    return Row(
        messages=tuple(telling.messages),
        tools=tools_of_chat(record) or tools,
        conversation=str(record.get("thread_id") or record.get("run_id") or "")[:256],
        outcome=outcome_of(record.get("rating"), str(record.get("outcome") or ""), telling.messages, telling.failed),
        meta=meta,
    )


def outcome_of(rating: object, end: str, messages: list[Message], failed: list[int]) -> Outcome:
    """Return how an interaction went: by what a person said, else by how it ended.

    Good without a person's word needs a call that worked after the last one that failed: an answer alone proves
    nothing.
    """
    if rating == "good":
        return "good"
    if rating == "bad" or end in _ENDED_BADLY:
        return "bad"
    results = [place for place, message in enumerate(messages) if message.role == "tool"]
    if end == "completed" and results and results[-1] not in failed and messages[-1].role == "assistant":
        return "good"
    return "unknown"


def _request(message: Record, telling: _Telling) -> None:
    telling.rules(str(message.get("instructions") or ""))
    for part in message["parts"]:
        match part["part_kind"]:
            case "system-prompt" | "compaction" | "instruction":
                telling.messages.append(Message("system", text_of_content(part.get("content"))))
            case "user-prompt":
                telling.messages.append(Message("user", text_of_content(part.get("content"))))
            case "tool-return":
                telling.result(part)
            case "retry-prompt" | "retry-feedback":
                if part.get("tool_name"):
                    telling.result({**part, "part_kind": "retry-prompt"})
                else:
                    telling.take_back()
            case kind if kind not in _SILENT:
                raise RowError("unknown_part", str(kind)[:60])


def _response(message: Record, telling: _Telling) -> None:
    texts, calls = list(_texts(message["parts"])), list(_calls(message["parts"]))
    if texts or calls:
        telling.messages.append(Message("assistant", "".join(texts), tuple(calls)))


def _texts(parts: list[Record]) -> Iterator[str]:
    for part in parts:
        match part["part_kind"]:
            case "text" | "compaction":
                yield part.get("content") or ""
            case "tool-call":
                pass
            case kind if kind not in _SILENT:
                raise RowError("not_text" if kind == "file" else "unknown_part", str(kind)[:60])


def _calls(parts: list[Record]) -> Iterator[Call]:
    for part in parts:
        if part["part_kind"] == "tool-call":
            yield Call(part["tool_name"], arguments_of(part.get("args")))


def _words(content: object) -> str:
    """Return a result's text: what the agent shows its model."""
    if isinstance(content, Mapping) and set(content) == {"text"}:
        content = content["text"]
    return content if isinstance(content, str) else msgspec.json.encode(content).decode()
