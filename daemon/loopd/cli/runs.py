"""runs: owns `loopctl runs`: the agent's runs, listed, shown, followed, cancelled and spoken into."""

from __future__ import annotations

import json as jsonlib
from contextlib import closing
from functools import partial
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, JsonValue

from loopd.cli import complete
from loopd.cli.agent_views import RunView
from loopd.cli.inputs import check_id, read_text
from loopd.cli.run_follow import Place, Run, Stream, follow, parse_event
from loopd.cli.run_screen import ending, show
from loopd.cli.screen import Cell, Mood, Screen, Sheet, open_screen
from loopd.cli.session import open_agent, read_settings, resume_run
from loopd.cli.words import plain, span

app = typer.Typer(
    help="List the agent's runs, show and follow one, cancel one, say something into one.", no_args_is_help=True
)

RunId = Annotated[
    str, typer.Argument(metavar="ID", help="The run's id.", callback=check_id, autocompletion=complete.runs)
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]

_MOODS: dict[str, Mood] = {
    "completed": "good",
    "running": "busy",
    "held": "busy",
    "failed": "bad",
    "interrupted": "bad",
    "cancelled": "off",
}


class EventLine(BaseModel):
    """One event of a run, for --json."""

    model_config = ConfigDict(defer_build=True)  # `--help` need not wait for it

    id: str
    event: str
    data: dict[str, JsonValue]


@app.command("list")
def list_runs(
    *,
    live: Annotated[bool, typer.Option("--live", help="Those under way, of everybody.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=200, help="At most so many.")] = 50,
    json: Json = False,
) -> None:
    """List the runs of `loopctl` itself, newest first; with --live everybody's that are under way."""
    screen = open_screen()
    with open_agent() as agent:
        found = agent.runs(live=live, limit=limit)
    if json:
        screen.json(found)
    elif found.runs:
        screen.show([sheet(found.runs)])
    else:
        screen.line("no run is under way" if live else "no run yet: `loopctl ask` starts one")


@app.command("show")
def show_run(run_id: RunId, *, json: Json = False) -> None:
    """Show one: how it is, what it answered, or why it failed."""
    screen = open_screen()
    with open_agent() as agent:
        view = agent.show_run(run_id)
    if json:
        screen.json(view)
        return
    screen.show([sheet([view])])
    if (text := outcome(view)) is not None:
        shown = plain(text, keep="\n\t") if screen.terminal else text
        screen.write("\n" + shown.removesuffix("\n") + "\n")


@app.command()
def watch(
    run_id: RunId,
    *,
    json: Annotated[bool, typer.Option("--json", help="Write each event as JSON on a line.")] = False,
) -> None:
    """Show what a run tells from its beginning to its end, over broken connections; Ctrl-C leaves it running.

    Exits 0 when it was completed, 1 when it failed, was cancelled or is held back.
    """
    screen, run = open_screen(), Run()
    resume = partial(resume_run, read_settings())
    with closing(follow(partial(resume, run_id, 0), resume, Place(run_id), screen.remark)) as messages:
        show(run, told(messages, screen) if json else messages, screen, text=not json)
    if not json:
        screen.write(ending(run, terminal=screen.terminal))
    run.check()


@app.command()
def cancel(run_id: RunId, *, json: Json = False) -> None:
    """End a run at once; back when nothing of it is left in the engine or a sandbox. What it said is kept."""
    screen = open_screen()
    with open_agent() as agent:
        end = agent.cancel(run_id)
    if json:
        screen.json(end)
    elif end.status == "cancelled":
        screen.line(f"{run_id} was cancelled; nothing of it runs on", "good")
    else:
        screen.line(f"{run_id} had ended before: {end.error.message if end.error else end.status}")


@app.command()
def steer(
    run_id: RunId,
    text: Annotated[str, typer.Argument(help="What to tell it; - reads it from standard input.")],
    *,
    json: Json = False,
) -> None:
    """Say something into a run; the model reads it before its next turn."""
    screen, words = open_screen(), read_text(text, "message")
    with open_agent() as agent:
        view = agent.steer(run_id, words)
    if json:
        screen.json(view)
    else:
        screen.line(f"{run_id} reads it before its next turn; `loopctl runs watch {run_id}` shows what it does")


def sheet(views: list[RunView]) -> Sheet:
    """Return the table of runs."""
    rows = [
        (
            Cell(view.run_id),
            Cell(view.status, _MOODS.get(view.status, "")),
            Cell(view.user or "-"),
            Cell(view.thread_id or "-"),
            Cell(span(view.duration_ms / 1000)),
        )
        for view in views
    ]
    return Sheet(("RUN", "STATUS", "USER", "THREAD", "TOOK"), tuple(rows))


def outcome(view: RunView) -> str | None:
    """Return what a run answered, or why it failed; None while there is neither."""
    match view.error, view.result:
        case {"error": {"code": code, "message": message}}, _:
            return f"{message} [{code}]"
        case None, None:
            return None
        case None, {"structured": structured} if structured is not None:
            return jsonlib.dumps(structured, ensure_ascii=False)
        case None, {"output": str(output)}:
            return output
        case error, result:
            return jsonlib.dumps(result if error is None else error, ensure_ascii=False)


def told(messages: Stream, screen: Screen) -> Stream:
    """Write each event as JSON on a line, and pass it on."""
    for message in messages:
        if message is not None:
            line = EventLine(id=message.id, event=message.event, data=parse_event(message))
            screen.json(line, indent=None)
        yield message
