"""quarantine: owns what was held back for a person to look at: inputs and answers, each released or rejected once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Literal

from pydantic import JsonValue
from sqlalchemy import Connection, Row, and_, bindparam, delete, func, insert, or_, select, update

from loopbox_agent.database import Database
from loopbox_agent.errors import AgentError
from loopbox_agent.records import (
    CLOCK,
    Clock,
    NotFoundError,
    asked_id,
    checked_id,
    checked_user,
    decode,
    encode,
    moment,
    new_id,
    plain,
    storable,
)
from loopbox_agent.tables import quarantine

Kind = Literal["input", "output"]
State = Literal["waiting", "released", "rejected"]

MOST_TEXT_BYTES = 1 << 20
MOST_FINDINGS_BYTES = 256 << 10
MOST_REASON_BYTES = 2000
MOST_WAITING = 2000  #: one more, and the oldest is rejected
MOST_LISTED = 200
BY_ITSELF = "loopbox"  #: who decided when nobody did


class AlreadyDecidedError(AgentError):
    """It was released or rejected before."""

    code: ClassVar[str] = "already_decided"
    status: ClassVar[int] = 409


@dataclass(frozen=True, slots=True)
class Held:
    """One text that was held back."""

    id: str
    run_id: str
    user: str
    kind: Kind
    score: int  #: 0 to 100
    findings: JsonValue
    text: str
    state: State
    created_at: datetime
    decided_at: datetime | None
    decided_by: str | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is to be held back, and why."""

    run_id: str
    user: str
    kind: Kind
    score: int  #: 0 to 100
    findings: JsonValue
    text: str


class Quarantine:
    """All that was held back."""

    def __init__(self, database: Database, *, clock: Clock = CLOCK, most_waiting: int = MOST_WAITING) -> None:
        self._database = database
        self._clock = clock
        self._most_waiting = most_waiting

    async def add(self, found: Finding) -> str:
        """Hold a text back; return the id. Raises TooLargeError, InvalidRecordError."""
        row = {
            "id": new_id("held"),
            "run_id": checked_id(found.run_id, "run's id"),
            "user_id": checked_user(found.user),
            "kind": found.kind,
            "score": max(0, min(found.score, 100)),
            "findings": encode(found.findings, most_bytes=MOST_FINDINGS_BYTES, what="findings"),
            "text": storable(found.text, most_bytes=MOST_TEXT_BYTES, what="held text"),
            "state": "waiting",
            "created_at": self._clock(),
        }

        def unit(connection: Connection) -> None:
            waiting = connection.execute(_COUNT).scalar_one()
            if waiting >= self._most_waiting:
                oldest = connection.execute(_OLDEST, {"most": waiting - self._most_waiting + 1}).scalars().all()
                connection.execute(
                    update(quarantine)
                    .where(quarantine.c.id.in_(oldest))
                    .values(
                        state="rejected",
                        decided_at=self._clock(),
                        decided_by=BY_ITSELF,
                        reason=f"More than {self._most_waiting} waited; the oldest was rejected.",
                    )
                )
            connection.execute(_INSERT, row)

        await self._database.write(unit)
        return str(row["id"])

    async def recent(
        self, state: State | None = "waiting", *, before: str | None = None, limit: int = 50
    ) -> list[Held]:
        """Return what is in a state, newest first; before: the id of the last one seen. Raises NotFoundError."""

        def unit(connection: Connection) -> list[Held]:
            wanted = select(quarantine)
            if state is not None:
                wanted = wanted.where(quarantine.c.state == state)
            if before is not None:
                seen = connection.execute(_ONE, {"id": asked_id(before, "held text")}).one_or_none()
                if seen is None:
                    raise _missing(before)
                tied = and_(quarantine.c.created_at == seen.created_at, quarantine.c.id < before)
                wanted = wanted.where(or_(quarantine.c.created_at < seen.created_at, tied))
            order = wanted.order_by(quarantine.c.created_at.desc(), quarantine.c.id.desc())
            return [_held(row) for row in connection.execute(order.limit(max(1, min(limit, MOST_LISTED))))]

        return await self._database.read(unit)

    async def get(self, held_id: str) -> Held:
        """Return one. Raises NotFoundError."""
        asked = {"id": asked_id(held_id, "held text")}
        row = await self._database.read(lambda connection: connection.execute(_ONE, asked).one_or_none())
        if row is None:
            raise _missing(held_id)
        return _held(row)

    async def release(self, held_id: str, by: str) -> Held:
        """Let it through. Raises NotFoundError, AlreadyDecidedError."""
        return await self._decide(held_id, "released", by, "")

    async def reject(self, held_id: str, by: str, reason: str) -> Held:
        """Keep it back for good. Raises NotFoundError, AlreadyDecidedError, TooLargeError."""
        return await self._decide(held_id, "rejected", by, reason)

    async def trim(self, *, older_than_s: float, keep: int) -> int:
        """Delete what was decided longer ago, or beyond the newest `keep`; return how many."""
        before = self._clock() - older_than_s

        def unit(connection: Connection) -> int:
            decided = quarantine.c.state != "waiting"
            newest = select(quarantine.c.id).where(decided).order_by(quarantine.c.created_at.desc()).limit(keep)
            old = or_(quarantine.c.decided_at < before, quarantine.c.id.not_in(newest))
            return connection.execute(delete(quarantine).where(decided, old)).rowcount

        return await self._database.write(unit)

    async def _decide(self, held_id: str, state: State, by: str, reason: str) -> Held:
        values = {
            "held": asked_id(held_id, "held text"),
            "to": state,
            "now": self._clock(),
            "by": checked_user(by),
            "why": storable(reason, most_bytes=MOST_REASON_BYTES, what="reason") or None,
        }

        def unit(connection: Connection) -> Held:
            changed = connection.execute(_DECIDE, values).rowcount
            row = connection.execute(_ONE, {"id": held_id}).one_or_none()
            if row is None:
                raise _missing(held_id)
            if not changed:
                raise AlreadyDecidedError(f"{held_id} was {row.state} by {row.decided_by} before; that stands.")
            return _held(row)

        return await self._database.write(unit)


_COUNT = select(func.count()).where(quarantine.c.state == "waiting")
_OLDEST = (
    select(quarantine.c.id)
    .where(quarantine.c.state == "waiting")
    .order_by(quarantine.c.created_at)
    .limit(bindparam("most"))
)
_INSERT = insert(quarantine)
_ONE = select(quarantine).where(quarantine.c.id == bindparam("id"))
_DECIDE = (
    update(quarantine)
    .where(quarantine.c.id == bindparam("held"), quarantine.c.state == "waiting")
    .values(state=bindparam("to"), decided_at=bindparam("now"), decided_by=bindparam("by"), reason=bindparam("why"))
)


def _missing(held_id: str) -> NotFoundError:
    return NotFoundError(f"There is no held text {plain(held_id)[:64]!r}.")


def _held(row: Row[Any]) -> Held:  # Any: SQLAlchemy types rows only in its ORM
    return Held(
        row.id,
        row.run_id,
        row.user_id,
        row.kind,
        row.score,
        decode(row.findings),
        row.text,
        row.state,
        moment(row.created_at),
        None if row.decided_at is None else moment(row.decided_at),
        row.decided_by,
        row.reason,
    )
