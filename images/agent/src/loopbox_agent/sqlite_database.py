"""sqlite_database: owns the SQLite side: one file, one connection that writes, a few that read beside it.

Units run in threads, a whole batch in one go: one change of threads a batch costs 0.1 ms, one a statement (as aiosqlite
has it) as much for each of them. WAL with full synchronisation: what was committed survives a kill and a power cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, cast

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection

from loopbox_agent.database_errors import DatabaseDamagedError, DatabaseError, DatabaseLockedError, explained
from loopbox_agent.group_commit import Outcome, Unit, goes_apart, perform, perform_apart
from loopbox_agent.schema_version import ensure_schema

T = TypeVar("T")

READERS = 4  #: threads that read beside the writer
CHECKED_BYTES = 64 << 20  #: files up to this size are checked page by page when opened (0.1 s)
LOCK_WAIT_S = 5.0  #: for an agent that is stopping to let go of the file


class SqliteDatabase:
    """One open file."""

    dialect = "sqlite"

    def __init__(self, path: Path, *, busy_s: float) -> None:
        self.path = path
        self.where = str(path)
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="sqlite-write")
        self._reading = ThreadPoolExecutor(READERS, thread_name_prefix="sqlite-read")
        self._write_engine = _engine(path, busy_s=busy_s, begin="BEGIN IMMEDIATE")
        self._read_engine = _engine(path, busy_s=busy_s, begin="BEGIN", read_only=True)
        self._writer: Connection | None = None

    async def prepare(self, before_upgrade: Callable[[int], None]) -> None:
        """Check the file, made if absent, and bring its tables up to date. Raises AgentError."""
        await self._in(self._writing, lambda: self._prepare(before_upgrade))

    async def read(self, unit: Unit[T]) -> T:
        """Run a unit that reads, on one snapshot."""
        return await self._in(self._reading, lambda: self._read(unit))

    async def commit(self, units: Sequence[Unit[object]]) -> Sequence[Outcome]:
        """Run units in one transaction; durable on return."""
        return await self._in(self._writing, lambda: self._commit(units))

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Callable[[Unit[T]], Awaitable[T]]]:
        """Read several units from one unchanging state; writing goes on beside it."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-snapshot")
        connection = await self._in(thread, self._begin_reading)
        try:
            yield lambda unit: self._in(thread, lambda: unit(connection))
        finally:
            await asyncio.shield(self._in(thread, connection.close))
            thread.shutdown(wait=False)

    async def scrub(self) -> None:
        """Leave nothing of deleted rows in the search index or the log (secure_delete does it in the file)."""

        def compact(connection: Connection) -> None:
            for index in ("memories_words", "passages_words"):
                connection.exec_driver_sql(f"INSERT INTO {index} ({index}) VALUES ('optimize')")  # noqa: S608 ours

        await self.commit([compact])
        await self._in(self._writing, self._truncate_log)

    async def close(self) -> None:
        """Let go of the file."""
        await self._in(self._writing, self._dispose)
        self._writing.shutdown(wait=False)
        self._reading.shutdown(wait=False)

    async def _in(self, threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, call)
        except Exception as error:
            told = explained(error, self.where)
            if told is error:
                raise
            raise told from error

    def _prepare(self, before_upgrade: Callable[[int], None]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        known = self.path.exists()
        if known and self.path.stat().st_size <= CHECKED_BYTES:
            check_whole(self.path)
        self._writer = self._write_engine.connect()
        if not known:
            os.chmod(self.path, 0o600)  # noqa: PTH101 the journal's files get the same mode from it
        with self._writer.begin():
            ensure_schema(self._writer, before_upgrade=before_upgrade)

    def _commit(self, units: Sequence[Unit[object]]) -> Sequence[Outcome]:
        if self._writer is None:
            self._writer = self._write_engine.connect()
        try:
            try:
                with self._writer.begin():
                    return perform(self._writer, units)
            except Exception as error:
                if not goes_apart(error, units):
                    raise
            with self._writer.begin():
                return perform_apart(self._writer, units, _raw(self._writer).execute)
        except Exception:
            # A connection that met an error of the disk is replaced: it may hold what was read before the error.
            if self._writer.invalidated or self._writer.in_transaction():
                self._writer.invalidate()
                self._writer.close()
                self._writer = None
            raise

    def _begin_reading(self) -> Connection:
        return self._read_engine.connect()

    def _read(self, unit: Unit[T]) -> T:
        with self._read_engine.connect() as connection:
            return unit(connection)

    def _truncate_log(self) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _dispose(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._write_engine.dispose()
        self._read_engine.dispose()


def _raw(connection: Connection) -> sqlite3.Connection:
    """Return the driver's connection: what has no values costs a third there."""
    return cast("sqlite3.Connection", connection.connection.dbapi_connection)


@contextlib.asynccontextmanager
async def sole_owner(path: Path, *, wait_s: float = LOCK_WAIT_S) -> AsyncIterator[None]:
    """Hold the file's lock, so that no second agent calls this one's runs interrupted.

    Raises DatabaseLockedError, DatabaseError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DatabaseError(
            f"{path} cannot be opened ({error.strerror}); nothing was changed. "
            "Check that its directory exists, its owner and mode, and that the disk has room."
        ) from error
    try:
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise DatabaseLockedError(
                        f"Another agent, or a restore, has {path} open; nothing was changed. Stop it, then start again."
                    ) from error
            await asyncio.sleep(0.05)
        yield
    finally:
        os.close(handle)


def check_whole(path: Path) -> None:
    """Look, read-only, whether a file is a whole database. Blocks. Raises DatabaseDamagedError."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            fault = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        raise explained(error, str(path)) from error
    if fault != "ok":
        raise DatabaseDamagedError(
            f"{path} is damaged; nothing was changed. Stop the agent and restore the newest backup; "
            "the damaged file is kept aside."
        )


def _engine(path: Path, *, busy_s: float, begin: str, read_only: bool = False) -> Engine:
    pool = {"poolclass": NullPool} if not read_only else {"pool_size": READERS, "max_overflow": 4}
    engine = create_engine(f"sqlite+pysqlite:///{path}", connect_args={"check_same_thread": False}, **pool)

    def connected(connection: DBAPIConnection, _: object) -> None:
        assert isinstance(connection, sqlite3.Connection)  # noqa: S101 for mypy: this is the sqlite3 dialect
        connection.isolation_level = None  # the driver begins no transaction of its own; `begun` does
        settings = [f"busy_timeout = {round(busy_s * 1000)}"]
        settings += (
            ["query_only = ON"]
            if read_only
            else ["journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"]
        )
        for setting in settings:
            connection.execute(f"PRAGMA {setting}").close()

    def begun(connection: Connection) -> None:
        _raw(connection).execute(begin)

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)
    return engine
