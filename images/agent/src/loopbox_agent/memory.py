"""memory: owns what the agent remembers, in three tiers.

Working memory is a run's own and goes with it; session memory is a thread's notes; long-term memory is a user's, found
by its words. When a user's long-term memory is over a limit, what was least recently remembered or recalled goes first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import Column, Connection, Row, Table, bindparam, delete, func, insert, select, update

from loopbox_agent.database import Database
from loopbox_agent.records import (
    CLOCK,
    Clock,
    InvalidRecordError,
    NotFoundError,
    StoreLimitError,
    checked_user,
    decode,
    encode,
    moment,
    storable,
)
from loopbox_agent.tables import memories, runs, session_notes, threads, working_notes
from loopbox_agent.text_search import by_recency, find_rows

MOST_NOTES = 200  #: of one run, and of one thread
MOST_NOTE_BYTES = 64 << 10
MOST_NAME_BYTES = 128
MOST_MEMORY_BYTES = 8 << 10
MOST_TAGS = 16
MOST_TAG_BYTES = 64
MOST_SOURCE_BYTES = 200
HALF_LIFE_DAYS = 30.0  #: after which age has taken a quarter of a memory's rank, of at most a half
MOST_RECALLED = 100


@dataclass(frozen=True, slots=True)
class Memory:
    """One thing remembered about or for a user."""

    id: int
    text: str
    tags: tuple[str, ...]
    source: str  #: where it came from, such as a run's id
    created_at: datetime
    used_at: datetime  #: last remembered or recalled
    rank: float = 0.0  #: 0 to 1, in what recall returns


@dataclass(frozen=True, slots=True)
class Quota:
    """How much long-term memory one user may have."""

    count: int = 2000
    size: int = 4 << 20  #: bytes


@dataclass(frozen=True, slots=True)
class _Notes:
    """Named JSON values that belong to a run or a thread."""

    database: Database
    clock: Clock
    table: Table
    key: Column[str]
    owners: Table

    async def set(self, owner: str, name: str, value: JsonValue) -> None:
        """Keep a value under a name. Raises NotFoundError, TooLargeError, StoreLimitError."""
        clean = storable(name, most_bytes=MOST_NAME_BYTES, what="note's name")
        body = encode(value, most_bytes=MOST_NOTE_BYTES, what="note")
        values: dict[str, object] = {"body": body}
        if "updated_at" in self.table.c:
            values["updated_at"] = self.clock()
        mine = self.key == owner

        def unit(connection: Connection) -> None:
            named = (mine, self.table.c.name == clean)
            if connection.execute(update(self.table).where(*named).values(values)).rowcount:
                return
            if connection.execute(select(self.owners.c.id).where(self.owners.c.id == owner)).one_or_none() is None:
                raise NotFoundError(f"There is no {owner!r} to keep a note for.")
            if connection.execute(select(func.count()).where(mine)).scalar_one() >= MOST_NOTES:
                raise StoreLimitError(f"{owner} has {MOST_NOTES} notes, as many as may be; delete one first.")
            connection.execute(insert(self.table).values({self.key.name: owner, "name": clean, **values}))

        await self.database.write(unit)

    async def all(self, owner: str) -> dict[str, JsonValue]:
        """Return all values by name, in order of names."""
        wanted = select(self.table.c.name, self.table.c.body).where(self.key == owner).order_by(self.table.c.name)
        rows = await self.database.read(lambda connection: connection.execute(wanted).all())
        return {row.name: decode(row.body) for row in rows}

    async def delete(self, owner: str, name: str) -> bool:
        """Forget a value; False when there is none."""
        gone = delete(self.table).where(self.key == owner, self.table.c.name == name)
        return await self.database.write(lambda connection: connection.execute(gone).rowcount > 0)


class Memories:
    """The three tiers: `working` by run, `session` by thread, long-term by user."""

    def __init__(self, database: Database, *, quota: Quota = Quota(), clock: Clock = CLOCK) -> None:
        self.working = _Notes(database, clock, working_notes, working_notes.c.run_id, runs)
        self.session = _Notes(database, clock, session_notes, session_notes.c.thread_id, threads)
        self._database = database
        self._quota = quota
        self._clock = clock

    async def remember(self, user: str, text: str, *, tags: Iterable[str] = (), source: str = "") -> Memory:
        """Keep a text; the same text again (but for case and spaces) is the same memory, with the tags of both.

        Over the user's limits, the least recently used memories are forgotten. Raises InvalidRecordError,
        TooLargeError.
        """
        checked_user(user)
        clean = storable(text, most_bytes=MOST_MEMORY_BYTES, what="memory").strip()
        if not clean:
            raise InvalidRecordError("The memory is empty; nothing was kept.")
        wanted = [storable(tag, most_bytes=MOST_TAG_BYTES, what="tag").strip() for tag in tags]
        origin = storable(source, most_bytes=MOST_SOURCE_BYTES, what="source")
        digest = hashlib.sha256(" ".join(clean.casefold().split()).encode()).hexdigest()

        def unit(connection: Connection) -> Memory:
            now = self._clock()
            known = connection.execute(_SAME, {"user": user, "digest": digest}).one_or_none()
            if known is not None:
                labels = _tags([*_memory(known).tags, *wanted])
                connection.execute(_AGAIN, {"memory": known.id, "labels": labels, "now": now})
                row = connection.execute(_ONE, {"memory": known.id}).one()
                return _memory(row)
            made = connection.execute(
                _INSERT,
                {
                    "user_id": user,
                    "digest": digest,
                    "text": clean,
                    "tags": _tags(wanted),
                    "source": origin,
                    "size": len(clean.encode()),
                    "created_at": now,
                    "used_at": now,
                },
            )
            self._evict(connection, user)
            (key,) = made.inserted_primary_key or (0,)
            return Memory(key, clean, tuple(decode_tags(_tags(wanted))), origin, moment(now), moment(now))

        return await self._database.write(unit)

    async def recall(self, user: str, query: str, limit: int = 5) -> list[Memory]:
        """Return memories that hold words of the query, best first by words and by last use; counts as a use."""
        most = max(1, min(limit, MOST_RECALLED))
        now = self._clock()

        def unit(connection: Connection) -> list[Memory]:
            hits = {hit.row: hit for hit in find_rows(connection, "memories", [user], query, most * 4)}
            rows = {
                row.id: row for row in connection.execute(select(memories).where(memories.c.id.in_(list(hits)))).all()
            }
            ranked = by_recency(
                [(hit, rows[hit.row].used_at) for hit in hits.values()], now=now, half_life_days=HALF_LIFE_DAYS
            )
            return [_memory(rows[hit.row], rank) for hit, rank in ranked[:most]]

        found = await self._database.read(unit)
        if found:
            used = update(memories).where(memories.c.id.in_([one.id for one in found])).values(used_at=now)
            self._database.post(lambda connection: connection.execute(used))
        return found

    async def all(self, user: str, *, before: int | None = None, limit: int = 100) -> list[Memory]:
        """Return memories, newest first; before: the id of the last one seen."""
        wanted = select(memories).where(memories.c.user_id == user)
        if before is not None:
            wanted = wanted.where(memories.c.id < before)
        wanted = wanted.order_by(memories.c.id.desc()).limit(max(1, min(limit, 1000)))
        return [_memory(row) for row in await self._database.read(lambda connection: connection.execute(wanted).all())]

    async def forget(self, user: str, memory_id: int) -> None:
        """Delete a memory. Raises NotFoundError, for other people's, too."""
        gone = delete(memories).where(memories.c.id == memory_id, memories.c.user_id == user)
        if not await self._database.write(lambda connection: connection.execute(gone).rowcount):
            raise NotFoundError(f"There is no memory {memory_id}.")

    def _evict(self, connection: Connection, user: str) -> None:
        count, size = connection.execute(_USED, {"user": user}).one()
        if count <= self._quota.count and size <= self._quota.size:
            return
        rows = connection.execute(_BY_USE, {"user": user}).all()
        gone = evicted([(row.id, row.size) for row in rows], self._quota)
        connection.execute(delete(memories).where(memories.c.id.in_(gone)))


def evicted(oldest_first: Sequence[tuple[int, int]], quota: Quota) -> list[int]:
    """Return which of (id, bytes) go, so that the rest keeps to the quota; the newest always stays."""
    count = len(oldest_first)
    size = sum(one for _, one in oldest_first)
    gone = []
    for key, bytes_of_it in oldest_first[:-1]:
        if count <= quota.count and size <= quota.size:
            break
        gone.append(key)
        count -= 1
        size -= bytes_of_it
    return gone


def decode_tags(text: str) -> list[str]:
    """Return the tags of a column."""
    value = decode(text)
    return [str(tag) for tag in value] if isinstance(value, list) else []


_SAME = select(memories).where(memories.c.user_id == bindparam("user"), memories.c.digest == bindparam("digest"))
_ONE = select(memories).where(memories.c.id == bindparam("memory"))
_AGAIN = (
    update(memories)
    .where(memories.c.id == bindparam("memory"))
    .values(tags=bindparam("labels"), used_at=bindparam("now"))
)
_INSERT = insert(memories)
_USED = select(func.count(), func.coalesce(func.sum(memories.c.size), 0)).where(memories.c.user_id == bindparam("user"))
_BY_USE = (
    select(memories.c.id, memories.c.size)
    .where(memories.c.user_id == bindparam("user"))
    .order_by(memories.c.used_at, memories.c.id)
)


def _tags(tags: Iterable[str]) -> str:
    kept = list(dict.fromkeys(tag for tag in tags if tag))[:MOST_TAGS]
    return encode(kept, most_bytes=MOST_TAGS * (MOST_TAG_BYTES * 6 + 3) + 2, what="tags")


def _memory(row: Row[Any], rank: float = 0.0) -> Memory:  # Any: SQLAlchemy types rows only in its ORM
    return Memory(
        row.id,
        row.text,
        tuple(decode_tags(row.tags)),
        row.source,
        moment(row.created_at),
        moment(row.used_at),
        rank,
    )
