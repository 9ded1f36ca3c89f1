"""turn_calls: owns the tool calls of one answer: arguments fitted, all made side by side, answered in their order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from pydantic import JsonValue
from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_ai.tools import ToolDefinition

from loopbox_agent.arguments import ArgumentsInvalidError, fit_arguments
from loopbox_agent.forced import ModelOutputInvalidError
from loopbox_agent.sandbox import Outcome
from loopbox_agent.tool_spec import ToolSpec

TRIES: Final = 2  # answers in a row in which a tool's call may be wrong; the last one ends the run
NAMED: Final = 40  # tools that a model is told of when it names one that is not there


class MakesCalls(Protocol):
    """What makes a call; a run's tools are one."""

    async def call(self, tool: ToolSpec, call_id: str, arguments: Mapping[str, JsonValue]) -> Outcome:
        """Make it. What went wrong in a way that the model can go on from is an outcome."""


@dataclass
class TurnCalls:
    """The tools that a dialogue's model may call, and what it got wrong so far."""

    made_by: MakesCalls | None = None  #: None only without tools
    tools: Sequence[ToolSpec] = ()
    _wrong: dict[str, int] = field(default_factory=dict)  #: by tool: answers in a row in which it was called wrongly

    @property
    def definitions(self) -> list[ToolDefinition]:
        """The tools as the model's framework takes them."""
        return [
            ToolDefinition(name=tool.name, description=tool.description, parameters_json_schema=dict(tool.schema))
            for tool in self.tools
        ]

    async def make(self, calls: Sequence[ToolCallPart]) -> list[ToolReturnPart]:
        """Make the calls of one answer and return what each one gave.

        A call that fits no tool is told to the model, which may try again; what was mended is kept in ``calls``, so
        that the engine gets an object back. Raises ArgumentsInvalidError and ModelOutputInvalidError at the second
        wrong one in a row, before any call of this answer is made; and what a call raises.
        """
        known = {tool.name: tool for tool in self.tools}
        wrong: dict[str, ArgumentsInvalidError | ModelOutputInvalidError] = {}
        words: dict[int, str] = {}
        for place, call in enumerate(calls):
            try:
                if (tool := known.get(call.tool_name)) is None:
                    raise _nothing_like(call.tool_name, known)
                call.args = fit_arguments(tool.name, tool.schema, call.args)
            except (ArgumentsInvalidError, ModelOutputInvalidError) as error:
                wrong[call.tool_name] = error
                words[place] = str(error)
        self._count({call.tool_name for call in calls}, wrong)
        given: dict[int, Outcome] = {}

        async def one(place: int, call: ToolCallPart) -> None:
            assert self.made_by is not None  # noqa: S101 a call of a known tool
            given[place] = await self.made_by.call(known[call.tool_name], call.tool_call_id, call.args_as_dict())

        failed: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for place, call in enumerate(calls):
                    if place not in words:
                        group.create_task(one(place, call))
        except BaseExceptionGroup as several:
            failed = _first(several)
        if failed is not None:
            raise failed  # out here, so that it is not its own context
        return [
            ToolReturnPart(call.tool_name, words[place], call.tool_call_id, outcome="retried")
            if place in words
            else _told(call, given[place])
            for place, call in enumerate(calls)
        ]

    def _count(self, called: set[str], wrong: Mapping[str, ArgumentsInvalidError | ModelOutputInvalidError]) -> None:
        for name in called - set(wrong):
            self._wrong.pop(name, None)
        for name, error in wrong.items():
            self._wrong[name] = self._wrong.get(name, 0) + 1
            if self._wrong[name] >= TRIES:
                raise error


def _told(call: ToolCallPart, outcome: Outcome) -> ToolReturnPart:
    """Return what the model is told; that a call failed is kept with it, since it is learnt from."""
    ended: Literal["failed", "success"] = "failed" if outcome.is_error else "success"
    return ToolReturnPart(call.tool_name, outcome.text, call.tool_call_id, outcome=ended)


def _nothing_like(name: str, known: Mapping[str, ToolSpec]) -> ModelOutputInvalidError:
    offered = ", ".join(list(known)[:NAMED]) or "none"
    return ModelOutputInvalidError(f"There is no tool {name[:80]!r} here; nothing was run. Tools: {offered}.")


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that the others were cancelled for."""
    error: BaseException = several
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
