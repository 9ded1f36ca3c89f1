from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue
from pydantic_ai.messages import ToolCallPart

from loopbox_agent.sandbox import Outcome
from loopbox_agent.tool_spec import ToolSpec
from loopbox_agent.turn_calls import TurnCalls

SCHEMA: dict[str, JsonValue] = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}


class OneFile:
    async def call(self, tool: ToolSpec, call_id: str, arguments: Mapping[str, JsonValue]) -> Outcome:
        there = arguments["path"] == "a.txt"
        return Outcome("three lines" if there else "'b' is not there", {}, is_error=not there)


async def test_what_is_told_of_a_call_keeps_how_it_went() -> None:
    """Training takes mistakes apart by it."""
    calls = TurnCalls(OneFile(), [ToolSpec("read_file", "Read.", SCHEMA, source="sandbox")])
    asked = [ToolCallPart("read_file", {"path": "a.txt"}, "c1"), ToolCallPart("read_file", {"path": "b"}, "c2")]
    unfit = ToolCallPart("read_file", {"other": 1}, "c3")
    told = await calls.make(asked)
    assert [(part.content, part.outcome) for part in told] == [
        ("three lines", "success"),
        ("'b' is not there", "failed"),
    ]
    assert [part.outcome for part in await calls.make([unfit])] == ["retried"]
