"""database: owns the agent's one door to its database: reads, and writes that are durable when they return.

SQLite by default, PostgreSQL by URL; the nouns above (threads, run_log, …) do not see which.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from loopbox_agent.database_errors import DatabaseError, DatabaseUrlError
from loopbox_agent.group_commit import MOST_WAITING, Outcome, Unit, Writer
from loopbox_agent.postgres_database import PostgresDatabase
from loopbox_agent.sqlite_database import SqliteDatabase, sole_owner

log = structlog.get_logger("agent.database")

T = TypeVar("T")

MOST_PASSWORD_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long and how much may wait."""

    busy_s: float = 5.0  #: a SQLite write, for another process's lock
    lock_s: float = 5.0  #: the opening of a SQLite file, for an agent that still has it open
    most_waiting: int = MOST_WAITING  #: units in the writer's queue


PATIENCE = Patience()


class Side(Protocol):
    """One of the two databases."""

    dialect: str
    where: str  #: for people, without a password

    async def prepare(self, before_upgrade: Callable[[int], None]) -> None:
        """Connect and bring the tables up to date. Raises AgentError."""
        ...

    async def read(self, unit: Unit[T]) -> T:
        """Run a unit that reads, on one snapshot."""
        ...

    async def commit(self, units: Sequence[Unit[object]]) -> Sequence[Outcome]:
        """Run units in one transaction; durable on return."""
        ...

    def snapshot(self) -> contextlib.AbstractAsyncContextManager[Callable[[Unit[T]], Awaitable[T]]]:
        """Read several units from one unchanging state; writing goes on beside it."""
        ...

    async def scrub(self) -> None:
        """Leave nothing of deleted rows behind, as far as this side can."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


class Database:
    """An open database."""

    def __init__(self, side: Side, *, most_waiting: int = MOST_WAITING) -> None:
        self.side = side
        self.writer = Writer(side.commit, most_waiting)

    @property
    def dialect(self) -> str:
        """Return "sqlite" or "postgresql"."""
        return self.side.dialect

    async def read(self, unit: Unit[T]) -> T:
        """Run a unit that only reads, beside the writer, on one snapshot. Raises AgentError."""
        return await self.side.read(unit)

    async def write(self, unit: Unit[T]) -> T:
        """Run a unit; when this returns, what it wrote survives a kill and a power cut.

        Raises what the unit raised, then nothing of it was kept; DatabaseError. A caller that is cancelled meanwhile
        cannot know whether its unit was written.
        """
        return await self.writer.submit(unit)

    def post(self, unit: Unit[object]) -> None:
        """Queue a unit that nobody waits for, such as a time of last use; it may be lost."""
        try:
            self.writer.submit(unit).add_done_callback(_told)
        except DatabaseError as error:
            log.warning("database.post_lost", error=type(error).__name__)

    def snapshot(self) -> contextlib.AbstractAsyncContextManager[Callable[[Unit[T]], Awaitable[T]]]:
        """Read several units from one unchanging state; writing goes on beside it."""
        return self.side.snapshot()

    async def close(self) -> None:
        """Commit what waits, then close. Closing twice does nothing."""
        await self.writer.close()
        await self.side.close()


def _told(future: asyncio.Future[object]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.warning("database.post_lost", error=type(error).__name__)


@contextlib.asynccontextmanager
async def open_database(
    url: str,
    *,
    password_file: Path | None = None,
    patience: Patience = PATIENCE,
    before_upgrade: Callable[[int], None] = lambda _: None,
) -> AsyncIterator[Database]:
    """Open the database, made if absent, with its tables up to date.

    url: sqlite+aiosqlite:///<absolute path> or postgresql+asyncpg://user@host/name, with no password in it.
    before_upgrade: told the old schema's version before an upgrade changes anything; what it raises stops the opening.
    Raises DatabaseUrlError, SchemaError, DatabaseError.
    """
    parsed = parse_url(url, password_file)
    async with contextlib.AsyncExitStack() as stack:
        side: Side
        if parsed.drivername.startswith("sqlite"):
            path = Path(parsed.database or "")
            await stack.enter_async_context(sole_owner(path, wait_s=patience.lock_s))
            side = SqliteDatabase(path, busy_s=patience.busy_s)
        else:
            side = PostgresDatabase(parsed)
        try:
            await side.prepare(before_upgrade)
        except BaseException:
            await side.close()
            raise
        database = Database(side, most_waiting=patience.most_waiting)
        database.writer.start()
        try:
            yield database
        finally:
            await database.close()


def parse_url(url: str, password_file: Path | None = None) -> URL:
    """Return the checked URL with the password from its file. Raises DatabaseUrlError, which never quotes the URL."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.drivername not in ("sqlite+aiosqlite", "postgresql+asyncpg"):
        raise DatabaseUrlError(
            "The database's URL is not sqlite+aiosqlite:///<path> or postgresql+asyncpg://user@host/name. "
            "Nothing was opened. Correct the setting."
        )
    if parsed.password is not None or "password" in parsed.query:
        raise DatabaseUrlError(
            "The database's URL holds a password, and URLs end up in logs. Nothing was opened. "
            "Put the password in a file of its own and name that file."
        )
    if not parsed.database:
        raise DatabaseUrlError("The database's URL names no database. Nothing was opened. Correct the setting.")
    if parsed.drivername == "sqlite+aiosqlite":
        if not Path(parsed.database).is_absolute():
            raise DatabaseUrlError(
                "The path of the SQLite database is not absolute (four slashes: sqlite+aiosqlite:////var/lib/…). "
                "Nothing was opened. Correct the setting."
            )
        return parsed
    return parsed if password_file is None else parsed.set(password=_password(password_file))


def _password(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_PASSWORD_BYTES + 1)
        password = raw.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatabaseUrlError(
            f"The database's password file {path} cannot be read ({type(error).__name__}). Nothing was opened. "
            "Check that it is there and that the agent may read it."
        ) from error
    if not password or len(raw) > MOST_PASSWORD_BYTES:
        raise DatabaseUrlError(
            f"The database's password file {path} is empty or longer than {MOST_PASSWORD_BYTES} bytes. "
            "Nothing was opened. Write the password, and nothing else, into it."
        )
    return password
