"""The way from an offer to an answer's parallel calls, with tools made for one run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue
from pydantic_ai.messages import ToolCallPart

from loopbox_agent.principal import Role
from loopbox_agent.sandbox import Outcome
from loopbox_agent.tool_caller import Caller
from loopbox_agent.tool_offer import Asking, Bounds, RoleTable, for_run
from loopbox_agent.tool_registry import Source, merge
from loopbox_agent.tool_schedule import Schedule
from loopbox_agent.tool_spec import Kind, ToolSpec
from loopbox_agent.turn_calls import TurnCalls

SCHEMA: Mapping[str, JsonValue] = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@dataclass
class Through:
    """Makes calls by a caller, as a run's tools do."""

    caller: Caller

    async def call(self, tool: ToolSpec, call_id: str, arguments: Mapping[str, JsonValue]) -> Outcome:
        del call_id
        return await self.caller.call(tool, arguments)


def spec(name: str, source: str = "builtin", **more: Any) -> ToolSpec:  # Any: fields
    kind: Kind = "builtin" if source == "builtin" else "server"
    return ToolSpec(name, "", SCHEMA, source=source, kind=kind, **more)


async def test_tools_of_a_run_are_called_at_once_and_answered_in_order() -> None:
    reads, both = 0, asyncio.Event()
    order: list[tuple[str, JsonValue]] = []
    kept: dict[str, str] = {}

    async def look(_: ToolSpec, arguments: Mapping[str, JsonValue]) -> Outcome:
        nonlocal reads
        reads += 1
        if reads == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 5)  # comes only when both run at once
        return Outcome(f"saw {arguments['n']}", {}, is_error=False)

    async def server(tool: ToolSpec, arguments: Mapping[str, JsonValue]) -> Outcome:
        order.append((tool.source_name, arguments["n"]))
        await asyncio.sleep(0)
        return Outcome("x" * 50_000, {}, is_error=False)

    async def keep(name: str, text: str) -> str:
        kept[name] = text
        return "output 1"

    registry = merge(
        [
            Source("mail", "server", (spec("look", "mail", level="network", effect="network"),)),
            Source("builtin", "builtin", (spec("look", level="read", effect="read"),)),
        ]
    )
    offer = for_run(registry, Asking(names=("look", "mail__look"), role=Role.ADMIN), RoleTable(), Bounds())
    caller = Caller(schedule=Schedule(), builtins={"look": look}, server=server, keep=keep)

    names = ("mail__look", "look", "look", "mail__look")
    asked = [ToolCallPart(name, {"n": n}) for n, name in enumerate(names)]
    returned = await asyncio.wait_for(TurnCalls(Through(caller), offer.tools).make(asked), 10)
    told = [str(part.content) for part in returned]
    assert told[1:3] == ["saw 1", "saw 2"]
    assert order == [("look", 0), ("look", 3)]  # a server's changing calls: in order, by its own name of the tool
    assert "the whole output is kept: output 1" in told[0]
    assert kept == {"mail__look": "x" * 50_000}


async def test_a_tool_whose_source_is_not_in_this_run_is_told_as_such() -> None:
    caller = Caller(schedule=Schedule())
    for tool in (spec("gone"), spec("gone", "mail"), ToolSpec("bash", "", SCHEMA)):
        outcome = await caller.call(tool, {})
        assert outcome.is_error
        assert "nothing was run" in outcome.text
