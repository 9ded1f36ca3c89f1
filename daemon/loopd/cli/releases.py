"""releases: owns `loopctl releases`: listing them, promoting one, rolling back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from loopd.api.schema import ReleaseList, ReleaseView, RolloutView
from loopd.cli.exits import UnreachableError
from loopd.cli.progress import title, watch
from loopd.cli.screen import Cell, Screen, Sheet, open_screen
from loopd.cli.session import open_client
from loopd.cli.status import releases as release_sheet
from loopd.cli.words import clock, size
from loopd.errors import LoopdError

if TYPE_CHECKING:
    from loopd.cli.client import Client

_REFERENCE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._ -]{1,80}")

app = typer.Typer(help="List releases, promote one, roll back.", no_args_is_help=True)


def check_reference(text: str) -> str:
    """Refuse what can be no release's name or id before it becomes part of a URL."""
    if not _REFERENCE.fullmatch(text):
        raise typer.BadParameter("a release is named by its name or the first digits of its id (letters, digits, ._ -)")
    return text


def complete_reference(incomplete: str) -> list[str]:
    """Return releases for the shell's completion; a shell must not be told of errors."""
    try:
        with open_client() as client:
            known = client.releases()
    except LoopdError:
        return []
    return [word for release in known for word in (release.name, release.short) if word.startswith(incomplete)]


Reference = Annotated[
    str,
    typer.Argument(
        metavar="RELEASE",
        help="Its name, or the first digits of its id.",
        callback=check_reference,
        autocompletion=complete_reference,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Show the rollout until it ends, or return at once.")]


@app.command("list")
def list_releases(*, json: Json = False) -> None:
    """List all releases, newest first."""
    screen = open_screen()
    with open_client() as client:
        views = client.releases()
    if json:
        screen.json(ReleaseList(releases=views))
    elif views:
        screen.show([release_sheet(views)])
    else:
        screen.line("no release yet: drop a GGUF file into models/incoming below `loopctl config show`'s home")


@app.command()
def show(reference: Reference, *, json: Json = False) -> None:
    """Show everything about one release."""
    screen = open_screen()
    with open_client() as client:
        view = client.release(reference)
    if json:
        screen.json(view)
    else:
        screen.show([portrait(view)])


@app.command()
def promote(reference: Reference, *, wait: Wait = True, json: Json = False) -> None:
    """Roll a known release out: start, check, shift the traffic, drain the old one."""
    with open_client() as client:
        _finish(client, client.promote(reference), open_screen(), wait=wait, json=json)


@app.command()
def rollback(*, wait: Wait = True, json: Json = False) -> None:
    """Return to the release that served before."""
    with open_client() as client:
        _finish(client, client.rollback(), open_screen(), wait=wait, json=json)


def _finish(client: Client, asked: RolloutView, screen: Screen, *, wait: bool, json: bool) -> None:
    if wait:
        try:
            code = watch(client, asked.id, screen, as_json=json)
        except (KeyboardInterrupt, UnreachableError):
            screen.remark(f"the rollout goes on without being watched; `loopctl rollouts watch {asked.id}` shows it")
            raise
        raise typer.Exit(code)
    if json:
        screen.json(asked)
    else:
        screen.line(f"asked for {title(asked)}")
        screen.line(f"`loopctl rollouts watch {asked.id}` shows it")


def portrait(view: ReleaseView) -> Sheet:
    """Return one release, a line for each property."""
    facts = {
        "name": view.name,
        "id": view.id,
        "role": f"{view.role}, {view.share_percent} % of the traffic"
        + ("" if view.weight is None else f" (gateway weight {view.weight}, {view.sessions} in flight)"),
        "container": f"{view.container or 'none'}{', ready' if view.ready else ''}",
        "architecture": view.architecture,
        "size": f"{size(view.size_bytes)} ({view.size_bytes} bytes)",
        "context": f"{view.num_ctx} tokens",
        "weights": f"sha256:{view.gguf_sha256}",
        "engine image": view.engine_image,
        "came as": view.source,
        "created": clock(view.created_at),
    }
    return Sheet(("RELEASE", view.short), tuple((Cell(key), Cell(value)) for key, value in facts.items()))
