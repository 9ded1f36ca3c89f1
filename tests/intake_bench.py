"""intake_bench: a watcher and an intake over real files and a real state.db, with a clock that the test moves."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from loopd.blobs import Blobs
from loopd.inspection import Inspected, check
from loopd.intake import Intake
from loopd.ledger import Ledger
from loopd.metrics import build_metrics
from loopd.registry import Registry
from loopd.rollout import Rollouts
from loopd.state import Database
from loopd.units import Layout
from loopd.watch import Watcher


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    layout: Layout
    registry: Registry
    rollouts: Rollouts
    ledger: Ledger
    clock: Clock
    watcher: Watcher
    intake: Intake
    inspected: list[str] = field(default_factory=list)

    @property
    def incoming(self) -> Path:
        return self.layout.incoming

    async def settle(self, seconds: float = 2.0) -> None:
        """Look, let time pass, look again."""
        await self.watcher.look()
        self.clock.now += seconds
        await self.watcher.look()

    def rejected(self) -> dict[str, str]:
        """Return file name -> code of what was refused."""
        found = {}
        for note in self.layout.rejected.glob("*.reason.json"):
            body = json.loads(note.read_text())
            assert body["reason"]
            assert os.path.lexists(note.with_name(note.name.removesuffix(".reason.json")))
            found[body["file"]] = body["code"]
        return found

    def blobs(self) -> set[str]:
        return {path.name for path in self.layout.blobs.iterdir()}

    async def names(self) -> set[str]:
        return {listed.release.name for listed in await self.registry.releases()}

    def changed(self, **fields: object) -> None:
        """Give the watcher an intake that differs in these fields."""
        kept = {name: getattr(self.intake, name) for name in self.intake.__dataclass_fields__}
        self.intake = Intake(**{**kept, **fields})
        self.watcher.intake = self.intake


def make_bench(home: Path, database: Database) -> Bench:
    """Make the directories below ``home`` and everything over them."""
    layout = Layout(home, home / "run")
    for path in (layout.incoming, layout.rejected, layout.blobs, layout.engines):
        path.mkdir(parents=True)
    registry, ledger, clock = Registry(database), Ledger(database), Clock()
    rollouts = Rollouts(database, registry, ledger)
    inspected: list[str] = []

    async def engine_image() -> str:
        return "sha256:engine"

    async def inspect(path: Path) -> Inspected:
        inspected.append(path.name)
        return await check(path)

    intake = Intake(
        layout=layout,
        registry=registry,
        rollouts=rollouts,
        ledger=ledger,
        metrics=build_metrics(),
        engine_image=engine_image,
        inspect=inspect,
        num_ctx=2048,
        max_model_bytes=10 << 20,
        blobs=Blobs(layout),
        free_bytes=0,
    )
    watcher = Watcher(directory=layout.incoming, intake=intake, settle_s=1.0, stale_s=60.0, clock=clock)
    return Bench(layout, registry, rollouts, ledger, clock, watcher, intake, inspected)
