"""call_journal: owns the journal of tool calls: a call with side effects is not run twice without saying so.

A call is begun before its effect and finished with its result. After a crash, a write that was begun and not finished
is unknown: nobody can tell whether it took effect, so the caller must look or ask. A read may simply run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Literal

from pydantic import JsonValue
from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from loopbox_agent.database import Database
from loopbox_agent.errors import AgentError
from loopbox_agent.records import CLOCK, Clock, NotFoundError, checked_id, decode, encode, moment
from loopbox_agent.tables import runs, tool_calls

Effect = Literal["read", "write"]

MOST_ARGUMENT_BYTES = 1 << 20
MOST_RESULT_BYTES = 4 << 20


class CallMismatchError(AgentError):
    """A call's id was used before for another tool or other arguments."""

    code: ClassVar[str] = "call_mismatch"
    status: ClassVar[int] = 409


@dataclass(frozen=True, slots=True)
class Fresh:
    """Run the call, then finish it."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """The call was run; this is what it gave. Do not run it."""

    result: JsonValue
    is_error: bool


@dataclass(frozen=True, slots=True)
class Unknown:
    """The call was begun and its end was not seen. Do not run it again without saying so."""

    begun_at: datetime


Begun = Fresh | Repeat | Unknown


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the journal."""

    run_id: str
    call_id: str
    tool: str
    effect: Effect
    arguments: JsonValue
    result: JsonValue
    is_error: bool
    begun_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Journaled:
    """What the journal has of one run."""

    calls: Sequence[Call]  #: in the order they were begun; of many, some
    finished: int  #: in all
    unknown: int  #: in all, begun and not finished

    @property
    def left_out(self) -> int:
        """How many calls are not among ``calls``."""
        return self.finished + self.unknown - len(self.calls)


class CallJournal:
    """All tool calls of all runs."""

    def __init__(self, database: Database, *, clock: Clock = CLOCK) -> None:
        self._database = database
        self._clock = clock

    async def begin(
        self, run_id: str, call_id: str, tool: str, arguments: Mapping[str, JsonValue], effect: Effect
    ) -> Begun:
        """Journal that a call is about to run; match the answer to know whether it may.

        Raises NotFoundError for an unknown run, CallMismatchError, TooLargeError, InvalidRecordError.
        """
        row = {
            "run_id": run_id,
            "call_id": checked_id(call_id, "tool call's id"),
            "tool": tool[:128],
            "effect": effect,
            "arguments": encode(arguments, most_bytes=MOST_ARGUMENT_BYTES, what="arguments"),
            "is_error": False,
            "begun_at": self._clock(),
        }

        def unit(connection: Connection) -> Begun:
            known = connection.execute(_CALL, {"run": run_id, "call": call_id}).one_or_none()
            if known is None:
                if connection.execute(_RUN, {"run": run_id}).one_or_none() is None:
                    raise NotFoundError(f"There is no run {run_id!r}; the call was not begun.")
                connection.execute(_INSERT, row)
                return Fresh()
            if known.tool != row["tool"] or decode(known.arguments) != decode(str(row["arguments"])):
                raise CallMismatchError(
                    f"The tool call {call_id} of {run_id} was {known.tool} with other arguments before; it was not "
                    "run. Give each call an id of its own."
                )
            if known.finished_at is not None:
                return Repeat(None if known.result is None else decode(known.result), known.is_error)
            return Fresh() if known.effect == "read" else Unknown(moment(known.begun_at))

        return await self._database.write(unit)

    async def finish(self, run_id: str, call_id: str, result: JsonValue, *, is_error: bool = False) -> None:
        """Journal what a call gave; the first result stays. Raises NotFoundError for a call that was not begun."""
        values = {
            "run": run_id,
            "call": call_id,
            "result": encode(result, most_bytes=MOST_RESULT_BYTES, what="tool's result"),
            "is_error": is_error,
            "now": self._clock(),
        }

        def unit(connection: Connection) -> None:
            if connection.execute(_FINISH, values).rowcount:
                return
            if connection.execute(_CALL, {"run": run_id, "call": call_id}).one_or_none() is None:
                raise NotFoundError(f"The tool call {call_id!r} of {run_id!r} was not begun.")

        await self._database.write(unit)

    async def last_of_run(self, run_id: str, most: int) -> Journaled:
        """Return of a run's calls those whose end nobody saw, and the newest of the others: ``most`` in all."""
        mine, ended = tool_calls.c.run_id == run_id, tool_calls.c.finished_at.is_not(None)
        wanted = select(tool_calls).where(mine).order_by(ended, tool_calls.c.begun_at.desc(), tool_calls.c.call_id)

        def unit(connection: Connection) -> Journaled:
            rows = connection.execute(wanted.limit(most)).all()
            counted = select(func.count()).where(mine)
            finished = connection.execute(counted.where(ended)).scalar_one()
            unknown = connection.execute(counted.where(~ended)).scalar_one()
            calls = sorted(map(_call, rows), key=lambda call: (call.begun_at, call.call_id))
            return Journaled(calls, finished, unknown)

        return await self._database.read(unit)

    async def of_run(self, run_id: str) -> list[Call]:
        """Return a run's calls in the order they were begun."""
        wanted = select(tool_calls).where(tool_calls.c.run_id == run_id).order_by(tool_calls.c.begun_at)
        return [_call(row) for row in await self._database.read(lambda connection: connection.execute(wanted).all())]


_CALL = (
    select(tool_calls)
    .where(tool_calls.c.run_id == bindparam("run"), tool_calls.c.call_id == bindparam("call"))
    .with_for_update()
)
_RUN = select(runs.c.id).where(runs.c.id == bindparam("run"))
_INSERT = insert(tool_calls)
_FINISH = (
    update(tool_calls)
    .where(
        tool_calls.c.run_id == bindparam("run"),
        tool_calls.c.call_id == bindparam("call"),
        tool_calls.c.finished_at.is_(None),
    )
    .values(result=bindparam("result"), is_error=bindparam("is_error"), finished_at=bindparam("now"))
)


def _call(row: Row[Any]) -> Call:  # Any: SQLAlchemy types rows only in its ORM
    return Call(
        row.run_id,
        row.call_id,
        row.tool,
        row.effect,
        decode(row.arguments),
        None if row.result is None else decode(row.result),
        row.is_error,
        moment(row.begun_at),
        None if row.finished_at is None else moment(row.finished_at),
    )
