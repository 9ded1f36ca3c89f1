"""postgres_database: owns the PostgreSQL side: one connection that writes, a pool that reads beside it.

Units run in SQLAlchemy's greenlets over asyncpg. A lost connection is replaced: a batch that had not come to its commit
runs again, one that had is told of as uncertain, and a read is asked again.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from sqlalchemy import URL, Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from loopbox_agent.database_errors import explained, is_disconnect
from loopbox_agent.group_commit import Outcome, Unit, goes_apart, perform, perform_apart
from loopbox_agent.schema_version import ensure_schema

T = TypeVar("T")

READERS = 4  #: connections that read
CONNECT_S = 10.0
STATEMENT_S = 60.0  #: the longest statement; a whole user's erasure is one
_SCHEMA_LOCK = 7_305_810  #: any number of ours; two agents that start at once make the tables one after the other


class PostgresDatabase:
    """One database of a server."""

    dialect = "postgresql"

    def __init__(self, url: URL) -> None:
        self.where = f"the database {url.database} at {url.query.get('host') or url.host or 'localhost'}"
        options = {
            "connect_args": {
                "timeout": CONNECT_S,
                "command_timeout": STATEMENT_S,
                "server_settings": {
                    "application_name": "loopbox-agent",
                    "synchronous_commit": "on",  # whatever the server's default: acknowledged means durable
                    "lock_timeout": "5000",
                    "idle_in_transaction_session_timeout": "120000",
                },
            },
            "hide_parameters": True,
        }
        self._write_engine = create_async_engine(url, pool_size=1, max_overflow=0, **options)
        self._read_engine = create_async_engine(
            url, pool_size=READERS, max_overflow=0, isolation_level="REPEATABLE READ", **options
        )
        self._writer: AsyncConnection | None = None

    async def prepare(self, before_upgrade: Callable[[int], None]) -> None:
        """Connect and bring the tables up to date. Raises AgentError."""

        def prepare(connection: Connection) -> None:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _SCHEMA_LOCK})
            ensure_schema(connection, before_upgrade=before_upgrade)

        with self._explaining():
            async with self._write_engine.begin() as connection:
                await connection.run_sync(prepare)

    async def read(self, unit: Unit[T]) -> T:
        """Run a unit that reads, on one snapshot."""
        with self._explaining():
            try:
                return await self._read(unit)
            except Exception as error:
                if not is_disconnect(error):
                    raise
                return await self._read(unit)

    async def commit(self, units: Sequence[Unit[object]]) -> Sequence[Outcome]:
        """Run units in one transaction; durable on return."""
        with self._explaining():
            try:
                outcomes = await self._perform(units)
            except Exception as error:
                await self._drop_writer()
                if not is_disconnect(error):
                    raise
                outcomes = await self._perform(units)
            try:
                await self._connected_writer().commit()
            except BaseException:
                await self._drop_writer()
                raise
            return outcomes

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Callable[[Unit[T]], Awaitable[T]]]:
        """Read several units from one unchanging state; writing goes on beside it."""
        with self._explaining():
            async with self._read_engine.connect() as connection:
                yield connection.run_sync

    async def scrub(self) -> None:
        """Do nothing: the server's own vacuum reuses the room of deleted rows."""

    async def close(self) -> None:
        """Close all connections."""
        if self._writer is not None:
            await self._writer.close()
        await self._write_engine.dispose()
        await self._read_engine.dispose()

    async def _read(self, unit: Unit[T]) -> T:
        async with self._read_engine.connect() as connection:
            return await connection.run_sync(unit)

    async def _perform(self, units: Sequence[Unit[object]]) -> list[Outcome]:
        if self._writer is None:
            self._writer = await self._write_engine.connect()
        try:
            return await self._writer.run_sync(perform, units)
        except Exception as error:
            if not goes_apart(error, units):
                raise
        await self._writer.rollback()
        return await self._writer.run_sync(
            lambda connection: perform_apart(connection, units, connection.exec_driver_sql)
        )

    def _connected_writer(self) -> AsyncConnection:
        assert self._writer is not None  # noqa: S101 for mypy: _perform made it
        return self._writer

    async def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(Exception):
                await writer.close()  # rolls back; a dead connection has nothing to roll back

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            told = explained(error, self.where)
            if told is error:
                raise
            raise told from error
