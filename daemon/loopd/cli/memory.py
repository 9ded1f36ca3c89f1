"""memory: owns `loopctl memory`: what the agent remembers for the user that loopctl asks as."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from loopd.cli import complete
from loopd.cli.agent_views import GoneView, MemoryList
from loopd.cli.inputs import read_text
from loopd.cli.screen import Cell, Sheet, open_screen
from loopd.cli.session import open_agent
from loopd.cli.words import ago

app = typer.Typer(
    help="List, add, search and forget what the agent remembers for loopctl's own user.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]


@app.command("list")
def list_memories(
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="At most so many.")] = 50,
    json: Json = False,
) -> None:
    """List what is remembered, newest first."""
    with open_agent() as agent:
        found = agent.memories(limit=limit)
    _show(found, "nothing is remembered: `loopctl memory add TEXT` adds something", json=json)


@app.command()
def add(
    text: Annotated[str, typer.Argument(help="What to remember; - reads it from standard input.")],
    *,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="WORD", help="A word to find it by; may be repeated.")
    ] = None,
    json: Json = False,
) -> None:
    """Remember something; what is known already is not kept twice."""
    screen, words = open_screen(), read_text(text, "text")
    with open_agent() as agent:
        view = agent.remember(words, tag or [])
    if json:
        screen.json(view)
    else:
        screen.line(f"remembered as {view.id}", "good")


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="Words.")],
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="At most so many.")] = 5,
    json: Json = False,
) -> None:
    """Find what fits best."""
    with open_agent() as agent:
        found = agent.recall(query, limit=limit)
    _show(found, "nothing that is remembered fits", json=json)


@app.command()
def forget(
    memory: Annotated[
        int,
        typer.Argument(metavar="ID", min=0, max=(1 << 62) - 1, help="Its number.", autocompletion=complete.memories),
    ],
    *,
    json: Json = False,
) -> None:
    """Forget one thing."""
    screen = open_screen()
    with open_agent() as agent:
        agent.forget(memory)
    if json:
        screen.json(GoneView(removed=str(memory)))
    else:
        screen.line(f"{memory} is forgotten", "good")


def _show(found: MemoryList, nothing: str, *, json: bool) -> None:
    screen, now = open_screen(), datetime.now(UTC)
    if json:
        screen.json(found)
    elif not found.memories:
        screen.line(nothing)
    else:
        rows = tuple(
            (
                Cell(str(m.id)),
                Cell(ago(m.created_at, now)),
                Cell(m.source),
                Cell(", ".join(m.tags) or "-"),
                Cell(m.text),
            )
            for m in found.memories
        )
        screen.show([Sheet(("ID", "ADDED", "BY", "TAGS", "TEXT"), rows)])
