"""rollouts: owns `loopctl rollouts`: listing them, showing one, watching one, turning one back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from loopd.api.schema import RolloutList, RolloutView
from loopd.cli import complete
from loopd.cli.progress import draw, find_rollout, title, watch
from loopd.cli.screen import Cell, Mood, Sheet, open_screen
from loopd.cli.session import open_client
from loopd.cli.words import clock, span

app = typer.Typer(help="List rollouts, watch one live, turn one back.", no_args_is_help=True)

Number = Annotated[
    int,
    typer.Argument(metavar="ID", min=1, max=10**15 - 1, help="The rollout's number.", autocompletion=complete.rollouts),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]

_PHASE_MOODS: dict[str, Mood] = {"promoted": "good", "rolled_back": "bad", "superseded": "off"}


@app.command("list")
def list_rollouts(*, json: Json = False) -> None:
    """List the latest rollouts, newest first."""
    screen = open_screen()
    with open_client() as client:
        views = client.rollouts()
    if json:
        screen.json(RolloutList(rollouts=views))
    elif views:
        screen.show([sheet(views)])
    else:
        screen.line("no rollout yet: drop a GGUF file into models/incoming below `loopctl config show`'s home")


@app.command()
def show(number: Number, *, json: Json = False) -> None:
    """Show one rollout with its steps, those still planned included."""
    screen = open_screen()
    with open_client() as client:
        view = client.rollout(number)
    if json:
        screen.json(view)
    else:
        screen.show(draw(view, datetime.now(UTC)))


@app.command("watch")
def watch_rollout(
    number: Annotated[
        int | None,
        typer.Argument(
            metavar="[ID]",
            min=1,
            max=10**15 - 1,
            help="The one under way, or the next, if left out.",
            autocompletion=complete.rollouts,
        ),
    ] = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="Write the rollout on a line each time it changes.")] = False,
) -> None:
    """Show a rollout live until it ends.

    Exits 0 when the release was promoted, 1 when it was rolled back or superseded.
    """
    screen = open_screen()
    with open_client() as client:
        code = watch(client, number or find_rollout(client, screen), screen, as_json=json)
    raise typer.Exit(code)


@app.command()
def abort(number: Number, *, json: Json = False) -> None:
    """Turn a rollout back before its promotion: the old release gets all traffic at once."""
    screen = open_screen()
    with open_client() as client:
        view = client.abort(number)
    if json:
        screen.json(view)
    else:
        screen.line(f"asked to turn back {title(view)}")
        screen.line(f"`loopctl rollouts watch {view.id}` shows it")


def sheet(views: list[RolloutView]) -> Sheet:
    """Return the table of rollouts."""
    rows = [
        (
            Cell(str(view.id)),
            Cell(view.kind),
            Cell(f"{view.candidate_name} ({view.candidate})"),
            Cell(view.phase.replace("_", " "), _PHASE_MOODS.get(view.phase, "busy")),
            Cell(clock(view.created_at)),
            Cell(span((view.finished_at - view.created_at).total_seconds()) if view.finished_at else "-"),
            Cell(view.reason),
        )
        for view in views
    ]
    return Sheet(("ID", "KIND", "RELEASE", "PHASE", "ASKED FOR AT", "TOOK", "REASON"), tuple(rows))
