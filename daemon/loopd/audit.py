"""audit: owns the audit trail: every request, tool call and decision, chained by hash in a file of its own.

Each row's hash is SHA-256 over the hash before it and the row's canonical JSON, as in the ledger. The ledger gets the
newest hash from time to time (``audit.anchored``), so that a trail that was written anew as a whole shows, too.
Rows are written in batches: what waits in memory when loopd is killed is lost, except for what the agent sends, which
keeps it until it was taken. While loopd is down the gateway serves on, and the trail says since when it was blind.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from loopd.errors import LoopdError
from loopd.ledger import GENESIS, Ledger, Scalar
from loopd.state import now

FLUSH_S = 0.25
BATCH = 1000
MOST_WAITING = 20_000  # entries in memory; more are counted and dropped, so that a flood costs no memory
PRUNE_S = 600.0
PAGE = 500
ANCHOR_S = 3600.0
ANCHORED = "audit.anchored"
BEGAN = "audit.began"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    source TEXT NOT NULL,
    key TEXT,
    event TEXT NOT NULL,
    user TEXT NOT NULL,
    subject TEXT NOT NULL,
    correlation_id TEXT NOT NULL,
    detail TEXT NOT NULL,
    hash TEXT NOT NULL,
    UNIQUE (source, key)
) STRICT;
CREATE INDEX IF NOT EXISTS entries_user ON entries (user, seq);
CREATE TABLE IF NOT EXISTS origin (
    one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, hash TEXT NOT NULL
) STRICT;
PRAGMA user_version = 1;
"""

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger("loopd.audit")


class AuditError(LoopdError):
    """The audit trail cannot be used; what serves goes on serving."""

    code = "audit_unusable"
    status = 503


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One thing to write down."""

    event: str  #: noun.verb, e.g. ``tool.called``
    user: str = ""  #: who, '' for nobody known
    subject: str = ""  #: what it is about
    detail: Mapping[str, Scalar] = field(default_factory=dict)
    correlation_id: str = ""
    at: str = ""  #: ISO 8601, UTC; '': when it is taken
    source: str = "loopd"
    key: str | None = None  #: one key of a source is written once, however often it is sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A record that was written."""

    seq: int
    at: str
    source: str
    key: str | None
    event: str
    user: str
    subject: str
    correlation_id: str
    detail: Mapping[str, Scalar]
    hash: str

    def digest(self, previous: str) -> str:
        """Return the hash this entry must have after ``previous``."""
        body = [
            self.seq, self.at, self.source, self.key, self.event, self.user, self.subject, self.correlation_id,
            dict(self.detail),
        ]  # fmt: skip
        return hashlib.sha256((previous + json.dumps(body, sort_keys=True)).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What looking through the whole trail found."""

    entries: int
    first_bad: int | None  #: sequence number of the first entry that does not fit, None when all do
    why: str

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return self.first_bad is None


class Trail:
    """The open trail. One thread works on the file; nothing here blocks the event loop."""

    def __init__(self, connection: sqlite3.Connection, path: Path, *, keep_days: int, most: int) -> None:
        self._connection = connection
        self._path = path
        self._keep = timedelta(days=keep_days)
        self._most = most
        self._lock = asyncio.Lock()
        self._waiting: deque[Record] = deque()
        self._dropped = 0
        self._wake = asyncio.Event()
        self.trouble = ""  #: why entries could not be written, '' when they were

    def add(self, record: Record) -> None:
        """Have a record written soon."""
        if len(self._waiting) >= MOST_WAITING:
            self._dropped += 1
            return
        self._waiting.append(record)
        self._wake.set()

    async def write(self, records: Sequence[Record]) -> tuple[Record, ...]:
        """Write records now, all or none; return those that were new. Raises AuditError."""
        return await self._threaded(self._insert, tuple(records))

    async def flush(self) -> None:
        """Write what waits. Raises AuditError; what waits then waits on."""
        while self._waiting or self._dropped:
            batch = [self._waiting[i] for i in range(min(BATCH, len(self._waiting)))]
            dropped = self._dropped
            lost = [Record(event="audit.dropped", subject="audit", detail={"entries": dropped})] if dropped else []
            await self.write([*batch, *lost])
            self._dropped -= dropped
            for _ in batch:
                self._waiting.popleft()

    async def run_forever(self) -> None:
        """Write what comes, and forget what is older than it is kept."""
        pruned = 0.0
        while True:
            await self._wake.wait()
            await asyncio.sleep(FLUSH_S)  # more comes, and costs one transaction together
            self._wake.clear()
            try:
                await self.flush()
                if asyncio.get_running_loop().time() - pruned > PRUNE_S:
                    pruned = asyncio.get_running_loop().time()
                    await self._threaded(self._prune)
                self.trouble = ""
            except AuditError as error:
                self.trouble = str(error)
                log.warning("audit.trouble", error=str(error))
                self._wake.set()

    async def anchor_forever(self, ledger: Ledger) -> None:
        """Put the newest hash into the ledger every hour in which something was written."""
        last = 0
        while True:
            await asyncio.sleep(ANCHOR_S)
            last = await self.anchor(ledger, after=last)

    async def anchor(self, ledger: Ledger, *, after: int = 0) -> int:
        """Put the newest hash into the ledger, if anything came after a sequence number; return the newest."""
        await self.flush()
        seq, digest = await self._threaded(_head, self._connection)
        if seq > after:
            await ledger.append(ANCHORED, "audit", f"the audit trail had {seq} entries", seq=seq, hash=digest)
        return seq

    async def read(self, *, after: int = 0, limit: int = PAGE, user: str = "", event: str = "") -> list[Entry]:
        """Return entries after a sequence number, oldest first; of one user, of events that start so."""
        return await self._threaded(self._select, after, min(limit, PAGE), user, event)

    async def last(self, limit: int, *, user: str = "", event: str = "") -> list[Entry]:
        """Return the newest entries, oldest first."""
        return await self._threaded(self._newest, min(limit, PAGE), user, event)

    async def verify(self, anchors: Iterable[tuple[int, str]] = ()) -> Verdict:
        """Look through the whole trail, and whether it has the hashes that the ledger was told."""
        await self.flush()
        return await self._threaded(self._check, dict(anchors))

    async def _threaded(self, call: Callable[P, T], *values: P.args, **named: P.kwargs) -> T:
        async with self._lock:
            work = asyncio.ensure_future(asyncio.to_thread(call, *values, **named))
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait({work})  # nobody else may use the connection meanwhile
                raise
            except sqlite3.Error as error:
                raise AuditError(
                    f"{self._path} cannot be written or read ({error}); look at `df -h` and `loopctl doctor`"
                ) from error

    def _insert(self, records: tuple[Record, ...]) -> tuple[Record, ...]:
        written: list[Record] = []
        with self._transaction():
            seq, previous = _head(self._connection)
            for record in records:
                entry = Entry(
                    seq=seq + 1,
                    at=record.at or now(),
                    source=record.source,
                    key=record.key,
                    event=record.event,
                    user=record.user,
                    subject=record.subject,
                    correlation_id=record.correlation_id,
                    detail=record.detail,
                    hash="",
                )
                digest = entry.digest(previous)
                cursor = self._connection.execute(
                    "INSERT OR IGNORE INTO entries"
                    " (seq, at, source, key, event, user, subject, correlation_id, detail, hash)"
                    " VALUES (?,?,?,?,?,?,?,?,?,?)",
                    (
                        entry.seq, entry.at, entry.source, entry.key, entry.event, entry.user, entry.subject,
                        entry.correlation_id, json.dumps(dict(entry.detail), sort_keys=True), digest,
                    ),
                )  # fmt: skip
                if cursor.rowcount:
                    seq, previous = entry.seq, digest
                    written.append(record)
        return tuple(written)

    def _prune(self) -> None:
        oldest = (datetime.now(UTC) - self._keep).isoformat()
        with self._transaction():
            row = self._connection.execute(
                "SELECT seq, hash FROM entries WHERE at < ? OR seq <= (SELECT max(seq) FROM entries) - ?"
                " ORDER BY seq DESC LIMIT 1",
                (oldest, self._most),
            ).fetchone()
            if row:
                self._connection.execute("DELETE FROM entries WHERE seq <= ?", (row[0],))
                self._connection.execute("INSERT OR REPLACE INTO origin VALUES (1, ?, ?)", tuple(row))

    def _select(self, after: int, limit: int, user: str, event: str) -> list[Entry]:
        rows = self._connection.execute(
            "SELECT * FROM entries WHERE seq > ? AND (? = '' OR user = ?) AND event GLOB ? ORDER BY seq LIMIT ?",
            (after, user, user, f"{event}*", limit),
        )
        return [_entry(row) for row in rows]

    def _newest(self, limit: int, user: str, event: str) -> list[Entry]:
        rows = self._connection.execute(
            "SELECT * FROM entries WHERE (? = '' OR user = ?) AND event GLOB ? ORDER BY seq DESC LIMIT ?",
            (user, user, f"{event}*", limit),
        )
        return [_entry(row) for row in rows][::-1]

    def _check(self, anchors: Mapping[int, str]) -> Verdict:
        seq, previous = first, _ = _origin(self._connection)
        count = 0
        for row in self._connection.execute("SELECT * FROM entries ORDER BY seq"):
            entry = _entry(row)
            if entry.seq != seq + 1:
                return Verdict(entries=count, first_bad=seq + 1, why=f"entries {seq + 1} to {entry.seq - 1} are gone")
            if entry.digest(previous) != entry.hash:
                return Verdict(entries=count, first_bad=entry.seq, why="it was changed after it was written")
            if anchors.get(entry.seq, entry.hash) != entry.hash:
                return Verdict(entries=count, first_bad=entry.seq, why="the ledger has another hash for it")
            seq, previous, count = entry.seq, entry.hash, count + 1
        if missing := [known for known in anchors if known > max(seq, first)]:
            return Verdict(
                entries=count, first_bad=seq + 1, why=f"the ledger knows entry {max(missing)}, which is gone"
            )
        return Verdict(entries=count, first_bad=None, why="")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise


def goes_on(trail: Path, copy: Path) -> bool:
    """Tell whether a trail that nobody writes to is a copy, or one with more behind. Blocks."""
    try:
        with contextlib.closing(_connect(copy)) as older, contextlib.closing(_connect(trail)) as newer:
            seq, digest = _head(older)
            if known := newer.execute("SELECT hash FROM entries WHERE seq = ?", (seq,)).fetchone():
                return str(known[0]) == digest
            begins = _origin(newer)
            # What was forgotten by age cannot be compared any more; such a trail is the longer one.
            return begins == (seq, digest) or begins[0] > seq
    except sqlite3.Error:
        return False


def _head(connection: sqlite3.Connection) -> tuple[int, str]:
    row = connection.execute("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
    return (int(row[0]), str(row[1])) if row else _origin(connection)


def _origin(connection: sqlite3.Connection) -> tuple[int, str]:
    row = connection.execute("SELECT seq, hash FROM origin").fetchone()
    return (int(row[0]), str(row[1])) if row else (0, GENESIS)


def _entry(row: sqlite3.Row) -> Entry:
    return Entry(**{**dict(row), "detail": json.loads(row["detail"])})


@contextlib.asynccontextmanager
async def open_trail(path: Path, *, keep_days: int, most: int) -> AsyncIterator[Trail]:
    """Open the trail, made if absent. Raises AuditError."""
    try:
        connection = await asyncio.to_thread(_connect, path)
    except sqlite3.Error as error:
        raise AuditError(
            f"{path} cannot be used ({error}). It was left as it is; move it away to begin a new trail"
        ) from error
    trail = Trail(connection, path, keep_days=keep_days, most=most)
    before = await trail.last(1)
    await trail.write([Record(event=BEGAN, subject="audit", detail={"blind_since": before[0].at if before else None})])
    try:
        yield trail
        with contextlib.suppress(AuditError):
            await trail.flush()
    finally:
        await asyncio.to_thread(connection.close)


def _connect(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection
