"""state: owns state.db, its connection, its transactions and its numbered migrations.

SQLite in WAL mode with full synchronisation: what a transaction wrote survives a kill and a power cut. One
connection, one writer at a time. What the rows mean belongs to the noun that keeps them (ledger, registry, …).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import aiosqlite

from loopd.errors import LoopdError

Value = str | int | float | bytes | None

_MIGRATION_NAME = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")


class StateError(LoopdError):
    """state.db cannot be used; nothing was changed. The text says what to do."""

    code = "state_unusable"


class Database:
    """One open state.db."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()
        self._holder: asyncio.Task[object] | None = None

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Everything executed inside is written at once, or not at all. May be nested in one task."""
        if self._holder is asyncio.current_task():
            yield
            return
        async with self._lock:
            self._holder = asyncio.current_task()
            try:
                # Shielded, since what is sent to the connection's thread is done whether or not we are cancelled; calls
                # are done in order, so a roll-back sent after a BEGIN undoes it.
                try:
                    await asyncio.shield(self._connection.execute("BEGIN IMMEDIATE"))
                    yield
                except BaseException:
                    await asyncio.shield(self._connection.rollback())
                    raise
                await asyncio.shield(self._connection.commit())
            finally:
                self._holder = None

    async def execute(self, sql: str, values: Sequence[Value] = ()) -> int:
        """Run one statement in a transaction; return the row id it inserted, 0 for none."""
        async with self.transaction():
            cursor = await self._connection.execute(sql, values)
            return cursor.lastrowid or 0

    async def fetch_all(self, sql: str, values: Sequence[Value] = ()) -> list[sqlite3.Row]:
        """Return all rows."""
        return list(await self._connection.execute_fetchall(sql, values))

    async def fetch_one(self, sql: str, values: Sequence[Value] = ()) -> sqlite3.Row | None:
        """Return the first row or None."""
        rows = await self.fetch_all(sql, values)
        return rows[0] if rows else None


@contextlib.asynccontextmanager
async def open_database(path: Path) -> AsyncIterator[Database]:
    """Open, check and migrate state.db; made if absent.

    Raises StateError when the file is damaged, unwritable, or of a newer loopd.
    """
    try:
        await asyncio.to_thread(_touch, path)  # aiosqlite leaves its thread behind when it cannot open a file
        connection = await aiosqlite.connect(path, isolation_level=None)
    except sqlite3.Error as error:
        raise StateError(f"{path} cannot be opened: {error}. Check the directory's owner and free space") from error
    try:
        connection.row_factory = sqlite3.Row
        try:
            await connection.execute("PRAGMA journal_mode = WAL")
            await connection.execute("PRAGMA synchronous = FULL")
            await connection.execute("PRAGMA foreign_keys = ON")
            await connection.execute("PRAGMA busy_timeout = 5000")
            await _check(connection, path)
            await _migrate(connection, path, migrations())
        except sqlite3.Error as error:
            raise StateError(
                f"{path} cannot be used: {error}. It was left as it is; what serves goes on serving. "
                "Restore a copy of it, then start loopd again"
            ) from error
        yield Database(connection)
    finally:
        await connection.close()


def _touch(path: Path) -> None:
    sqlite3.connect(path).close()


async def _check(connection: aiosqlite.Connection, path: Path) -> None:
    rows = list(await connection.execute_fetchall("PRAGMA quick_check(1)"))
    if rows[0][0] != "ok":
        raise StateError(f"{path} is damaged ({rows[0][0]}). It was left as it is; restore a copy of it")


def migrations() -> list[tuple[int, str]]:
    """Return (number, SQL) of each migration, in order; numbers run from 1 without a gap."""
    entries = resources.files("loopd").joinpath("migrations").iterdir()
    return sorted(
        (int(match[1]), entry.read_text()) for entry in entries if (match := _MIGRATION_NAME.match(entry.name))
    )


async def _migrate(connection: aiosqlite.Connection, path: Path, known: Iterable[tuple[int, str]]) -> None:
    rows = list(await connection.execute_fetchall("PRAGMA user_version"))
    current = int(rows[0][0])
    newest = 0
    for number, sql in known:
        newest = number
        if number > current:
            await connection.executescript(f"BEGIN;\n{sql}\nPRAGMA user_version = {number};\nCOMMIT;")
    if current > newest:
        raise StateError(
            f"{path} has schema {current}, this loopd knows {newest}: it is older than the state. "
            "Nothing was changed; start the newer loopd, or restore a backup made by this one"
        )


def now() -> str:
    """Return the time as state.db keeps it: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
