"""backups: owns the folder of backups: their names, which are kept, and which one can replace a lost state.

Nothing half done is ever under a backup's name, and what a killed loopd left behind goes with the next backup.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import structlog

from loopd.backup import (
    BackupError,
    BackupFullError,
    Manifest,
    Reason,
    Sources,
    copy_state,
    verify_backup,
    write_backup,
)
from loopd.config import Settings, config_path
from loopd.errors import ConflictError
from loopd.images import FILE as IMAGES_FILE
from loopd.units import layout_of

FOLDER = "backups"
DRAFT = ".draft"
SCRATCH = ".verify-"  # only who holds the home's lock unpacks here, so what is found was left behind
MOST_LISTED = 3000  # three reasons, a thousand of each at most
_STAMP = "%Y%m%dT%H%M%S%fZ"
_NAME = re.compile(r"^loopbox-(\d{8}T\d{12}Z)-(scheduled|command|upgrade)\.tar$")

log = structlog.get_logger("loopd.backups")


class BackupBusyError(ConflictError):
    """A backup is being made already; it will do for this request, too."""

    code = "backup_busy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One backup in the folder, known by its name alone."""

    path: Path
    at: datetime
    reason: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """The folder of backups of one home. Every call blocks. It is a Rescue for state.db."""

    folder: Path
    sources: Sources
    keep: int  #: newest of each reason
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def stored(self) -> list[Stored]:
        """Return the backups, newest first; those from a clock that ran ahead come last. Raises BackupError."""
        try:
            found = [stored for path in self.folder.iterdir() if (stored := parse_name(path)) is not None]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise BackupError(f"{self.folder} cannot be read: {error.strerror}") from error
        return sort_newest(found, datetime.now(UTC))[:MOST_LISTED]

    def make(self, reason: Reason) -> tuple[Stored, Manifest]:
        """Make a backup, then remove what is beyond ``keep``. Raises BackupError, BackupBusyError."""
        if not self._busy.acquire(blocking=False):
            raise BackupBusyError("a backup is being made at this moment; nothing was begun. Ask again in some seconds")
        draft = self.folder / DRAFT
        try:
            self._prepare(draft)
            at = datetime.now(UTC)
            path = self.folder / f"loopbox-{at.strftime(_STAMP)}-{reason}.tar"
            manifest = write_backup(self.sources, path, draft, reason=reason, at=at)
            self._rotate(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            self._busy.release()
        return Stored(path=path, at=at, reason=reason), manifest

    def find(self, reference: str) -> Path:
        """Return the backup of this name, or at this path when it has a slash."""
        return Path(reference).absolute() if "/" in reference else self.folder / reference

    def newest_good(self) -> tuple[Stored, Manifest] | None:
        """Return the newest backup that passes every check and that this loopd can read, None for none."""
        for stored in self.stored():
            try:
                return stored, self._verify(stored.path)
            except BackupError as error:
                log.warning("backup.not_good", backup=stored.name, error=str(error))
        return None

    def save(self, schema: int) -> None:
        """Make a backup before the schema changes, unless the newest one holds this very state."""
        newest = next(iter(self.stored()), None)
        if newest is None or not self._holds(newest, schema):
            self.make("upgrade")

    def advice(self) -> str:
        """Say which backup can be put in the place of a state that cannot be used, and how."""
        stored = self.stored()
        if not stored:
            return ""
        if (good := self.newest_good()) is None:
            return f"None of the {len(stored)} backups in {self.folder} was found good for this loopd"
        newest, manifest = good
        return (
            f"The newest good backup is {newest.name}, with {manifest.ledger_length} ledger entries and "
            f"{manifest.releases} releases. Put it back: `loopctl backup restore {newest.name}`; then start loopd again"
        )

    def _holds(self, stored: Stored, schema: int) -> bool:
        """Tell whether a good backup is of the present state: a start that fails again and again pushes none out."""
        with contextlib.suppress(BackupError, OSError, sqlite3.Error):
            there = self._verify(stored.path)
            with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=self.folder) as scratch:
                copy = Path(scratch, "now.db")
                copy_state(self.sources.state, copy)
                with copy.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            return there.state_schema == schema and digest == there.members[0].sha256
        return False

    def _verify(self, path: Path) -> Manifest:
        """Verify a backup wherever it can be unpacked: the disk may be full, or the system's own place read-only."""
        try:
            with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=self.folder) as into:
                return verify_backup(path, Path(into))
        except (BackupFullError, OSError):
            try:
                with tempfile.TemporaryDirectory(prefix="loopbox-verify-") as into:
                    return verify_backup(path, Path(into))
            except OSError as error:
                raise BackupError(f"{path} cannot be unpacked anywhere: {error}") from error

    def _prepare(self, draft: Path) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            for left in (draft, *self.folder.glob(f"{SCRATCH}*")):
                shutil.rmtree(left, ignore_errors=True)
            draft.mkdir(mode=0o700)
        except OSError as error:
            raise BackupError(f"{draft} cannot be made: {error.strerror}. Check the folder's owner and mode") from error

    def _rotate(self, made: Path) -> None:
        for reason in ("scheduled", "command", "upgrade"):
            of_reason = [stored for stored in self.stored() if stored.reason == reason]
            for stored in of_reason[self.keep :]:
                if stored.path != made:
                    stored.path.unlink(missing_ok=True)


def open_shelf(settings: Settings) -> Shelf:
    """Return the folder of backups the settings ask for."""
    layout = layout_of(settings)
    return Shelf(
        folder=layout.home / FOLDER,
        sources=Sources(
            state=layout.state, settings=config_path(), images=layout.home / IMAGES_FILE, audit=layout.audit
        ),
        keep=settings.backup.keep,
    )


def parse_name(path: Path) -> Stored | None:
    """Return what a file's name says, None for a file that is no backup."""
    match = _NAME.match(path.name)
    if match is None:
        return None
    try:
        at = datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None
    return Stored(path=path, at=at, reason=match[2])


def sort_newest(found: Sequence[Stored], now: datetime) -> list[Stored]:
    """Return backups newest first. Those of the future are of a clock that was wrong, so they are worth least."""
    return sorted(found, key=lambda stored: (stored.at <= now, stored.at), reverse=True)
