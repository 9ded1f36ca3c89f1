"""The way from an offer to a pydantic-ai agent and its parallel calls, with tools made for one run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.tools import Tool as OfferedTool

from loopbox_agent.principal import Role
from loopbox_agent.sandbox import Outcome
from loopbox_agent.tool_caller import Caller
from loopbox_agent.tool_offer import Asking, Bounds, RoleTable, for_run
from loopbox_agent.tool_registry import Source, merge
from loopbox_agent.tool_schedule import Schedule
from loopbox_agent.tool_spec import Kind, ToolSpec

SCHEMA: Mapping[str, JsonValue] = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def offered(caller: Caller, tool: ToolSpec) -> OfferedTool[None]:
    async def call(_: RunContext[None], **arguments: Any) -> str:  # Any: JSON by the tool's own schema
        return (await caller.call(tool, arguments)).text

    return OfferedTool.from_schema(
        call, name=tool.name, description=tool.description, json_schema=dict(tool.schema), takes_ctx=True
    )


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

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        assert {tool.name for tool in info.function_tools} == {"look", "mail__look"}
        if len(messages) > 1:
            return ModelResponse([TextPart("done")])
        names = ("mail__look", "look", "look", "mail__look")
        return ModelResponse([ToolCallPart(name, {"n": n}) for n, name in enumerate(names)])

    agent = Agent(FunctionModel(model), tools=[offered(caller, tool) for tool in offer.tools])
    result = await asyncio.wait_for(agent.run("go"), 10)
    told = [str(part.content) for m in result.all_messages() for part in m.parts if isinstance(part, ToolReturnPart)]
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
