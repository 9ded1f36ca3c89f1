"""state: owns state.db, its connection, its transactions and its numbered migrations.

SQLite in WAL mode with full synchronisation: what a transaction wrote survives a kill and a power cut. One
connection, one writer at a time. What the rows mean belongs to the noun that keeps them (ledger, registry, …).
A file that cannot be used is refused and left as it is, byte for byte: it is looked at read-only before anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Protocol

import aiosqlite

from loopd.errors import LoopdError

TROUBLE_S = 2.0  # between two tries whether the disk takes changes again

Value = str | int | float | bytes | None

_MIGRATION_NAME = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")


class StateError(LoopdError):
    """state.db cannot be used; nothing was changed. The text says what to do."""

    code = "state_unusable"
    status = 503


class StateWriteError(StateError, sqlite3.OperationalError):
    """A change could not be written down, so it was not made; what serves goes on serving."""

    code = "state_unwritable"


class StateFullError(StateWriteError):
    """The same, because the disk is full."""

    code = "state_full"
    status = 507


class Rescue(Protocol):
    """What stands behind state.db when it fails. Both calls block."""

    def save(self, schema: int) -> None:
        """Keep a copy of the state, which is about to leave this schema. Raises LoopdError when it cannot."""
        ...

    def advice(self) -> str:
        """Return which copy can be put in the place of a state that cannot be used, and how; '' for none."""
        ...


class NoRescue:
    """Nothing stands behind it."""

    def save(self, schema: int) -> None:
        """Keep nothing."""

    def advice(self) -> str:
        """Know nothing."""
        return ""


class Database:
    """One open state.db."""

    def __init__(self, connection: aiosqlite.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._lock = asyncio.Lock()
        self._holder: asyncio.Task[object] | None = None
        self.trouble = ""  #: why the last change could not be written, '' when it was

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Everything executed inside is written at once, or not at all. May be nested in one task.

        Raises StateFullError, StateWriteError; then nothing was written.
        """
        if self._holder is asyncio.current_task():
            yield
            return
        async with self._lock:
            self._holder = asyncio.current_task()
            try:
                with self._explained():
                    # Shielded, since what is sent to the connection's thread is done whether or not we are cancelled;
                    # calls are done in order, so a roll-back sent after a BEGIN, or after a COMMIT that a full disk
                    # refused, undoes it, and one after a COMMIT that worked does nothing.
                    try:
                        await asyncio.shield(self._connection.execute("BEGIN IMMEDIATE"))
                        yield
                        await asyncio.shield(self._connection.commit())
                    except BaseException:
                        with contextlib.suppress(sqlite3.Error):
                            await asyncio.shield(self._connection.rollback())
                        raise
                self.trouble = ""
            except StateWriteError as error:
                self.trouble = str(error)
                raise
            finally:
                self._holder = None

    async def execute(self, sql: str, values: Sequence[Value] = ()) -> int:
        """Run one statement in a transaction; return the row id it inserted, 0 for none."""
        async with self.transaction():
            cursor = await self._connection.execute(sql, values)
            return cursor.lastrowid or 0

    async def watch_trouble(self) -> None:
        """While changes cannot be written, try one that changes nothing: trouble that is over must not be told of."""
        while True:
            await asyncio.sleep(TROUBLE_S)
            if self.trouble:
                with contextlib.suppress(StateWriteError):
                    await self.execute("UPDATE serving SET epoch = epoch")

    async def fetch_all(self, sql: str, values: Sequence[Value] = ()) -> list[sqlite3.Row]:
        """Return all rows."""
        with self._explained():
            return list(await self._connection.execute_fetchall(sql, values))

    async def fetch_one(self, sql: str, values: Sequence[Value] = ()) -> sqlite3.Row | None:
        """Return the first row or None."""
        rows = await self.fetch_all(sql, values)
        return rows[0] if rows else None

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say of an error of the disk what it means; errors of the caller's own statements pass as they are."""
        try:
            yield
        except StateError:
            raise
        except sqlite3.OperationalError as error:
            kept = "nothing was changed, what serves goes on serving"
            if _is_full(error):
                raise StateFullError(
                    f"the disk of {self._path} is full, so it cannot be written down; {kept}. "
                    "Free some space (`df -h`, `loopctl releases gc`), then ask again"
                ) from error
            raise StateWriteError(
                f"{self._path} cannot be written or read ({error}); {kept}. `loopctl doctor` looks why"
            ) from error


@contextlib.asynccontextmanager
async def open_database(path: Path, rescue: Rescue | None = None) -> AsyncIterator[Database]:
    """Open, check and migrate state.db; made if absent and nothing shows that there was one.

    Raises StateError when the file is damaged, unwritable, gone, or of a newer loopd.
    """
    rescue = rescue or NoRescue()
    with _refusing(path, rescue):
        if not path.exists() and not path.is_symlink():
            if rescue.advice():
                raise StateError(f"{path} is gone, but there are backups of it; to begin anew, move them away")
            await asyncio.to_thread(_create, path)
        schema = await asyncio.to_thread(check_file, path)
        connection = await aiosqlite.connect(path, isolation_level=None)
    try:
        with _refusing(path, rescue):
            connection.row_factory = sqlite3.Row
            await connection.execute("PRAGMA journal_mode = WAL")
            await connection.execute("PRAGMA synchronous = FULL")
            await connection.execute("PRAGMA foreign_keys = ON")
            await connection.execute("PRAGMA busy_timeout = 5000")
            if missing := [(number, sql) for number, sql in migrations() if number > schema]:
                await asyncio.to_thread(rescue.save, schema)
                # One transaction over all of them: whichever fails, the file keeps the schema it had.
                await connection.executescript(_script(missing))
        yield Database(connection, path)
    finally:
        await connection.close()


def check_file(path: Path) -> int:
    """Return the schema of a state.db after looking, read-only, whether it is whole and ours to use. Blocks.

    Raises StateError, or sqlite3.Error for a file that is no database.
    """
    if path.stat().st_size == 0:
        raise StateError(f"{path} is empty, which loopd never leaves behind")
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        page = int(connection.execute("PRAGMA page_size").fetchone()[0])
        # SQLite reads the missing end of a page as zeros. Beside a log the file may be behind, and is mended from it.
        if path.stat().st_size % page and not _log_of(path):
            raise StateError(f"{path} is damaged (its last page is cut off)")
        fault = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if fault != "ok":
            raise StateError(f"{path} is damaged ({fault})")
        schema = int(connection.execute("PRAGMA user_version").fetchone()[0])
    newest = newest_schema()
    if schema > newest:
        raise StateError(
            f"{path} has schema {schema}, this loopd knows {newest}: it is older than the state. "
            "Start the newer loopd again, or restore a backup that this one made"
        )
    if schema == 0:
        raise StateError(f"{path} is a database, but not loopd's")
    return schema


def _log_of(path: Path) -> int:
    """Return the bytes in the write-ahead log beside a database."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size
    except FileNotFoundError:
        return 0


def migrations() -> list[tuple[int, str]]:
    """Return (number, SQL) of each migration, in order; numbers run from 1 without a gap."""
    entries = resources.files("loopd").joinpath("migrations").iterdir()
    return sorted(
        (int(match[1]), entry.read_text()) for entry in entries if (match := _MIGRATION_NAME.match(entry.name))
    )


def newest_schema() -> int:
    """Return the schema that this loopd works with."""
    return migrations()[-1][0]


def now() -> str:
    """Return the time as state.db keeps it: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _refusing(path: Path, rescue: Rescue) -> Iterator[None]:
    """Turn whatever goes wrong while opening into a StateError that says what was left and what helps."""
    try:
        yield
    except LoopdError as error:
        raise StateError(f"{error}. {_outlook(rescue)}") from error
    except (sqlite3.Error, OSError) as error:
        full = isinstance(error, sqlite3.OperationalError) and _is_full(error)
        why = f"{error}: the disk is full" if full else str(error)
        raise StateError(
            f"{path} cannot be used: {why}. Check the directory's owner, mode and free space. {_outlook(rescue)}"
        ) from error


def _outlook(rescue: Rescue) -> str:
    left = "It was left as it is; containers that serve go on serving"
    advice = rescue.advice()
    return f"{left}. {advice}" if advice else f"{left}. There is no backup of it"


def _create(path: Path) -> None:
    """Make a new state.db that appears under its name only when it is whole, so that an empty one is a damaged one."""
    draft = path.with_name(f".{path.name}.new")
    for name in (draft.name, f"{draft.name}-wal", f"{draft.name}-shm", f"{draft.name}-journal"):
        draft.with_name(name).unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_script(migrations()))
            connection.execute("PRAGMA journal_mode = WAL")
        draft.replace(path)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _script(steps: Sequence[tuple[int, str]]) -> str:
    body = "\n".join(sql for _, sql in steps)
    return f"BEGIN IMMEDIATE;\n{body}\nPRAGMA user_version = {steps[-1][0]};\nCOMMIT;"


def _is_full(error: sqlite3.OperationalError) -> bool:
    # A file that cannot grow is SQLITE_FULL; the shared memory beside it that cannot, an error of its size.
    return getattr(error, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")
