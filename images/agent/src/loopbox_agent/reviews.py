"""reviews: owns what follows a decision on something that was held back, and on people's data."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from loopbox_agent.audit import Audit
from loopbox_agent.personal_data import erase
from loopbox_agent.principal import Principal
from loopbox_agent.quarantine import Held
from loopbox_agent.run_log import Ended
from loopbox_agent.store import Store


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
        """Erase everything about a user, files of conversations too; return how many rows went, by table."""
        files: list[Path] = []
        while page := await self.store.threads.recent(user, before=files[-1].stem if files else None, limit=200):
            files += [self.store.workspace(thread.id) for thread in page]
        counts = await erase(self.store.database, user)
        await asyncio.to_thread(_remove, files)
        self.audit.tell("data.erased", by, user, rows=sum(counts.values()))
        return counts


def _remove(files: Iterable[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)
