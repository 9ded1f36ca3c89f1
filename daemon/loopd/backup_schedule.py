"""backup_schedule: owns when backups are made by themselves, and what the ledger says of each that is made."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from loopd.backup import Manifest, Reason
from loopd.backups import Shelf, Stored
from loopd.errors import LoopdError
from loopd.ledger import Ledger
from loopd.state import StateError

FIRST_S = 300.0  # after the ledger's first entry: a state without one is hardly worth a backup
RETRY_S = 600.0
LOOK_S = 60.0  # the clock may be set while one waits

log = structlog.get_logger("loopd.backups")


@dataclass(frozen=True, kw_only=True)
class Backups:
    """Makes backups by command and by the clock."""

    shelf: Shelf
    ledger: Ledger
    every_s: float  #: 0: only by command
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    async def create(self, reason: Reason) -> tuple[Stored, Manifest]:
        """Make one; it is finished even when the caller goes. Raises BackupError, BackupBusyError."""
        return await asyncio.shield(asyncio.ensure_future(self._create(reason)))

    async def _create(self, reason: Reason) -> tuple[Stored, Manifest]:
        stored, manifest = await asyncio.to_thread(self.shelf.make, reason)
        with contextlib.suppress(StateError):  # the backup is there, whether or not it can be written down
            await self.ledger.append(
                "backup.made",
                stored.name,
                "asked for by the operator" if reason == "command" else "it was time",
                ledger_length=manifest.ledger_length,
                releases=manifest.releases,
            )
        return stored, manifest

    async def run_forever(self) -> None:
        """Make one whenever it is time. What was made before a restart counts."""
        while True:
            try:
                wait = await self.due_s()
                if wait is None or wait > 0:
                    await self.sleep(LOOK_S if wait is None else min(wait, LOOK_S))
                else:
                    await self.create("scheduled")
            except LoopdError as error:
                log.warning("backup.failed", error=str(error))
                with contextlib.suppress(StateError):
                    await self.ledger.append("backup.failed", "scheduled", str(error)[:1000])
                await self.sleep(RETRY_S)

    async def due_s(self) -> float | None:
        """Return the seconds until the next one, 0 or less when it is time, None for never."""
        if self.every_s == 0:
            return None
        now = self.clock()
        times = [
            stored.at
            for stored in await asyncio.to_thread(self.shelf.stored)
            if stored.reason == "scheduled" and stored.at <= now
        ]
        if times:
            return (max(times) + timedelta(seconds=self.every_s) - now).total_seconds()
        first = await self.ledger.read(limit=1)
        begun = datetime.fromisoformat(first[0].at) if first else now
        if begun > now:  # written by a clock that ran ahead
            return 0.0
        return (begun + timedelta(seconds=min(FIRST_S, self.every_s)) - now).total_seconds()
