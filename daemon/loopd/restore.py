"""restore: owns putting a backup in the place of a home's state, so that a kill at any moment loses neither."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from loopd.audit import goes_on
from loopd.backup import AUDIT, STATE, BackupError, Manifest, verify_backup
from loopd.config import ConfigError
from loopd.errors import ConflictError
from loopd.images import FILE as IMAGES_FILE
from loopd.ledger import Ledger
from loopd.lock import sole_owner
from loopd.registry import Registry
from loopd.release import SHORT
from loopd.state import open_database, sync_folder
from loopd.units import Layout

DRAFT = ".restore"
SETTINGS = "loopbox.toml"


class LoopdRunsError(ConflictError):
    """The state belongs to a loopd that runs; nothing was changed."""

    code = "loopd_runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Weights, or an adapter, that the registry names and this host does not have."""

    release: str  #: short id
    name: str
    sha256: str
    size_bytes: int
    champion: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore did."""

    manifest: Manifest
    aside: Path | None  #: where the state before is now; None: there was none
    put: tuple[str, ...]  #: files put in place beside state.db
    left: tuple[str, ...]  #: files that differ from the backup's and were left as they are
    missing: tuple[Missing, ...]
    token: bool  #: whether there is a token; if not, loopd makes one


def restore_backup(backup: Path, layout: Layout, settings: Path, *, replace_settings: bool = False) -> Restored:
    """Verify a backup and put its state in place; the state before is kept under a dated name. Blocks.

    Settings and images' names are put where there are none; the settings also over others when asked to, which are then
    kept, too. The audit trail is put in place, with the one before kept, unless that one goes on from it.
    Raises LoopdRunsError, BackupError, StateError; then nothing was changed.
    """
    with _stopped(layout), _drafted(layout.home / DRAFT) as draft:
        manifest = verify_backup(backup, draft)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        # Through the same door as loopd: a state that this loopd could not migrate is found out here.
        missing = asyncio.run(_adopt(draft / STATE, layout, backup.name, manifest))
        put, left = _put_rest(draft, layout, settings, stamp, replace_settings=replace_settings)
        if _put_trail(draft / AUDIT, layout.audit, stamp):
            put = (*put, str(layout.audit))
        aside = _swap(draft / STATE, layout.state, stamp)  # last: whatever fails before leaves the state as it was
        return Restored(
            manifest=manifest, aside=aside, put=put, left=left, missing=missing, token=layout.token.exists()
        )


@contextlib.contextmanager
def _stopped(layout: Layout) -> Iterator[None]:
    """Hold the home as a loopd would. Raises LoopdRunsError."""
    try:
        layout.home.mkdir(mode=0o755, parents=True, exist_ok=True)
        with sole_owner(layout):
            yield
    except ConfigError as error:
        raise LoopdRunsError(
            f"a loopd runs on {layout.home}, and its state cannot be replaced under it. Nothing was changed; stop it "
            "(`systemctl stop loopd`, or end its process: containers serve on), then try again"
        ) from error
    except OSError as error:
        raise BackupError(f"{error.filename or layout.home}: {error.strerror}. The state is as it was") from error


@contextlib.contextmanager
def _drafted(draft: Path) -> Iterator[Path]:
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


async def _adopt(state: Path, layout: Layout, name: str, manifest: Manifest) -> tuple[Missing, ...]:
    """Bring the copy to this loopd's schema, write down where it came from, and tell what it lacks here."""
    async with open_database(state) as database:
        await Ledger(database).append(
            "state.restored",
            name,
            f"the state of {manifest.created_at:%Y-%m-%d %H:%M:%SZ} was put back by `loopctl backup restore`",
            ledger_length=manifest.ledger_length,
            version=manifest.version,
        )
        registry = Registry(database)
        champion = (await registry.serving()).champion
        return tuple(
            Missing(
                release=listed.release.id[:SHORT],
                name=listed.release.name,
                sha256=sha256,
                size_bytes=size,
                champion=listed.release.id == champion,
            )
            for listed in await registry.kept()
            for sha256, size in listed.release.blobs
            if not _has(layout.blob(sha256), size)
        )


def _has(blob: Path, size: int) -> bool:
    try:
        return blob.stat().st_size == size
    except OSError:
        return False


def _swap(draft: Path, state: Path, stamp: str) -> Path | None:
    """Put the new state in place; return where the old one is.

    The old one gets its second name first, its log is folded into it or goes with it, and only then the new one takes
    the name: whenever this ends, there is a whole state under the name or under the dated one. A log must never lie
    beside a file that it does not belong to.
    """
    aside = None
    if state.exists():
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(state)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        aside = state.with_name(f"{state.name}.before-{stamp}")
        aside.hardlink_to(state)
    for suffix in ("-wal", "-shm"):
        log = state.with_name(state.name + suffix)
        if aside is not None and suffix == "-wal" and log.exists():
            aside.with_name(aside.name + suffix).hardlink_to(log)
        log.unlink(missing_ok=True)
    draft.replace(state)
    sync_folder(state.parent)
    return aside


def _put_trail(draft: Path, trail: Path, stamp: str) -> bool:
    """Put the backup's audit trail in place, where the ledger's hashes would not be found in what is there."""
    if not draft.exists() or (trail.exists() and goes_on(trail, draft)):
        return False
    _swap(draft, trail, stamp)
    return True


def _put_rest(
    draft: Path, layout: Layout, settings: Path, stamp: str, *, replace_settings: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    put, left = [], []
    for name, target in ((SETTINGS, settings), (IMAGES_FILE, layout.home / IMAGES_FILE)):
        source = draft / name
        if not source.exists() or (target.exists() and target.read_bytes() == source.read_bytes()):
            continue
        if target.exists() and not (replace_settings and name == SETTINGS):
            left.append(str(target))
            continue
        if target.exists():
            target.with_name(f"{target.name}.before-{stamp}").hardlink_to(target)
        copy = target.with_name(f".{target.name}.restored")  # the settings may be on another file system than the home
        shutil.copyfile(source, copy)
        copy.replace(target)
        put.append(str(target))
    return tuple(put), tuple(left)
