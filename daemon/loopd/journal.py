"""journal: owns the record of a rollout's steps, written before and after each effect.

A kill between any two leaves enough to resume or undo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loopd.errors import ConflictError
from loopd.state import Database, now
from loopd.steps import Step, key, kind


class StaleEpochError(ConflictError):
    """A newer loopd has started on this state; this one's step was refused and nothing was done."""

    code = "stale_epoch"


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRow:
    """One step as it went."""

    seq: int
    step: str
    key: str
    host: str
    state: Literal["begun", "done", "failed"]
    begun_at: str
    finished_at: str | None
    error: str


class Journal:
    """The journal in state.db, for one epoch of loopd."""

    def __init__(self, database: Database, *, epoch: int) -> None:
        self._database = database
        self._epoch = epoch

    async def settle(self) -> None:
        """Write of the steps that an earlier loopd died in the middle of that they are not known to be done."""
        await self._database.execute(
            "UPDATE journal SET state = 'failed', finished_at = ?, error = 'loopd ended in the middle of it'"
            " WHERE state = 'begun' AND epoch < ?",
            (now(), self._epoch),
        )

    async def begin(self, rollout: int, step: Step) -> int:
        """Write that a step is about to be done; return its row. Raises StaleEpochError."""
        async with self._database.transaction():
            row = await self._database.fetch_one("SELECT epoch FROM serving")
            if row is None or row["epoch"] != self._epoch:
                raise StaleEpochError("another loopd took over this state; stop this one")
            return await self._database.execute(
                "INSERT INTO journal (rollout, epoch, step, key, host, state, begun_at) VALUES (?,?,?,?,?,'begun',?)",
                (rollout, self._epoch, kind(step), key(step), step.host, now()),
            )

    async def done(self, seq: int) -> None:
        """Write that the step's effect is complete."""
        await self._database.execute("UPDATE journal SET state = 'done', finished_at = ? WHERE seq = ?", (now(), seq))

    async def failed(self, seq: int, error: str) -> None:
        """Write why the step failed."""
        await self._database.execute(
            "UPDATE journal SET state = 'failed', finished_at = ?, error = ? WHERE seq = ?",
            (now(), error[:2000], seq),
        )

    async def finished_keys(self, rollout: int) -> frozenset[str]:
        """Return the keys of the steps that are done."""
        rows = await self._database.fetch_all(
            "SELECT DISTINCT key FROM journal WHERE rollout = ? AND state = 'done'", (rollout,)
        )
        return frozenset(row["key"] for row in rows)

    async def rows(self, rollout: int) -> list[JournalRow]:
        """Return a rollout's steps in order."""
        rows = await self._database.fetch_all(
            "SELECT seq, step, key, host, state, begun_at, finished_at, error FROM journal"
            " WHERE rollout = ? ORDER BY seq",
            (rollout,),
        )
        return [JournalRow(**dict(row)) for row in rows]
