"""interactions: owns what the model may learn from: runs as they were, and what people said of them.

Kept only of those who let it: of everybody who has not said no, or of those alone who said yes. Who says no takes what
was kept back, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import JsonValue
from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from loopbox_agent.database import Database
from loopbox_agent.group_commit import Unit
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
    plain,
    storable,
)
from loopbox_agent.tables import consents, interactions

Learn = Literal["off", "asked", "everyone"]
Rating = Literal["good", "bad"]

MOST_BYTES: Final = 256 << 10  #: of one run's messages, and of its tools; a longer run is not kept
MOST_WORDS_BYTES: Final = 16 << 10  #: of a comment, and of a better answer
MOST_READ: Final = 500
_TRIM_STEP: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A run that ended, masked."""

    run_id: str
    user: str
    thread_id: str | None
    outcome: str  #: completed, failed or cancelled, or the code of what it failed of
    messages: JsonValue  #: as pydantic-ai dumps them, from this run's instruction on
    tools: JsonValue  #: [{"name", "description", "parameters"}], as they were offered


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """A run that was kept, and what was said of it."""

    number: int  #: to go on after
    run_id: str
    user: str
    thread_id: str | None
    outcome: str
    messages: JsonValue
    tools: JsonValue
    rating: Rating | None
    comment: str
    better: str  #: what the answer should have been
    created_at: datetime


class Interactions:
    """All of them. learn: of whom anything is kept."""

    def __init__(self, database: Database, *, learn: Learn = "everyone", clock: Clock = CLOCK) -> None:
        self._database = database
        self._clock = clock
        self.learn = learn

    def keep(self, seen: Seen) -> None:
        """Keep a run, if its user lets it; nobody waits for that. Raises TooLargeError, InvalidRecordError."""
        if self.learn != "off":
            self._database.post(self.keeping(seen))

    def keeping(self, seen: Seen) -> Unit[object]:
        """Return keep as a unit; it gives whether it was kept. Raises TooLargeError, InvalidRecordError."""
        row = {
            "run_id": checked_id(seen.run_id, "run's id"),
            "user_id": checked_user(seen.user),
            "thread_id": seen.thread_id,
            "outcome": seen.outcome[:64],
            "messages": encode(seen.messages, most_bytes=MOST_BYTES, what="run"),
            "tools": encode(seen.tools, most_bytes=MOST_BYTES, what="tools"),
            "comment": "",
            "better": "",
            "created_at": self._clock(),
        }

        def unit(connection: Connection) -> bool:
            said = connection.execute(_CONSENT, {"user": seen.user}).scalar_one_or_none()
            if not self._lets(said) or connection.execute(_OF_RUN, {"run": seen.run_id}).one_or_none() is not None:
                return False
            connection.execute(_INSERT, row)
            return True

        return unit

    async def rate(self, user: str, run_id: str, rating: Rating, comment: str = "", better: str = "") -> Interaction:
        """Write down what a user says of a run of theirs; the last word counts. Raises NotFoundError, TooLargeError."""
        values = {
            "run": asked_id(run_id, "run"),
            "said": rating,
            "words": storable(comment, most_bytes=MOST_WORDS_BYTES, what="comment"),
            "right": storable(better, most_bytes=MOST_WORDS_BYTES, what="better answer"),
        }

        def unit(connection: Connection) -> Interaction:
            row = connection.execute(_OF_RUN, {"run": run_id}).one_or_none()
            if row is None or row.user_id != user:
                raise NotFoundError(
                    f"Nothing of the run {plain(run_id)[:64]!r} was kept to learn from, so it cannot be rated: it is "
                    "under way, long gone, or you did not agree to it. `loopctl consent` shows whether you did."
                )
            connection.execute(_RATE, values)
            return _interaction(connection.execute(_OF_RUN, {"run": run_id}).one())

        return await self._database.write(unit)

    async def after(self, number: int, limit: int = 100) -> list[Interaction]:
        """Return those kept after a number, oldest first."""
        asked = {"after": number, "most": max(1, min(limit, MOST_READ))}
        rows = await self._database.read(lambda connection: connection.execute(_AFTER, asked).all())
        return [_interaction(row) for row in rows]

    async def agrees(self, user: str) -> bool:
        """Tell whether runs of a user are kept."""
        asked = {"user": checked_user(user)}
        said = await self._database.read(lambda connection: connection.execute(_CONSENT, asked).scalar_one_or_none())
        return self.learn != "off" and self._lets(said)

    async def decide(self, user: str, *, agree: bool) -> int:
        """Write down whether a user's runs may be kept; a no deletes what was. Returns how many were deleted."""
        row = {"user_id": checked_user(user), "learn": agree, "decided_at": self._clock()}

        def unit(connection: Connection) -> int:
            connection.execute(delete(consents).where(consents.c.user_id == user))
            connection.execute(insert(consents), row)
            kept = delete(interactions).where(interactions.c.user_id == user)
            return 0 if agree else connection.execute(kept).rowcount

        return await self._database.write(unit)

    async def trim(self, *, older_than_s: float, keep: int) -> int:
        """Delete what is older, or beyond the newest ``keep``; return how many."""
        before = self._clock() - older_than_s

        def unit(connection: Connection) -> int:
            beyond = max(0, connection.execute(select(func.count()).select_from(interactions)).scalar_one() - keep)
            oldest = select(interactions.c.id).order_by(interactions.c.id).limit(min(beyond, _TRIM_STEP))
            aged = select(interactions.c.id).where(interactions.c.created_at < before).limit(_TRIM_STEP)
            ids = [*connection.execute(oldest).scalars()] or [*connection.execute(aged).scalars()]
            connection.execute(delete(interactions).where(interactions.c.id.in_(ids)))
            return len(ids)

        trimmed = 0
        while step := await self._database.write(unit):
            trimmed += step
        return trimmed

    def _lets(self, said: bool | None) -> bool:  # noqa: FBT001 a column of the table
        return self.learn == "everyone" if said is None else said


def offered(tools: Sequence[tuple[str, str, JsonValue]]) -> JsonValue:
    """Return tools as they are kept: (name, description, schema of the arguments) each."""
    return [{"name": name, "description": words, "parameters": schema} for name, words, schema in tools]


_CONSENT = select(consents.c.learn).where(consents.c.user_id == bindparam("user"))
_OF_RUN = select(interactions).where(interactions.c.run_id == bindparam("run"))
_INSERT = insert(interactions)
_AFTER = (
    select(interactions)
    .where(interactions.c.id > bindparam("after"))
    .order_by(interactions.c.id)
    .limit(bindparam("most"))
)
_RATE = (
    update(interactions)
    .where(interactions.c.run_id == bindparam("run"))
    .values(rating=bindparam("said"), comment=bindparam("words"), better=bindparam("right"))
)


def _interaction(row: Row[Any]) -> Interaction:  # Any: SQLAlchemy types rows only in its ORM
    return Interaction(
        number=row.id,
        run_id=row.run_id,
        user=row.user_id,
        thread_id=row.thread_id,
        outcome=row.outcome,
        messages=decode(row.messages),
        tools=decode(row.tools),
        rating=row.rating,
        comment=row.comment,
        better=row.better,
        created_at=moment(row.created_at),
    )
