"""add: owns `loopctl releases add` and `sign`: putting a model file where loopd takes it in, and signing one elsewhere.

The bytes are copied under a name that loopd passes over, and get their own when all are there; the model's own last.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import secrets
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loopd.api.schema import EventView, ReleaseView
from loopd.cli.exits import ExitCode, MissingError
from loopd.cli.follow import find_newest, follow
from loopd.cli.screen import Cell, Screen, open_screen
from loopd.cli.session import open_client, read_settings
from loopd.cli.words import size
from loopd.errors import ConflictError, LoopdError

if TYPE_CHECKING:
    from loopd.cli.client import Client
    from loopd.sidecar import Drop

CHUNK = 4 << 20
FICLONE = 0x40049409  # linux/fs.h: shares the extents, where the file system can
TICK_S = 0.5
PATIENCE_S = 300.0  # of a loopd that does not answer
MIB = 1 << 20

Say = Callable[[str, int, int], None]  #: file, bytes done, bytes in all
Model = Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file.", exists=True, dir_okay=False)]


class DropError(LoopdError):
    """The file could not be put into models/incoming; nothing was changed there."""

    code = "not_added"


def add(
    file: Model,
    *,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is a release, or was refused.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Take a model file in, with the sidecar, signature and adapters beside it; the file itself stays."""
    from loopd.units import layout_of  # noqa: PLC0415 - together with the settings it takes longer than --help may

    screen = open_screen()
    incoming = layout_of(read_settings()).incoming
    plan = plan_copies(file.absolute())
    if not wait:
        _copy(plan, incoming, screen)
        screen.remark(f"`loopctl why {file.name}` says what became of it")
        return
    with open_client() as client:
        newest = find_newest(client)
        _copy(plan, incoming, screen)
        try:
            view = _outcome(client, newest, file.name, screen)
        except KeyboardInterrupt:
            screen.remark(f"it goes on without being watched; `loopctl why {file.name}` says what became of it")
            raise
    if view is None:
        raise typer.Exit(ExitCode.FAILED)
    if json:
        screen.json(view)
    else:
        screen.line(f"{file.name} is release {view.short}; `loopctl rollouts watch` shows its rollout", "good")


def sign(
    file: Model,
    *,
    key: Annotated[
        Path, typer.Option("--key", metavar="PEM", help="An Ed25519 private key.", exists=True, dir_okay=False)
    ],
) -> None:
    """Sign a model file together with its sidecar: writes FILE.sig beside it and shows the public key."""
    import hashlib  # noqa: PLC0415 - as in add()

    from loopd.sidecar import SIGNATURE_SUFFIX, read_small  # noqa: PLC0415 - as in add()
    from loopd.signature import sign as sign_digest  # noqa: PLC0415 - as in add()

    screen = open_screen()
    drop = _drop(file.absolute())
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    signature, public = sign_digest(key, sha256, read_small(drop.sidecar) if drop.sidecar else None)
    target = file.with_name(file.name + SIGNATURE_SUFFIX)
    target.write_bytes(signature)
    screen.line(f"{target.name} signs {file.name}{f' and {drop.sidecar.name}' if drop.sidecar else ''}")
    screen.line(f'registry.public_key = "{public}"')


def plan_copies(model: Path) -> list[tuple[Path, str]]:
    """Return (source, name in models/incoming), in the order in which the names must appear. Raises GgufError."""
    from loopd.sidecar import PLAIN, parse_sidecar, read_small  # noqa: PLC0415 - as in add()

    drop = _drop(model)
    found: list[tuple[Path, str]] = []
    if drop.sidecar is not None:
        sidecar = parse_sidecar(drop.sidecar.name, read_small(drop.sidecar), model=model.name)
        for one in sidecar.adapters:
            adapter = model.with_name(one.file)
            if not adapter.is_file():
                raise MissingError(f"{adapter} is named by {drop.sidecar.name} and is not there; nothing was changed")
            signature = adapter.with_name(f"{adapter.name}.sig")
            found += [(path, path.name) for path in (signature, adapter) if path.is_file()]
        # A plain Modelfile would be taken for another model's there.
        name = f"{model.stem}.{PLAIN}" if drop.sidecar.name == PLAIN else drop.sidecar.name
        found.append((drop.sidecar, name))
    if drop.signature is not None:
        found.append((drop.signature, drop.signature.name))
    return [*found, (model, model.name)]


def _drop(model: Path) -> Drop:
    from loopd.sidecar import find_drop  # noqa: PLC0415 - as in add()

    return find_drop(model, {path.name for path in model.parent.iterdir()})


def _copy(plan: list[tuple[Path, str]], incoming: Path, screen: Screen) -> None:
    if not screen.fancy:
        place(plan, incoming, lambda *_: None)
        return
    shown = Cell("")
    begun = time.monotonic()

    def say(name: str, done: int, whole: int) -> None:
        nonlocal shown
        speed = done / max(time.monotonic() - begun, 1e-3)
        bar = "█" * (20 * done // max(whole, 1))
        shown = Cell(f"{name}  {bar:<20}  {size(done)} of {size(whole)}, {size(int(speed))}/s", "busy")

    with screen.live(lambda: [shown]):
        place(plan, incoming, say)


def place(plan: list[tuple[Path, str]], incoming: Path, say: Say) -> None:
    """Copy files whole, then give them their names. Raises ConflictError, DropError; then nothing is left there."""
    mark = secrets.token_hex(4)
    temporary: list[tuple[Path, Path]] = []
    try:
        for source, name in plan:
            final = incoming / name
            if os.path.lexists(final):
                raise ConflictError(f"{name} is in models/incoming already, being looked at; nothing was changed")
            temporary.append((incoming / f".{mark}-{name}"[:255], final))
            _copy_one(source, temporary[-1][0], functools.partial(say, name))
        named: list[Path] = []
        try:
            for copied, final in temporary:
                os.link(copied, final)  # unlike a rename it never takes another file's place
                named.append(final)
                copied.unlink()
        except OSError:
            for final in named:
                final.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DropError(
            f"{plan[-1][1]} could not be put into {incoming}: {error.strerror or error}. Nothing was changed there; "
            f"{'free some disk' if error.errno == errno.ENOSPC else 'run this as the user loopd runs as (sudo)'}"
        ) from error
    finally:
        for copied, _ in temporary:
            with contextlib.suppress(OSError):
                copied.unlink(missing_ok=True)


def _copy_one(source: Path, target: Path, say: Callable[[int, int], None]) -> None:
    with source.open("rb") as opened, target.open("xb") as out:
        whole = os.fstat(opened.fileno()).st_size
        try:
            fcntl.ioctl(out.fileno(), FICLONE, opened.fileno())
        except OSError:
            done = 0
            while chunk := opened.read(CHUNK):
                out.write(chunk)
                done += len(chunk)
                say(done, whole)
        out.flush()
        os.fsync(out.fileno())
        say(whole, whole)


def _outcome(client: Client, newest: int, name: str, screen: Screen) -> ReleaseView | None:
    """Follow the ledger until the file is a release, or None when it was refused."""
    with closing(follow(client, newest, tick_s=TICK_S, say=screen.remark, patience_s=PATIENCE_S)) as entries:
        for entry in entries:
            if entry is None:
                continue
            if entry.event == "candidate.rejected" and entry.subject == name:
                screen.remark(f"{name} was refused: {entry.cause} [{entry.detail.get('code')}]")
                return None
            if entry.event == "candidate.waits" and entry.subject == name:
                screen.remark(f"{name} waits: {entry.cause}")
            if became(entry, name):
                return client.release(entry.subject)
    raise AssertionError("follow() ends by an error only")


def became(entry: EventView, name: str) -> bool:
    """Tell whether an entry says that a file is a release now."""
    return entry.event in ("release.added", "release.known") and entry.detail.get("file") == name
