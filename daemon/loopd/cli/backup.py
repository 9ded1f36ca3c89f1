"""backup: owns `loopctl backup`: making one, listing them, verifying one, putting one back.

loopd makes and lists them where it runs. Verifying and restoring need none: they are for the night when it does not
start.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel

from loopd.cli import complete
from loopd.cli.exits import UnreachableError
from loopd.cli.screen import Cell, Screen, Sheet, open_screen
from loopd.cli.session import open_client, read_settings
from loopd.cli.words import ago, clock, count, size

if TYPE_CHECKING:
    from loopd.api.schema import BackupList, BackupView
    from loopd.backup import Manifest
    from loopd.restore import Restored

MOST_MISSING = 50  # shown

app = typer.Typer(help="Make, list, verify and put back backups of the state; never of weights.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Reference = Annotated[
    str,
    typer.Argument(
        metavar="BACKUP",
        help="Its name in the list, or a path with a slash; the newest if left out.",
        autocompletion=complete.backups,
    ),
]


class VerifiedView(BaseModel):
    """A good backup as JSON."""

    path: str
    created_at: datetime
    version: str
    state_schema: int
    ledger_length: int
    ledger_head: str
    releases: int
    champion: str | None


class MissingView(BaseModel):
    """Weights that the registry names and this host lacks."""

    release: str
    name: str
    sha256: str
    size_bytes: int
    champion: bool


class RestoredView(BaseModel):
    """A restore as JSON."""

    backup: VerifiedView
    kept_aside: str | None
    put: list[str]
    left: list[str]
    token: bool
    missing: list[MissingView]


@app.command()
def create(*, json: Json = False) -> None:
    """Make a backup: the state, the registry's manifests, the settings. Traffic and loopd go on meanwhile."""
    screen = open_screen()
    view = _create()
    if json:
        screen.json(view)
    else:
        told = f"{count(view.ledger_length or 0, 'ledger entry', 'ledger entries')}, "
        told += count(view.releases or 0, "release", "releases")
        screen.line(f"{view.name}: {size(view.size_bytes)}, {told}", "good")
        screen.remark("on this disk alone it does not outlive it: copy it to another host")


@app.command("list")
def list_backups(*, json: Json = False) -> None:
    """List backups, newest first. Nothing is checked but what each says of itself; `verify` does."""
    screen = open_screen()
    found = _list()
    if json:
        screen.json(found)
    elif found.backups:
        screen.show([sheet(found.backups, datetime.now(UTC))])
    else:
        screen.line(f"no backup yet in {found.folder}: `loopctl backup create` makes one")


@app.command()
def verify(reference: Reference = "", *, json: Json = False) -> None:
    """Check everything about a backup: digests, SQLite's own check, the ledger's chain, the schema. Needs no loopd.

    Exits 0 when it is good, 1 when it is not, 4 when there is none of that name.
    """
    import tempfile  # noqa: PLC0415 takes longer than --help may

    from loopd.backup import verify_backup  # noqa: PLC0415 as above

    screen = open_screen()
    path = _find(reference)
    with tempfile.TemporaryDirectory(prefix="loopbox-verify-") as into:
        view = verified(path, verify_backup(path, Path(into)))
    if json:
        screen.json(view)
    else:
        screen.line(f"{path} is good", "good")
        screen.show([portrait(view)])


@app.command()
def restore(
    reference: Reference = "",
    *,
    settings: Annotated[bool, typer.Option("--settings", help="Put its settings over different ones, too.")] = False,
    json: Json = False,
) -> None:
    """Put a backup in the place of the state. loopd must be stopped; containers may serve on.

    The backup is verified first. The state before is kept under a dated name, which this command says.
    """
    from loopd.config import config_path  # noqa: PLC0415 takes longer than --help may
    from loopd.restore import restore_backup  # noqa: PLC0415 as above
    from loopd.units import layout_of  # noqa: PLC0415 as above

    screen = open_screen()
    path = _find(reference)
    told = restore_backup(path, layout_of(read_settings()), config_path(), replace_settings=settings)
    if json:
        screen.json(restored(path, told))
    else:
        _tell(screen, path, told)


def _create() -> BackupView:
    """Ask loopd; where it does not run, make one here under its lock."""
    try:
        with open_client() as client:
            return client.backup()
    except UnreachableError as error:
        from loopd.api.backups import backup_view  # noqa: PLC0415 takes longer than --help may
        from loopd.backups import open_shelf  # noqa: PLC0415 as above
        from loopd.config import ConfigError  # noqa: PLC0415 as above
        from loopd.lock import sole_owner  # noqa: PLC0415 as above
        from loopd.units import layout_of  # noqa: PLC0415 as above

        settings = read_settings()
        if not os.access(layout_of(settings).state, os.R_OK):
            raise
        try:
            with sole_owner(layout_of(settings)):
                return backup_view(*open_shelf(settings).make("command"))
        except (ConfigError, OSError):
            raise error from None  # it runs and does not answer, or this user may not do its work


def _list() -> BackupList:
    try:
        with open_client() as client:
            return client.backups()
    except UnreachableError:
        from loopd.api.backups import list_views  # noqa: PLC0415 takes longer than --help may
        from loopd.backups import open_shelf  # noqa: PLC0415 as above

        return list_views(open_shelf(read_settings()))


def _find(reference: str) -> Path:
    from loopd.backup import BackupMissingError  # noqa: PLC0415 takes longer than --help may
    from loopd.backups import open_shelf  # noqa: PLC0415 as above

    shelf = open_shelf(read_settings())
    if reference:
        return shelf.find(reference)
    if not (stored := shelf.stored()):
        raise BackupMissingError(f"there is no backup in {shelf.folder}; `loopctl backup create` makes one")
    return stored[0].path


def verified(path: Path, manifest: Manifest) -> VerifiedView:
    """Return a good backup as the JSON has it."""
    told = manifest.model_dump(include=set(VerifiedView.model_fields))
    return VerifiedView.model_validate({"path": str(path), **told})


def restored(path: Path, told: Restored) -> RestoredView:
    """Return a restore as the JSON has it."""
    return RestoredView(
        backup=verified(path, told.manifest),
        kept_aside=str(told.aside) if told.aside else None,
        put=list(told.put),
        left=list(told.left),
        token=told.token,
        missing=[MissingView.model_validate(one, from_attributes=True) for one in told.missing],
    )


def sheet(views: list[BackupView], now: datetime) -> Sheet:
    """Return the table of backups."""
    rows = [
        (
            Cell(view.name, "bad" if view.problem else ""),
            Cell(ago(view.created_at, now)),
            Cell(view.reason),
            Cell(size(view.size_bytes)),
            Cell("-" if view.ledger_length is None else str(view.ledger_length)),
            Cell("-" if view.releases is None else str(view.releases)),
            Cell(view.problem or f"loopd {view.version}, schema {view.state_schema}"),
        )
        for view in views
    ]
    return Sheet(("BACKUP", "MADE", "WHY", "SIZE", "LEDGER", "RELEASES", "BY"), tuple(rows))


def portrait(view: VerifiedView) -> Sheet:
    """Return a good backup, a line for each property."""
    facts = {
        "made": clock(view.created_at),
        "by": f"loopd {view.version}, schema {view.state_schema}",
        "ledger": f"{count(view.ledger_length, 'entry', 'entries')}, head {view.ledger_head[:12]}",
        "releases": str(view.releases),
        "champion": view.champion[:12] if view.champion else "none",
    }
    return Sheet(("BACKUP", Path(view.path).name), tuple((Cell(key), Cell(value)) for key, value in facts.items()))


def _tell(screen: Screen, path: Path, told: Restored) -> None:
    screen.line(f"the state is that of {path.name}, made {clock(told.manifest.created_at)}", "good")
    if told.aside:
        screen.line(f"the state before is {told.aside}; remove it when all is well")
    for name in told.put:
        screen.line(f"{name} was put in place")
    for name in told.left:
        screen.line(f"{name} differs from the backup's and was left as it is", "busy")
    if not told.token:
        screen.line("there is no control.token, which no backup holds: loopd makes a new one when it starts")
    for one in told.missing[:MOST_MISSING]:
        role = "the champion" if one.champion else "release"
        screen.line(f"{role} {one.name} ({one.release}): its file sha256:{one.sha256} is not on this host", "bad")
    if len(told.missing) > MOST_MISSING:
        screen.line(f"and {len(told.missing) - MOST_MISSING} more; --json lists them all", "bad")
    if told.missing:
        screen.line("drop those files into models/incoming once loopd runs: same file and sidecar, same release")
    screen.line("now start loopd: `make up`")
