"""restarts: owns the record of which unit was restarted when and why; the back-off is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from loopd.cause import CRASHES, Cause, Code
from loopd.state import Database, now

RESTARTS_READ = 32  # of a unit, newest; more would not change the back-off


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """One restart of a unit."""

    unit: str
    at: datetime
    cause: str
    code: Code


class Restarts:
    """The restarts in state.db; they survive loopd, and so does the back-off made of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, unit: str, cause: Cause) -> None:
        """Write one down."""
        await self._database.execute(
            "INSERT INTO restarts (unit, at, cause, code) VALUES (?,?,?,?)",
            (unit, now(), cause.words[:2000], cause.code.value),
        )

    async def of(self, unit: str) -> list[Restart]:
        """Return the newest restarts of a unit, oldest first."""
        rows = await self._database.fetch_all(
            "SELECT unit, at, cause, code FROM restarts WHERE unit = ? ORDER BY seq DESC LIMIT ?",
            (unit, RESTARTS_READ),
        )
        return [
            Restart(unit=r["unit"], at=datetime.fromisoformat(r["at"]), cause=r["cause"], code=Code(r["code"]))
            for r in reversed(rows)
        ]

    async def crashes(self, unit: str) -> list[datetime]:
        """Return when the unit was started anew for its own fault, newest RESTARTS_READ, oldest first."""
        return [restart.at for restart in await self.of(unit) if restart.code in CRASHES]

    async def count(self, unit: str) -> int:
        """Return how often a unit was restarted."""
        row = await self._database.fetch_one("SELECT count(*) AS n FROM restarts WHERE unit = ?", (unit,))
        return int(row["n"]) if row else 0
