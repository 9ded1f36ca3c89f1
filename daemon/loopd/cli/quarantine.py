"""quarantine: owns `loopctl quarantine`: what the agent held back, and an operator's word on it."""

from __future__ import annotations

import json as jsonlib
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from loopd.cli import complete
from loopd.cli.agent_views import HeldView
from loopd.cli.inputs import check_id
from loopd.cli.screen import Cell, Mood, Sheet, open_screen
from loopd.cli.session import open_agent
from loopd.cli.words import ago, clock, plain

app = typer.Typer(help="List, read, release and reject what the agent held back.", no_args_is_help=True)

MOST_SHOWN = 60  # characters of a text in the list


class State(StrEnum):
    """What became of it."""

    WAITING = "waiting"
    RELEASED = "released"
    REJECTED = "rejected"


HeldId = Annotated[
    str,
    typer.Argument(metavar="ID", help="The id that the list shows.", callback=check_id, autocompletion=complete.held),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]

_MOODS: dict[str, Mood] = {"waiting": "busy", "released": "good", "rejected": "off"}


@app.command("list")
def list_held(
    *,
    state: Annotated[State, typer.Option("--state", help="What became of it.")] = State.WAITING,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=200, help="At most so many.")] = 20,
    json: Json = False,
) -> None:
    """List what was held back, newest first."""
    screen = open_screen()
    with open_agent() as agent:
        found = agent.held(state.value, limit=limit)
    if json:
        screen.json(found)
    elif found.held:
        screen.show([sheet(found.held)])
    else:
        screen.line("nothing waits for a review" if state is State.WAITING else f"nothing was {state.value}")


@app.command()
def show(held_id: HeldId, *, json: Json = False) -> None:
    """Show one: the whole text, and what was found in it."""
    screen = open_screen()
    with open_agent() as agent:
        held = agent.find_held(held_id)
    if json:
        screen.json(held)
        return
    screen.show([sheet([held])])
    screen.line(f"held back {clock(held.created_at)}")
    if held.decided_by:
        screen.line(f"{held.state} by {held.decided_by}{f': {held.reason}' if held.reason else ''}")
    screen.line(f"found: {jsonlib.dumps(held.findings, ensure_ascii=False)}")
    # Whatever reads it: what was held back may be an attack on the one who looks.
    screen.write("\n" + plain(held.text, keep="\n\t").removesuffix("\n") + "\n")


@app.command()
def release(held_id: HeldId, *, json: Json = False) -> None:
    """Let it through: its run is completed with it, and its user can read it."""
    screen = open_screen()
    with open_agent() as agent:
        held = agent.release(held_id)
    if json:
        screen.json(held)
    else:
        screen.line(f"{held_id} is released: {held.user} reads it in {held.run_id}", "good")


@app.command()
def reject(
    held_id: HeldId,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why; its user reads it.")] = "",
    json: Json = False,
) -> None:
    """Keep it back for good: its run has failed."""
    screen = open_screen()
    with open_agent() as agent:
        held = agent.reject(held_id, reason)
    if json:
        screen.json(held)
    else:
        screen.line(f"{held_id} is rejected: {held.run_id} of {held.user} has failed", "good")


def sheet(views: list[HeldView]) -> Sheet:
    """Return the table of what was held back."""
    now = datetime.now(UTC)
    rows = [
        (
            Cell(view.id),
            Cell(view.state, _MOODS.get(view.state, "")),
            Cell(str(view.score)),
            Cell(view.kind),
            Cell(view.user),
            Cell(view.run_id),
            Cell(ago(view.created_at, now)),
            Cell(short(view.text)),
        )
        for view in views
    ]
    return Sheet(("ID", "STATE", "SCORE", "KIND", "USER", "RUN", "HELD", "TEXT"), tuple(rows))


def short(text: str) -> str:
    """Return a text's beginning on one line."""
    line = " ".join(text[: 4 * MOST_SHOWN].split())
    return line if len(line) <= MOST_SHOWN else line[: MOST_SHOWN - 1] + "…"
