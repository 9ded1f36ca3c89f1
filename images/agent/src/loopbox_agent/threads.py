"""threads: owns conversations: whose they are, their messages, what of them is active, and which run holds each.

A compaction replaces the oldest active messages by others; what it drops stays stored and can be read back.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

import anyio
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter
from pydantic_core import PydanticSerializationError
from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, delete, func, insert, or_, select, update

from loopbox_agent.database import Database
from loopbox_agent.errors import AgentError
from loopbox_agent.group_commit import Unit
from loopbox_agent.records import (
    CLOCK,
    Clock,
    InvalidRecordError,
    NotFoundError,
    StoreLimitError,
    TooLargeError,
    asked_id,
    checked_id,
    checked_user,
    moment,
    new_id,
    plain,
    storable,
)
from loopbox_agent.tables import messages, threads

MOST_THREADS = 10_000  #: of one user
MOST_MESSAGES = 20_000  #: of one thread, dropped ones with them
MOST_MESSAGE_BYTES = 4 << 20  #: one message as JSON; long tool outputs are kept as files
MOST_TITLE_BYTES = 400
MOST_LISTED = 200
MOST_WORDS = 16  #: of a search in what was dropped

_MESSAGES = ModelMessagesTypeAdapter


class ThreadBusyError(AgentError):
    """Another run holds the thread."""

    code: ClassVar[str] = "thread_busy"
    status: ClassVar[int] = 409


@dataclass(frozen=True, slots=True)
class Thread:
    """A conversation."""

    id: str
    user: str
    title: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message of a thread."""

    seq: int  #: names it in its thread, for `compact`
    run_id: str
    tokens: int
    at: datetime
    message: ModelMessage


class Threads:
    """All users' threads."""

    def __init__(self, database: Database, *, clock: Clock = CLOCK) -> None:
        self._database = database
        self._clock = clock

    async def create(self, user: str, title: str | None = None) -> Thread:
        """Begin a thread. Raises InvalidRecordError, TooLargeError, StoreLimitError."""
        now = self._clock()
        made = Thread(new_id("thread"), checked_user(user), _title(title), moment(now), moment(now))
        row = {"id": made.id, "user_id": user, "title": made.title, "created_at": now, "updated_at": now}

        def unit(connection: Connection) -> None:
            if connection.execute(_COUNT, {"user": user}).scalar_one() >= MOST_THREADS:
                raise StoreLimitError(
                    f"You have {MOST_THREADS:,} threads, which is as many as may be; nothing was made. Delete some."
                )
            connection.execute(_INSERT_THREAD, {**row, "next_seq": 1, "next_position": 1})

        await self._database.write(unit)
        return made

    async def get(self, user: str, thread_id: str) -> Thread:
        """Return a user's thread. Raises NotFoundError, for other people's threads, too."""
        asked = {"id": asked_id(thread_id, "thread")}
        row = await self._database.read(lambda connection: connection.execute(_THREAD, asked).one_or_none())
        if row is None or row.user_id != user:
            raise _missing(thread_id)
        return _thread(row)

    async def recent(self, user: str, before: str | None = None, limit: int = 50) -> list[Thread]:
        """Return threads, the last used first; before: the id of the last one seen. Raises NotFoundError."""

        def unit(connection: Connection) -> Sequence[Row[Any]]:
            wanted = select(threads).where(threads.c.user_id == user)
            if before is not None:
                seen = connection.execute(_THREAD, {"id": asked_id(before, "thread")}).one_or_none()
                if seen is None or seen.user_id != user:
                    raise _missing(before)
                older = and_(threads.c.updated_at == seen.updated_at, threads.c.id < before)
                wanted = wanted.where(or_(threads.c.updated_at < seen.updated_at, older))
            order = wanted.order_by(threads.c.updated_at.desc(), threads.c.id.desc())
            return connection.execute(order.limit(max(1, min(limit, MOST_LISTED)))).all()

        return [_thread(row) for row in await self._database.read(unit)]

    async def rename(self, user: str, thread_id: str, title: str | None) -> None:
        """Give a thread another title. Raises NotFoundError, TooLargeError."""
        asked_id(thread_id, "thread")
        clean = _title(title)

        def unit(connection: Connection) -> None:
            changed = connection.execute(
                update(threads).where(threads.c.id == thread_id, threads.c.user_id == user).values(title=clean)
            )
            if not changed.rowcount:
                raise _missing(thread_id)

        await self._database.write(unit)

    async def delete(self, user: str, thread_id: str) -> None:
        """Delete a thread with its messages, notes and runs. Raises NotFoundError, ThreadBusyError."""
        asked_id(thread_id, "thread")

        def unit(connection: Connection) -> None:
            row = connection.execute(_LOCKED, {"id": thread_id}).one_or_none()
            if row is None or row.user_id != user:
                raise _missing(thread_id)
            self._check_lease(row, None)
            connection.execute(delete(threads).where(threads.c.id == thread_id))

        await self._database.write(unit)

    async def append(self, thread_id: str, run_id: str, added: Sequence[ModelMessage], tokens: int = 0) -> int:
        """Add messages at the end; return the seq of the last, 0 for none. tokens: of all of them together.

        Raises NotFoundError, TooLargeError, StoreLimitError; ThreadBusyError when another run holds the thread, as
        after this one's lease ran out.
        """
        return await self._database.write(self.appending(thread_id, run_id, added, tokens)) if added else 0

    def appending(self, thread_id: str, run_id: str, added: Sequence[ModelMessage], tokens: int = 0) -> Unit[int]:
        """Return append as a unit, to be written together with others. Raises TooLargeError, InvalidRecordError."""
        checked_id(run_id, "run's id")
        bodies = [_body(message) for message in added]

        def unit(connection: Connection) -> int:
            row = self._held(connection, thread_id, run_id)
            first = row.next_seq
            if not bodies:
                return 0
            if first + len(bodies) > MOST_MESSAGES:
                raise StoreLimitError(
                    f"The thread has {first - 1:,} messages and may have {MOST_MESSAGES:,}; nothing was added. "
                    "Go on in a new thread."
                )
            now = self._clock()
            rows = _rows(row, run_id, bodies, row.next_position, tokens)
            connection.execute(_INSERT_MESSAGE, [{**added_row, "created_at": now} for added_row in rows])
            _count_up(connection, row, len(bodies), now)
            return int(first + len(bodies) - 1)

        return unit

    def adding_turn(self, thread_id: str, run_id: str, turn: Sequence[ModelMessage]) -> Unit[bool]:
        """Return a unit that adds the turn of a run that died: False where it did not hold the thread, or saved one.

        Raises as append does.
        """
        append = self.appending(thread_id, run_id, turn)

        def unit(connection: Connection) -> bool:
            row = connection.execute(_LOCKED, {"id": thread_id}).one_or_none()
            if row is None or row.leased_by != run_id:
                return False
            if connection.execute(_ANY_OF_RUN, {"id": thread_id, "run": run_id}).first() is not None:
                return False
            append(connection)
            return True

        return unit

    async def history(self, thread_id: str) -> list[ModelMessage]:
        """Return the active messages, in order; [] for a thread that is not there."""
        return [stored.message for stored in await self.active(thread_id)]

    async def active(self, thread_id: str) -> list[StoredMessage]:
        """Return the active messages in order, with their seq."""
        rows = await self._database.read(lambda connection: connection.execute(_ACTIVE, {"id": thread_id}).all())
        return _stored(rows)

    async def compact(
        self, thread_id: str, run_id: str, through_seq: int, replacement: Sequence[ModelMessage], tokens: int = 0
    ) -> int:
        """Put other messages in the place of the active ones up to through_seq; return how many were dropped.

        tokens: of the replacement.

        Raises NotFoundError, also for a seq that is not active; ThreadBusyError; TooLargeError.
        """
        checked_id(run_id, "run's id")
        bodies = [_body(message) for message in replacement]

        def unit(connection: Connection) -> int:
            row = self._held(connection, thread_id, run_id)
            last = connection.execute(_POSITION, {"id": thread_id, "seq": through_seq}).scalar_one_or_none()
            if last is None:
                raise NotFoundError(f"Message {through_seq} of {thread_id} is not active; nothing was compacted.")
            mine = and_(messages.c.thread_id == thread_id, messages.c.active)
            dropped = connection.execute(update(messages).where(mine, messages.c.position <= last).values(active=False))
            if bodies:
                # Room for the new ones between what was dropped and what stays.
                connection.execute(
                    update(messages)
                    .where(mine, messages.c.position > last)
                    .values(position=messages.c.position + len(bodies))
                )
                now = self._clock()
                rows = _rows(row, run_id, bodies, last + 1, tokens)
                connection.execute(_INSERT_MESSAGE, [{**added_row, "created_at": now} for added_row in rows])
                _count_up(connection, row, len(bodies), now)
            return dropped.rowcount

        return await self._database.write(unit)

    async def dropped(self, thread_id: str, query: str | None = None, limit: int = 20) -> list[StoredMessage]:
        """Return what compactions dropped, newest first; query: words that all must occur in a message."""
        wanted = select(messages).where(messages.c.thread_id == thread_id, ~messages.c.active, *holding(query or ""))
        wanted = wanted.order_by(messages.c.seq.desc()).limit(max(1, min(limit, MOST_LISTED)))
        return _stored(await self._database.read(lambda connection: connection.execute(wanted).all()))

    @contextlib.asynccontextmanager
    async def lease(self, thread_id: str, run_id: str, ttl_s: float) -> AsyncIterator[None]:
        """Hold a thread for one run while the block runs. Raises ThreadBusyError, NotFoundError.

        ttl_s: seconds after which the thread is free although nobody released it, as after a crash.
        """
        try:
            await self.acquire(thread_id, run_id, ttl_s)
            yield
        finally:
            with anyio.CancelScope(shield=True):  # an acquisition that was cancelled may have been written
                await self.release(thread_id, run_id)

    async def acquire(self, thread_id: str, run_id: str, ttl_s: float) -> None:
        """Hold a thread, or hold it longer. Raises ThreadBusyError, NotFoundError."""
        await self._database.write(self.acquiring(thread_id, run_id, ttl_s))

    def acquiring(self, thread_id: str, run_id: str, ttl_s: float) -> Unit[None]:
        """Return acquire as a unit. Raises InvalidRecordError."""
        checked_id(run_id, "run's id")

        def unit(connection: Connection) -> None:
            self._held(connection, thread_id, run_id)
            connection.execute(_LEASE, {"thread": thread_id, "run": run_id, "until": self._clock() + ttl_s})

        return unit

    async def release(self, thread_id: str, run_id: str) -> None:
        """Let go of a thread; does nothing when the run does not hold it."""
        await self._database.write(self.releasing(thread_id, run_id))

    def releasing(self, thread_id: str, run_id: str) -> Unit[None]:
        """Return release as a unit."""

        def unit(connection: Connection) -> None:
            connection.execute(_RELEASE, {"thread": thread_id, "run": run_id})

        return unit

    async def release_all(self) -> int:
        """Let go of every thread, at start: no run of before is under way. Returns how many were held."""
        free = update(threads).where(threads.c.leased_by.is_not(None)).values(leased_by=None, leased_until=None)
        return await self._database.write(lambda connection: connection.execute(free).rowcount)

    def _held(self, connection: Connection, thread_id: str, run_id: str) -> Row[Any]:
        """Return the thread's row, locked. Raises NotFoundError, ThreadBusyError for another run's."""
        row = connection.execute(_LOCKED, {"id": thread_id}).one_or_none()
        if row is None:
            raise _missing(thread_id)
        self._check_lease(row, run_id)
        return row

    def _check_lease(self, row: Row[Any], run_id: str | None) -> None:
        if row.leased_by in (None, run_id) or row.leased_until <= self._clock():
            return
        raise ThreadBusyError(
            f"The run {row.leased_by} is under way in the thread {row.id}; nothing was changed. "
            "Wait for its end, cancel it, or use another thread.",
            retry_after_s=1,
        )


_THREAD = select(threads).where(threads.c.id == bindparam("id"))
_LOCKED = _THREAD.with_for_update()  # a row's lock on PostgreSQL; SQLite has one writer
_COUNT = select(func.count()).where(threads.c.user_id == bindparam("user"))
_INSERT_THREAD = insert(threads)
_INSERT_MESSAGE = insert(messages)
_ACTIVE = (
    select(messages).where(messages.c.thread_id == bindparam("id"), messages.c.active).order_by(messages.c.position)
)
_ANY_OF_RUN = (
    select(messages.c.seq)
    .where(messages.c.thread_id == bindparam("id"), messages.c.run_id == bindparam("run"))
    .limit(1)
)
_POSITION = select(messages.c.position).where(
    messages.c.thread_id == bindparam("id"), messages.c.seq == bindparam("seq"), messages.c.active
)
_LEASE = (
    update(threads)
    .where(threads.c.id == bindparam("thread"))
    .values(leased_by=bindparam("run"), leased_until=bindparam("until"))
)
_RELEASE = (
    update(threads)
    .where(threads.c.id == bindparam("thread"), threads.c.leased_by == bindparam("run"))
    .values(leased_by=None, leased_until=None)
)
_COUNT_UP = (
    update(threads)
    .where(threads.c.id == bindparam("thread"))
    .values(next_seq=bindparam("seq"), next_position=bindparam("place"), updated_at=bindparam("now"))
)


def holding(query: str) -> list[ColumnElement[bool]]:
    """Return what holds of messages in which all words of a query occur."""
    return [
        func.lower(messages.c.body).contains(json.dumps(word.lower(), ensure_ascii=False)[1:-1], autoescape=True)
        for word in plain(query).split()[:MOST_WORDS]
    ]


def _missing(thread_id: str) -> NotFoundError:
    return NotFoundError(f"There is no thread {plain(thread_id)[:64]!r}.")


def _thread(row: Row[Any]) -> Thread:  # Any: SQLAlchemy types rows by column only in its ORM
    return Thread(row.id, row.user_id, row.title, moment(row.created_at), moment(row.updated_at))


def _title(title: str | None) -> str | None:
    return None if title is None else storable(title, most_bytes=MOST_TITLE_BYTES, what="title")


def _body(message: ModelMessage) -> str:
    try:
        body = _MESSAGES.dump_json([message])[1:-1].decode()
    except PydanticSerializationError as error:
        raise InvalidRecordError("A message cannot be written as JSON; nothing was added.") from error
    if len(body) > MOST_MESSAGE_BYTES:
        raise TooLargeError(
            f"A message has {len(body):,} characters, {MOST_MESSAGE_BYTES:,} are allowed; nothing was added."
        )
    return body


def _rows(
    thread: Row[Any],  # Any: as in _thread
    run_id: str,
    bodies: Sequence[str],
    position: int,
    tokens: int,
) -> list[dict[str, object]]:
    whole = sum(map(len, bodies))
    return [
        {
            "thread_id": thread.id,
            "seq": thread.next_seq + number,
            "position": position + number,
            "run_id": run_id,
            "active": True,
            "tokens": max(0, tokens) * len(body) // whole,  # each its share, by size
            "body": body,
        }
        for number, body in enumerate(bodies)
    ]


def _stored(rows: Sequence[Row[Any]]) -> list[StoredMessage]:  # Any: as in _thread
    # One call for all: each costs more to begin than to do.
    read = _MESSAGES.validate_json(f"[{','.join(row.body for row in rows)}]")
    return [
        StoredMessage(row.seq, row.run_id, row.tokens, moment(row.created_at), message)
        for row, message in zip(rows, read, strict=True)
    ]


def _count_up(connection: Connection, row: Row[Any], by: int, now: float) -> None:  # Any: as in _thread
    connection.execute(
        _COUNT_UP, {"thread": row.id, "seq": row.next_seq + by, "place": row.next_position + by, "now": now}
    )
