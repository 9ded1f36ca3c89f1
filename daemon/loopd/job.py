"""job: owns the records of the trainer's jobs: asked for, running, ended. One runs at a time."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args

from pydantic import JsonValue

from loopd.errors import ConflictError, NotFoundError
from loopd.ledger import Ledger
from loopd.state import Database, now

Kind = Literal["curate", "train", "score"]
Status = Literal["queued", "running", "done", "failed", "cancelled"]
Ending = Literal["done", "failed", "cancelled"]

Figure = str | int | float | bool | None

JOB_PATTERN = r"^job-[0-9a-f]{12}$"
MOST_QUEUED = 32
ENDED: frozenset[Status] = frozenset(get_args(Ending))


class JobEndedError(ConflictError):
    """The job has ended; nothing was changed."""

    code = "job_ended"


class QueueFullError(ConflictError):
    """As many jobs wait as may; nothing was added."""

    code = "queue_full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job as it stands."""

    id: str
    kind: Kind
    status: Status
    cause: str  #: who or what asked for it
    name: str  #: what comes of it is called so
    spec: Mapping[str, JsonValue]  #: as the trainer reads it
    starts: int = 0  #: of its container
    stopping: str = ""  #: why it is to end; '': it is not
    code: str = ""  #: of a failure, a stable word
    reason: str = ""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ENDED


class Jobs:
    """The jobs in state.db."""

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger

    async def add(self, kind: Kind, name: str, spec: Mapping[str, JsonValue], cause: str) -> Job:
        """Put a job into the queue. Raises QueueFullError."""
        job_id = f"job-{secrets.token_hex(6)}"
        async with self._database.transaction():
            row = await self._database.fetch_one("SELECT count(*) AS n FROM jobs WHERE status = 'queued'")
            if row and row["n"] >= MOST_QUEUED:
                raise QueueFullError(f"{MOST_QUEUED} jobs wait already; nothing was added. Cancel some of them first.")
            await self._database.execute(
                "INSERT INTO jobs (id, kind, status, cause, name, spec, created_at) VALUES (?,?,'queued',?,?,?,?)",
                (job_id, kind, cause, name, json.dumps(spec, sort_keys=True), now()),
            )
            await self._ledger.append("job.queued", job_id, cause, kind=kind)
        return await self.get(job_id)

    async def get(self, job_id: str) -> Job:
        """Return one. Raises NotFoundError."""
        row = await self._database.fetch_one("SELECT * FROM jobs WHERE id = ?", (job_id,))
        if row is None:
            raise NotFoundError(f"there is no job {job_id}: `loopctl train list` shows all")
        return _job(row)

    async def newest(self, limit: int = 50) -> list[Job]:
        """Return the newest ones, newest first."""
        rows = await self._database.fetch_all(
            "SELECT * FROM jobs ORDER BY created_at DESC, rowid DESC LIMIT ?", (limit,)
        )
        return [_job(row) for row in rows]

    async def open(self) -> list[Job]:
        """Return those that have not ended: the one that runs first, then the queue in its order."""
        rows = await self._database.fetch_all(
            "SELECT * FROM jobs WHERE status IN ('running', 'queued') ORDER BY status = 'queued', created_at, rowid"
        )
        return [_job(row) for row in rows]

    async def started(self, job: Job) -> None:
        """Write down that its container is about to be started, once more."""
        async with self._database.transaction():
            await self._database.execute(
                "UPDATE jobs SET status = 'running', starts = starts + 1, started_at = coalesce(started_at, ?)"
                " WHERE id = ?",
                (now(), job.id),
            )
            why = "its container ended" if job.starts else "it is its turn"
            await self._ledger.append("job.started", job.id, why, start=job.starts + 1)

    async def stop(self, job_id: str, why: str) -> Job:
        """Have it end; one that waits ends at once. Raises NotFoundError, JobEndedError."""
        async with self._database.transaction():
            job = await self.get(job_id)
            if job.ended:
                raise JobEndedError(f"{job_id} has ended ({job.status}); nothing was changed")
            if job.status == "queued":
                await self.finish(job, "cancelled", reason=why)
            elif not job.stopping:
                await self._database.execute("UPDATE jobs SET stopping = ? WHERE id = ?", (why, job_id))
        return await self.get(job_id)

    async def finish(
        self, job: Job, status: Ending, *, code: str = "", reason: str = "", figures: Mapping[str, Figure] | None = None
    ) -> None:
        """Write down how it ended."""
        async with self._database.transaction():
            await self._database.execute(
                "UPDATE jobs SET status = ?, code = ?, reason = ?, figures = ?, ended_at = ? WHERE id = ?",
                (status, code, reason[:2000], json.dumps(dict(figures or {}), sort_keys=True), now(), job.id),
            )
            await self._ledger.append(f"job.{status}", job.id, reason[:2000] or "it came to its end", code=code)

    async def resume(self, job_id: str, why: str) -> Job:
        """Put one that failed or was cancelled back into the queue; it goes on from its last checkpoint.

        Raises NotFoundError, ConflictError.
        """
        async with self._database.transaction():
            job = await self.get(job_id)
            if job.status not in {"failed", "cancelled"}:
                raise ConflictError(f"{job_id} is {job.status}; only one that failed or was cancelled can go on")
            await self._database.execute(
                "UPDATE jobs SET status = 'queued', starts = 0, stopping = '', code = '', reason = '',"
                " ended_at = NULL WHERE id = ?",
                (job_id,),
            )
            await self._ledger.append("job.queued", job_id, why, kind=job.kind)
        return await self.get(job_id)


def _job(row: sqlite3.Row) -> Job:
    def moment(text: str | None) -> datetime | None:
        return datetime.fromisoformat(text) if text else None

    return Job(
        id=row["id"],
        kind=row["kind"],
        status=row["status"],
        cause=row["cause"],
        name=row["name"],
        spec=json.loads(row["spec"]),
        starts=row["starts"],
        stopping=row["stopping"],
        code=row["code"],
        reason=row["reason"],
        figures=json.loads(row["figures"]),
        created_at=datetime.fromisoformat(row["created_at"]),
        started_at=moment(row["started_at"]),
        ended_at=moment(row["ended_at"]),
    )
