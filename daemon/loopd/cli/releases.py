"""releases: owns `loopctl releases`: listing them, promoting one, rolling back, keeping them or letting them go."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from loopd.api.schema import CollectRequest, ReleaseList, ReleaseView, RolloutView
from loopd.cli import add, complete
from loopd.cli.exits import UnreachableError
from loopd.cli.progress import title, watch
from loopd.cli.screen import Cell, Screen, Sheet, open_screen
from loopd.cli.session import open_client
from loopd.cli.status import releases as release_sheet
from loopd.cli.words import clock, count, size

if TYPE_CHECKING:
    from loopd.cli.client import Client

_REFERENCE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._ -]{1,80}")

app = typer.Typer(
    help="List releases, take one in, promote one, roll back, keep or collect them.", no_args_is_help=True
)


def check_reference(text: str) -> str:
    """Refuse what can be no release's name or id before it becomes part of a URL."""
    if not _REFERENCE.fullmatch(text):
        raise typer.BadParameter("a release is named by its name or the first digits of its id (letters, digits, ._ -)")
    return text


Reference = Annotated[
    str,
    typer.Argument(
        metavar="RELEASE",
        help="Its name, or the first digits of its id.",
        callback=check_reference,
        autocompletion=complete.releases,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
app.command("add")(add.add)
app.command("sign")(add.sign)
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
        screen.show([_kept(release_sheet(views), views)])
    else:
        screen.line("no release yet: drop a GGUF file into models/incoming below `loopctl config show`'s home")


def _kept(sheet: Sheet, views: Sequence[ReleaseView]) -> Sheet:
    """Add who is pinned and whose weights are gone, where there are any."""
    words = ["collected" if view.collected_at else "pinned" if view.pinned else "" for view in views]
    if not any(words):
        return sheet
    return Sheet(
        (*sheet.columns, "KEPT"), tuple((*row, Cell(word)) for row, word in zip(sheet.rows, words, strict=True))
    )


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


@app.command()
def pin(reference: Reference, *, json: Json = False) -> None:
    """Keep a release's weights, whatever the disk budget says."""
    _pin(reference, pinned=True, json=json)


@app.command()
def unpin(reference: Reference, *, json: Json = False) -> None:
    """Let a release's weights be collected again."""
    _pin(reference, pinned=False, json=json)


def _pin(reference: str, *, pinned: bool, json: bool) -> None:
    screen = open_screen()
    with open_client() as client:
        view = client.pin(reference, pinned=pinned)
    if json:
        screen.json(view)
    else:
        screen.line(f"{view.name} ({view.short}) {'is kept' if pinned else 'may be collected'}")


@app.command()
def gc(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would go, and remove nothing.")] = False,
    json: Json = False,
) -> None:
    """Remove the weights of old releases until the rest fits the disk budget; never of what serves or served before."""
    screen = open_screen()
    with open_client() as client:
        view = client.collect(CollectRequest(dry_run=dry_run))
    if json:
        screen.json(view)
        return
    went = "would go" if dry_run else "went"
    named = f": {', '.join(view.releases)}" if view.releases else ""
    freed = f"{count(len(view.releases), 'release', 'releases')} {went}, {size(view.freed_bytes)}{named}"
    screen.line(f"{freed}; {size(view.kept_bytes)} stay of a budget of {size(view.budget_bytes)}")


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
    facts |= {
        key: text
        for key, text in {
            "system": view.system[:200],
            "adapters": ", ".join(f"sha256:{one.sha256} ({size(one.size_bytes)})" for one in view.adapters),
            "base": view.lineage.base,
            "data": view.lineage.data,
            "job": view.lineage.job,
            "scores": ", ".join(f"{name} {score:g}" for name, score in sorted(view.lineage.scores.items())),
            "signed by": view.signer,
            "pinned": "yes, never collected" if view.pinned else "",
            "collected": f"{clock(view.collected_at)}: its weights are gone, drop the file again"
            if view.collected_at
            else "",
        }.items()
        if text
    }
    return Sheet(("RELEASE", view.short), tuple((Cell(key), Cell(value)) for key, value in facts.items()))
