"""run_log: owns the record of every run, and its events, from which a stream that broke off is resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import JsonValue
from sqlalchemy import Connection, Row, and_, bindparam, delete, func, insert, or_, select, update

from loopbox_agent.database import Database
from loopbox_agent.group_commit import Unit
from loopbox_agent.records import (
    CLOCK,
    Clock,
    InvalidRecordError,
    NotFoundError,
    StoreLimitError,
    asked_id,
    checked_id,
    checked_user,
    decode,
    encode,
    moment,
    plain,
)
from loopbox_agent.tables import run_events, runs, threads, working_notes

Status = Literal["running", "completed", "failed", "cancelled", "held", "interrupted"]

MOST_REQUEST_BYTES = 1 << 20
MOST_RESULT_BYTES = 4 << 20
MOST_EVENT_BYTES = 1 << 20
MOST_EVENTS = 20_000  #: of one run; text deltas are stored merged
MOST_LISTED = 200
MOST_READ = 1000  #: events in one read
_TRIM_STEP = 200  #: runs deleted in one unit, so that others' writes come in between


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One event of a run's stream."""

    seq: int  #: the id of the server-sent event, from 1 upwards
    name: str
    body: JsonValue


@dataclass(frozen=True, slots=True)
class Run:
    """A run, as it was asked for and as it ended."""

    id: str
    user: str
    thread_id: str | None
    status: Status
    request: JsonValue
    result: JsonValue  #: None while there is none
    error: JsonValue
    input_tokens: int
    output_tokens: int
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run ended."""

    status: Status
    result: JsonValue = None
    error: JsonValue = None
    input_tokens: int = 0
    output_tokens: int = 0


class RunLog:
    """All runs."""

    def __init__(self, database: Database, *, clock: Clock = CLOCK) -> None:
        self._database = database
        self._clock = clock

    async def start(
        self, run_id: str, user: str, request: Mapping[str, JsonValue], *, thread_id: str | None = None
    ) -> None:
        """Record that a run begins. Raises InvalidRecordError for an id that is taken, NotFoundError for its thread."""
        await self._database.write(self.starting(run_id, user, request, thread_id=thread_id))

    def starting(
        self, run_id: str, user: str, request: Mapping[str, JsonValue], *, thread_id: str | None = None
    ) -> Unit[None]:
        """Return start as a unit, to be written together with others. Raises InvalidRecordError, TooLargeError."""
        row = {
            "id": checked_id(run_id, "run's id"),
            "user_id": checked_user(user),
            "thread_id": thread_id,
            "status": "running",
            "request": encode(request, most_bytes=MOST_REQUEST_BYTES, what="request"),
            "input_tokens": 0,
            "output_tokens": 0,
            "created_at": self._clock(),
        }

        def unit(connection: Connection) -> None:
            if connection.execute(_RUN, {"id": run_id}).one_or_none() is not None:
                raise InvalidRecordError(f"There is a run {run_id} already; nothing was started.")
            if thread_id is not None:
                owner = connection.execute(_THREAD_OWNER, {"id": asked_id(thread_id, "thread")}).scalar_one_or_none()
                if owner != user:
                    raise NotFoundError(f"There is no thread {thread_id!r}; nothing was started.")
            connection.execute(_INSERT_RUN, row)

        return unit

    async def append(self, run_id: str, events: Sequence[RunEvent]) -> None:
        """Add events. Raises TooLargeError; StoreLimitError for too many; NotFoundError for an unknown run."""
        if events:
            await self._database.write(self.appending(run_id, events))

    def appending(self, run_id: str, events: Sequence[RunEvent]) -> Unit[None]:
        """Return append as a unit. Raises TooLargeError, StoreLimitError."""
        if events and events[-1].seq > MOST_EVENTS:
            raise StoreLimitError(
                f"A run keeps {MOST_EVENTS:,} events; later ones cannot be read again. The run itself goes on."
            )
        rows = [
            {
                "run_id": run_id,
                "seq": event.seq,
                "name": event.name[:64],
                "body": encode(event.body, most_bytes=MOST_EVENT_BYTES, what="event"),
            }
            for event in events
        ]

        def unit(connection: Connection) -> None:
            _known(connection, run_id)
            if rows:
                connection.execute(_INSERT_EVENT, rows)

        return unit

    async def finish(self, run_id: str, ended: Ended, events: Sequence[RunEvent] = ()) -> bool:
        """Record how a run ended, with its last events, and forget its working memory; False if it had ended before.

        A run that is held may end again, when what was held is released or rejected.
        Raises TooLargeError, NotFoundError.
        """
        return await self._database.write(self.finishing(run_id, ended, events))

    def finishing(self, run_id: str, ended: Ended, events: Sequence[RunEvent] = ()) -> Unit[bool]:
        """Return finish as a unit. Raises TooLargeError."""
        values = {
            "run": run_id,
            "status": ended.status,
            "result": _optional(ended.result, "result"),
            "error": _optional(ended.error, "error"),
            "input_tokens": ended.input_tokens,
            "output_tokens": ended.output_tokens,
            "now": self._clock(),
        }
        last = [
            {"run_id": run_id, "seq": event.seq, "name": event.name[:64], "body": body}
            for event in events
            if (body := encode(event.body, most_bytes=MOST_EVENT_BYTES, what="event"))
        ]

        def unit(connection: Connection) -> bool:
            if not connection.execute(_FINISH, values).rowcount:
                _known(connection, run_id)
                return False
            if last:
                connection.execute(_INSERT_EVENT, last)
            connection.execute(_FORGET, {"run": run_id})
            return True

        return unit

    async def get(self, user: str, run_id: str) -> Run:
        """Return a user's run. Raises NotFoundError, for other people's runs, too."""
        if (run := await self.of_anybody(run_id)).user != user:
            raise _missing(run_id)
        return run

    async def of_anybody(self, run_id: str) -> Run:
        """Return a run, for the agent itself. Raises NotFoundError."""
        asked = {"id": asked_id(run_id, "run")}
        row = await self._database.read(lambda connection: connection.execute(_RUN, asked).one_or_none())
        if row is None:
            raise _missing(run_id)
        return _run(row)

    async def recent(
        self,
        user: str,
        *,
        thread_id: str | None = None,
        status: Status | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[Run]:
        """Return runs, newest first; before: the id of the last one seen. Raises NotFoundError."""

        def unit(connection: Connection) -> Sequence[Row[Any]]:  # Any: SQLAlchemy types rows only in its ORM
            wanted = select(runs).where(runs.c.user_id == user)
            if thread_id is not None:
                wanted = wanted.where(runs.c.thread_id == asked_id(thread_id, "thread"))
            if status is not None:
                wanted = wanted.where(runs.c.status == status)
            if before is not None:
                seen = connection.execute(_RUN, {"id": asked_id(before, "run")}).one_or_none()
                if seen is None or seen.user_id != user:
                    raise _missing(before)
                tied = and_(runs.c.created_at == seen.created_at, runs.c.id < before)
                wanted = wanted.where(or_(runs.c.created_at < seen.created_at, tied))
            order = wanted.order_by(runs.c.created_at.desc(), runs.c.id.desc())
            return connection.execute(order.limit(max(1, min(limit, MOST_LISTED)))).all()

        return [_run(row) for row in await self._database.read(unit)]

    async def events(self, run_id: str, after: int = 0, limit: int = MOST_READ) -> list[RunEvent]:
        """Return events with a seq above `after`, in order; [] for none. Ask `get` first whose run it is."""
        asked = {"run": run_id, "after": after, "most": max(1, min(limit, MOST_READ))}
        rows = await self._database.read(lambda connection: connection.execute(_EVENTS, asked).all())
        return [RunEvent(row.seq, row.name, decode(row.body)) for row in rows]

    async def running(self) -> list[str]:
        """Return the ids of all runs that have not ended, oldest first."""
        wanted = select(runs.c.id).where(runs.c.status == "running").order_by(runs.c.created_at, runs.c.id)
        return [*await self._database.read(lambda connection: connection.execute(wanted).scalars().all())]

    async def trim(self, *, older_than_s: float, keep: int) -> int:
        """Delete ended runs that are older, or beyond the newest `keep`, with events and calls; return how many."""
        before = self._clock() - older_than_s
        ended = runs.c.status.not_in(("running", "held"))

        def unit(connection: Connection) -> int:
            beyond = max(0, connection.execute(select(func.count()).select_from(runs)).scalar_one() - keep)
            oldest = select(runs.c.id).where(ended).order_by(runs.c.created_at).limit(min(beyond, _TRIM_STEP))
            aged = select(runs.c.id).where(ended, runs.c.finished_at < before).limit(_TRIM_STEP)
            ids = [*connection.execute(oldest).scalars()] or [*connection.execute(aged).scalars()]
            connection.execute(delete(runs).where(runs.c.id.in_(ids)))
            return len(ids)

        trimmed = 0
        while step := await self._database.write(unit):
            trimmed += step
        return trimmed


_RUN = select(runs).where(runs.c.id == bindparam("id"))
_RUN_ID = select(runs.c.id).where(runs.c.id == bindparam("id"))
_THREAD_OWNER = select(threads.c.user_id).where(threads.c.id == bindparam("id"))
_INSERT_RUN = insert(runs)
_INSERT_EVENT = insert(run_events)
_EVENTS = (
    select(run_events.c.seq, run_events.c.name, run_events.c.body)
    .where(run_events.c.run_id == bindparam("run"), run_events.c.seq > bindparam("after"))
    .order_by(run_events.c.seq)
    .limit(bindparam("most"))
)
_FINISH = (
    update(runs)
    .where(runs.c.id == bindparam("run"), runs.c.status.in_(("running", "held")))
    .values(finished_at=bindparam("now"))
    .values({name: bindparam(name) for name in ("status", "result", "error", "input_tokens", "output_tokens")})
)
_FORGET = delete(working_notes).where(working_notes.c.run_id == bindparam("run"))


def _known(connection: Connection, run_id: str) -> None:
    if connection.execute(_RUN_ID, {"id": run_id}).one_or_none() is None:
        raise _missing(run_id)


def _missing(run_id: str) -> NotFoundError:
    return NotFoundError(f"There is no run {plain(run_id)[:64]!r}.")


def _optional(value: JsonValue, what: str) -> str | None:
    return None if value is None else encode(value, most_bytes=MOST_RESULT_BYTES, what=what)


def _run(row: Row[Any]) -> Run:  # Any: SQLAlchemy types rows only in its ORM
    return Run(
        row.id,
        row.user_id,
        row.thread_id,
        row.status,
        decode(row.request),
        row.result and decode(row.result),
        row.error and decode(row.error),
        row.input_tokens,
        row.output_tokens,
        moment(row.created_at),
        None if row.finished_at is None else moment(row.finished_at),
    )
