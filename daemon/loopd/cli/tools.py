"""tools: owns `loopctl tools`: which tools a run could be offered, and why others are not."""

from __future__ import annotations

from typing import Annotated

import typer

from loopd.cli.agent_views import ToolList, ToolView
from loopd.cli.screen import Block, Cell, Sheet, open_screen
from loopd.cli.session import open_agent


def tools(*, json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False) -> None:
    """List every tool that a run could be offered, from the agent, its sandboxes and MCP servers."""
    screen = open_screen()
    with open_agent() as agent:
        found = agent.tools()
    if json:
        screen.json(found)
    else:
        screen.show(blocks(found))


def blocks(found: ToolList) -> list[Block]:
    """Return the table of tools, and a line for each thing that is not as one might think."""
    made: list[Block] = [
        Sheet(("TOOL", "STATE", "SOURCE", "EFFECT", "LEVEL", "WHAT IT DOES"), tuple(_row(t) for t in found.tools))
        if found.tools
        else Cell("there is no tool; `loopctl why agent` may say more")
    ]
    made += [
        Cell(f"{c.name}: {c.winner} has the name, the one of {c.loser} is called {c.offered_as or 'nothing'}", "off")
        for c in found.conflicts
    ]
    made += [Cell(f"{r.name} of {r.source or 'a source'} is not taken: {r.reason}", "bad") for r in found.refused]
    made += [Cell(f"{s.source} cannot be asked: {s.reason}", "bad") for s in found.unavailable]
    return made


def _row(tool: ToolView) -> tuple[Cell, ...]:
    about = " ".join(tool.description.split("\n", 1)[0].split())
    return (
        Cell(tool.name),
        Cell("ready", "good") if tool.available else Cell("away", "off"),
        Cell(tool.source),
        Cell(tool.effect),
        Cell(tool.level),
        Cell(about if tool.available else f"{about} ({tool.reason or 'no reason given'})"),
    )
