"""store: owns what the agent keeps, opened together: conversations, runs, memories, documents, what was held back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from loopbox_agent.call_journal import CallJournal
from loopbox_agent.database import Database, open_database
from loopbox_agent.errors import AgentError
from loopbox_agent.interactions import Interactions
from loopbox_agent.knowledge import Knowledge
from loopbox_agent.memory import Memories
from loopbox_agent.quarantine import Quarantine
from loopbox_agent.recovery import recover_runs
from loopbox_agent.run_log import RunLog
from loopbox_agent.settings import Settings
from loopbox_agent.store_backup import keep_backing_up
from loopbox_agent.threads import Threads

TRIM_S = 3600.0
STALE_S = 30 * 86_400.0  # ended runs and decided reviews that are older go
KEPT_RUNS = 100_000
KEPT_DECIDED = 10_000
KEPT_INTERACTIONS = 50_000

log = structlog.get_logger("agent.store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Everything that outlives a run."""

    database: Database
    threads: Threads
    run_log: RunLog
    calls: CallJournal
    memories: Memories
    knowledge: Knowledge
    quarantine: Quarantine
    interactions: Interactions
    workspaces: Path  #: one tar for each thread that has files

    def workspace(self, thread_id: str) -> Path:
        """Return where a thread's files are kept."""
        return self.workspaces / f"{thread_id}.tar"

    async def trim_forever(self, learn_s: float) -> None:
        """Delete what is old, little by little. learn_s: how long what is learnt from stays, in seconds."""
        while True:
            try:
                await self.run_log.trim(older_than_s=STALE_S, keep=KEPT_RUNS)
                await self.quarantine.trim(older_than_s=STALE_S, keep=KEPT_DECIDED)
                await self.interactions.trim(older_than_s=learn_s, keep=KEPT_INTERACTIONS)
            except AgentError as error:
                log.warning("store.not_trimmed", error=str(error))
            await asyncio.sleep(TRIM_S)


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """Open it; runs of an agent that died are interrupted then, and hold no thread. Raises DatabaseError."""
    folder = settings.state_dir
    url = settings.database_url or f"sqlite+aiosqlite:///{folder.absolute() / 'agent.db'}"
    workspaces, backups = folder / "workspaces", folder / "backups"
    await asyncio.to_thread(_make, workspaces, backups)
    async with open_database(url, password_file=settings.database_password_file) as database:
        store = Store(
            database=database,
            threads=Threads(database),
            run_log=RunLog(database),
            calls=CallJournal(database),
            memories=Memories(database),
            knowledge=Knowledge(database),
            quarantine=Quarantine(database),
            interactions=Interactions(database, learn=settings.learn),
            workspaces=workspaces,
        )
        if interrupted := await recover_runs(database):
            log.warning("runs.interrupted", runs=len(interrupted))
        await store.threads.release_all()
        tasks = [asyncio.create_task(store.trim_forever(settings.learn_days * 86_400.0), name="trim")]
        if settings.backup_every_s:
            work = keep_backing_up(database, backups, every_s=settings.backup_every_s, keep=settings.backups_kept)
            tasks.append(asyncio.create_task(work, name="backup"))
        try:
            yield store
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _make(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
