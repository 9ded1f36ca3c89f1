"""ledger: owns the append-only record of what happened and why, chained by hash so that tampering shows.

Each row's hash is SHA-256 over the hash before it and the row's canonical JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import structlog

from loopd.state import Database, now

GENESIS = "0" * 64
PAGE = 500

Scalar = str | int | float | bool | None

log = structlog.get_logger("loopd.ledger")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that happened."""

    seq: int
    at: str  #: ISO 8601, UTC
    event: str  #: noun.verb, e.g. ``rollout.promoted``
    subject: str  #: what it is about
    cause: str  #: one sentence for a person
    correlation_id: str
    detail: Mapping[str, Scalar]
    hash: str

    def digest(self, previous: str) -> str:
        """Return the hash this entry must have after ``previous``."""
        body = [self.at, self.event, self.subject, self.cause, self.correlation_id, dict(self.detail)]
        return hashlib.sha256((previous + json.dumps(body, sort_keys=True)).encode()).hexdigest()


class Ledger:
    """The ledger in state.db, with a bell for those who follow it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._changed = asyncio.Condition()

    async def append(self, event: str, subject: str, cause: str, **detail: Scalar) -> Entry:
        """Write one entry, within the caller's transaction if there is one."""
        correlation_id = str(structlog.contextvars.get_contextvars().get("correlation_id", ""))
        async with self._database.transaction():
            last = await self._database.fetch_one("SELECT hash FROM ledger ORDER BY seq DESC LIMIT 1")
            draft = Entry(
                seq=0,
                at=now(),
                event=event,
                subject=subject,
                cause=cause,
                correlation_id=correlation_id,
                detail=detail,
                hash="",
            )
            digest = draft.digest(last["hash"] if last else GENESIS)
            seq = await self._database.execute(
                "INSERT INTO ledger (at, event, subject, cause, correlation_id, detail, hash) VALUES (?,?,?,?,?,?,?)",
                (draft.at, event, subject, cause, correlation_id, json.dumps(detail, sort_keys=True), digest),
            )
        log.info(event, subject=subject, cause=cause, **detail)
        async with self._changed:
            self._changed.notify_all()
        return Entry(
            seq=seq,
            at=draft.at,
            event=event,
            subject=subject,
            cause=cause,
            correlation_id=correlation_id,
            detail=detail,
            hash=digest,
        )

    async def read(self, *, after: int = 0, limit: int = PAGE) -> list[Entry]:
        """Return entries after a sequence number, oldest first, at most ``limit``."""
        rows = await self._database.fetch_all(
            "SELECT * FROM ledger WHERE seq > ? ORDER BY seq LIMIT ?", (after, min(limit, PAGE))
        )
        return [Entry(**{**dict(row), "detail": json.loads(row["detail"])}) for row in rows]

    async def last(self, subject: str, event_prefix: str = "") -> Entry | None:
        """Return the newest entry about a subject whose event starts so."""
        row = await self._database.fetch_one(
            "SELECT * FROM ledger WHERE subject = ? AND event GLOB ? ORDER BY seq DESC LIMIT 1",
            (subject, f"{event_prefix}*"),
        )
        return Entry(**{**dict(row), "detail": json.loads(row["detail"])}) if row else None

    async def newest(self) -> int:
        """Return the highest sequence number, 0 for none."""
        row = await self._database.fetch_one("SELECT max(seq) AS seq FROM ledger")
        return int(row["seq"] or 0) if row else 0

    async def follow(self, after: int) -> AsyncIterator[Entry]:
        """Yield entries after a sequence number, then each new one, for ever."""
        while True:
            async with self._changed:
                entries = await self.read(after=after)
                if not entries:
                    await self._changed.wait()
                    continue
            for entry in entries:
                after = entry.seq
                yield entry

    async def verify(self) -> int | None:
        """Return the sequence number of the first entry that does not fit the chain, None when all do."""
        previous, after = GENESIS, 0
        while entries := await self.read(after=after):
            for entry in entries:
                if entry.digest(previous) != entry.hash:
                    return entry.seq
                previous, after = entry.hash, entry.seq
        return None
