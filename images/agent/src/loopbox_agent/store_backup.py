"""store_backup: owns backups: made beside running work, verified, rotated; and putting one back.

SQLite: a compact copy of the file (VACUUM INTO), one snapshot that holds up no writer. PostgreSQL: a dump (store_dump).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import structlog

from loopbox_agent.database import Database
from loopbox_agent.database_errors import DatabaseError, explained
from loopbox_agent.errors import AgentError
from loopbox_agent.records import CLOCK, Clock
from loopbox_agent.schema_version import VERSION
from loopbox_agent.sqlite_database import SqliteDatabase, sole_owner
from loopbox_agent.store_dump import DumpError, dump, publish

log = structlog.get_logger("agent.backup")

KEEP = 7
_NAME = re.compile(r"agent-(\d{8}T\d{6}\.\d{6}Z)\.(db|jsonl\.gz)")


class BackupError(AgentError):
    """A backup could not be made; older ones were kept, and the agent goes on."""

    code: ClassVar[str] = "backup_failed"
    status: ClassVar[int] = 500


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup."""

    path: Path
    made_at: datetime
    size: int  #: bytes


async def back_up(database: Database, folder: Path, *, keep: int = KEEP, clock: Clock = CLOCK) -> Backup:
    """Make a verified backup, then delete the oldest beyond `keep`. Raises BackupError."""
    made_at = datetime.fromtimestamp(clock(), UTC)
    kind = "db" if isinstance(database.side, SqliteDatabase) else "jsonl.gz"
    path = folder / f"agent-{made_at:%Y%m%dT%H%M%S.%fZ}.{kind}"
    try:
        if isinstance(database.side, SqliteDatabase):
            await asyncio.to_thread(_copy_sqlite, database.side.path, path)
        else:
            await dump(database, path)
        size = path.stat().st_size
        await asyncio.to_thread(_remove, to_remove(list_backups(folder), keep))
    except (OSError, sqlite3.Error, DatabaseError) as error:
        raise BackupError(
            f"The backup {path.name} could not be made ({explained(error, str(folder))}). Older ones were kept and "
            "the agent goes on. See that the folder is writable and the disk has room."
        ) from error
    log.info("backup.made", name=path.name, bytes=size)
    return Backup(path, made_at, size)


async def keep_backing_up(database: Database, folder: Path, *, every_s: float, keep: int = KEEP) -> None:
    """Make a backup whenever the newest is older than every_s, for ever; a failure is logged and tried again."""
    while True:
        newest = next(iter(list_backups(folder)), None)
        age = every_s if newest is None else (datetime.now(UTC) - newest.made_at).total_seconds()
        if age < every_s:
            await asyncio.sleep(every_s - age)
            continue
        try:
            await back_up(database, folder, keep=keep)
        except AgentError as error:
            log.error("backup.failed", why=str(error))  # noqa: TRY400 the text says it; no traceback
            await asyncio.sleep(min(every_s, 300.0))


def list_backups(folder: Path) -> list[Backup]:
    """Return a folder's backups, newest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            made_at = datetime.strptime(match[1], "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
            with contextlib.suppress(FileNotFoundError):
                found.append(Backup(path, made_at, path.stat().st_size))
    return sorted(found, key=lambda one: one.made_at, reverse=True)


def to_remove(newest_first: Iterable[Backup], keep: int) -> list[Backup]:
    """Return the backups that are too many; one always stays."""
    return list(newest_first)[max(1, keep) :]


def check_sqlite_backup(path: Path) -> None:
    """Read a copy through. Blocks. Raises DumpError."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as copy:
            fault = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
            stray = copy.execute("PRAGMA foreign_key_check").fetchone()
            version = copy.execute("SELECT version FROM schema_version").fetchone()[0]
    except (sqlite3.Error, TypeError) as error:
        raise DumpError(f"{path} is no backup of the agent's; nothing was changed. Take another one.") from error
    if fault != "ok" or stray is not None:
        raise DumpError(f"{path} is damaged; nothing was changed. Take another one.")
    if version > VERSION:
        raise DumpError(
            f"{path} has schema {version}, this agent knows {VERSION}; nothing was changed. Use the agent that made it."
        )


async def restore_sqlite(backup: Path, path: Path) -> Path | None:
    """Put a verified copy in the place of the agent's file while no agent runs; return where the old file went.

    Raises DumpError, DatabaseLockedError while an agent has the file open.
    """
    async with sole_owner(path, wait_s=0.0):
        return await asyncio.to_thread(_restore_sqlite, backup, path)


def _copy_sqlite(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    try:
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)  # VACUUM INTO takes an empty file
        with contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("PRAGMA busy_timeout = 5000")
            connection.execute("VACUUM INTO ?", (str(draft),))
        check_sqlite_backup(draft)
        publish(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _restore_sqlite(backup: Path, path: Path) -> Path | None:
    draft = path.with_name(f".{path.name}.new")
    try:
        shutil.copyfile(backup, draft)
        draft.chmod(0o600)
        check_sqlite_backup(draft)  # the copy, so that what was checked is what is used
        aside = _set_aside(path)
        publish(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return aside


def _set_aside(path: Path) -> Path | None:
    if not path.exists():
        return None
    aside = path.with_name(f"{path.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    # What is in the log only goes into the file first, so that a crash in between leaves a whole one; a damaged file
    # cannot take it, and keeps its log beside it.
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    aside.hardlink_to(path)
    for ending in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + ending).replace(aside.with_name(aside.name + ending))
    return aside


def _remove(backups: Iterable[Backup]) -> None:
    for one in backups:
        one.path.unlink(missing_ok=True)
