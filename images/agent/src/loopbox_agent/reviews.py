"""reviews: owns what follows a decision on something that was held back, and on people's data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from loopbox_agent.audit import Audit
from loopbox_agent.personal_data import erase, export
from loopbox_agent.principal import Principal
from loopbox_agent.quarantine import Held
from loopbox_agent.run_log import Ended
from loopbox_agent.store import Store
from loopbox_agent.workspaces import records_of, remove_archives


@dataclass(frozen=True, slots=True)
class Reviews:
    """Carries decisions out."""

    store: Store
    audit: Audit

    async def released(self, held: Held, by: Principal) -> None:
        """Give the user what was held back: the run is completed with it."""
        result: JsonValue = {"run_id": held.run_id, "status": "completed", "output": held.text, "released_by": by.user}
        await self.store.run_log.finish(held.run_id, Ended(status="completed", result=result))
        self.audit.tell("review.released", by, held.id, run=held.run_id, user_of=held.user, score=held.score)

    async def rejected(self, held: Held, by: Principal) -> None:
        """The run has failed."""
        error: JsonValue = {
            "error": {"code": "rejected", "message": held.reason or "A reviewer rejected it.", "details": {}}
        }
        await self.store.run_log.finish(held.run_id, Ended(status="failed", error=error))
        self.audit.tell("review.rejected", by, held.id, run=held.run_id, user_of=held.user, score=held.score)

    async def erase(self, user: str, by: Principal) -> dict[str, int]:
        """Erase everything about a user; return how many rows went, by table, and how many conversations' files."""
        archives = await self._archives(user)
        counts = await erase(self.store.database, user)
        if removed := await asyncio.to_thread(remove_archives, archives):
            counts["files"] = removed
        self.audit.tell("data.erased", by, user, rows=sum(counts.values()))
        return counts

    async def export(self, user: str) -> AsyncIterator[str]:
        """Yield everything about a user as JSON lines, the files of conversations last. Raises InvalidRecordError."""
        async for line in export(self.store.database, user):
            yield line
        async for record in records_of(await self._archives(user)):
            yield json.dumps(record)

    async def _archives(self, user: str) -> list[Path]:
        """Return where the files of a user's conversations are, or would be."""
        paths: list[Path] = []
        while page := await self.store.threads.recent(user, before=paths[-1].stem if paths else None, limit=200):
            paths += [self.store.workspace(thread.id) for thread in page]
        return paths
