"""memory_loopd: rollouts of one loopd on the in-memory engine and gateway, with a real state.db, that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from loopd.admission import Capacity
from loopd.analysis import Answer
from loopd.bake import Baker
from loopd.config import AnalysisSettings
from loopd.engine import InMemoryEngine, Instance, Limits, Unit
from loopd.gateway import InMemoryGateway, ServerState
from loopd.journal import Journal
from loopd.ledger import Ledger
from loopd.metrics import build_metrics
from loopd.plan import Phase
from loopd.policy import INSTANT, Policy
from loopd.registry import Registry
from loopd.release import Release
from loopd.rollout import Rollouts
from loopd.routing import Routing
from loopd.runner import RunLimits, Runner
from loopd.state import Database
from loopd.steps import Step
from samples import make_release

IMAGE = "sha256:engine"


class Killed(BaseException):
    """Stands for SIGKILL: nothing in loopd may catch it."""


@dataclass
class FakeLoader:
    """Loads into the in-memory engine; fails where a test says."""

    engine: InMemoryEngine
    fail: dict[str, Exception] = field(default_factory=dict)  #: method -> what it raises
    calls: list[str] = field(default_factory=list)
    rechecks: int = 0
    on_recheck: Callable[[], None] | None = None
    on_call: Callable[[], None] | None = None
    sicken: InMemoryGateway | None = None  #: whose probe shall fail for what is loaded next

    async def start(self, release: Release) -> Instance:
        self._called("start", release)
        unit = Unit(
            name=release.unit,
            image=IMAGE,
            user="1:1",
            network="internal",
            limits=Limits(memory_bytes=release.size_bytes),
        )
        return await self.engine.apply(unit)

    async def load(self, release: Release, address: str) -> float:
        self._called("load", release)
        if self.sicken:
            self.sicken.sick.add(f"{address}:11434")
        return 100.0

    async def check(self, release: Release, address: str) -> float:
        self._called("check", release)
        return 100.0

    async def recheck(self, address: str, *, timeout_s: float) -> float:
        self.rechecks += 1
        if self.on_recheck:
            self.on_recheck()
        if (error := self.fail.get("recheck")) is not None:
            raise error
        return 100.0

    async def probe(self, address: str, *, timeout_s: float) -> float:
        return 0.01

    async def remove(self, release_id: str, unit: str) -> None:
        await self.engine.remove(unit)

    def _called(self, method: str, release: Release) -> None:
        if self.on_call:
            self.on_call()
        self.calls.append(f"{method}:{release.name}")
        if (error := self.fail.get(method)) is not None:
            raise error


class KillingJournal(Journal):
    """Kills loopd at one boundary: before the n-th step, or after its effect and before it is written down."""

    def __init__(self, database: Database, *, epoch: int, kill_at: int) -> None:
        super().__init__(database, epoch=epoch)
        self.kill_at = kill_at
        self.boundary = 0

    def _cross(self) -> None:
        self.boundary += 1
        if self.boundary == self.kill_at:
            raise Killed

    async def begin(self, rollout: int, step: Step) -> int:
        self._cross()
        seq = await super().begin(rollout, step)
        self._cross()
        return seq

    async def done(self, seq: int) -> None:
        self._cross()
        await super().done(seq)
        self._cross()


@dataclass
class Host:
    """What survives a kill of loopd: the state file, the containers, the gateway."""

    path: Path
    engine: InMemoryEngine = field(default_factory=lambda: InMemoryEngine(images={IMAGE: IMAGE}))
    gateway: InMemoryGateway = field(default_factory=InMemoryGateway)
    memory: int = 1 << 40
    answers: list[Answer] = field(default_factory=list)  #: what the gateway tells as soon as somebody listens

    async def capacity(self) -> Capacity:
        return Capacity(memory_available=self.memory, gpu_free=None, cores=2)

    @contextlib.asynccontextmanager
    async def traffic(self, heard: Callable[[Answer], object]) -> AsyncIterator[None]:
        for answer in self.answers:
            heard(answer)
        yield


@dataclass
class Loopd:
    """One life of loopd on a host."""

    runner: Runner
    rollouts: Rollouts
    registry: Registry
    ledger: Ledger
    loader: FakeLoader
    host: Host
    database: Database

    async def rollout(self, release: Release) -> Phase:
        await self.registry.add(release, source=f"{release.name}.gguf")
        await self.rollouts.request(release, kind="rollout", reason="test")
        return await self.finish()

    async def finish(self) -> Phase:
        rollout = await self.rollouts.next()
        assert rollout is not None
        async with asyncio.timeout(20):
            return (await self.runner.run(rollout)).phase

    async def served(self) -> dict[str, int]:
        return {s.server: s.weight for s in await self.host.gateway.observe() if s.state is not ServerState.MAINT}


def open_loopd(
    host: Host, database: Database, epoch: int, kill_at: int = 0, *, policy: Policy = INSTANT, in_place: bool = False
) -> Loopd:
    registry, ledger = Registry(database), Ledger(database)
    rollouts = Rollouts(database, registry, ledger, policy=policy)
    loader = FakeLoader(host.engine)
    runner = Runner(
        rollouts=rollouts,
        registry=registry,
        journal=KillingJournal(database, epoch=epoch, kill_at=kill_at),
        ledger=ledger,
        engine=host.engine,
        loader=loader,
        gateway=host.gateway,
        routing=Routing.over(registry, host.engine, host.gateway),
        metrics=build_metrics(),
        baker=Baker(
            engine=host.engine,
            gateway=host.gateway,
            loader=loader,
            tap=host.traffic,
            limits=AnalysisSettings(probe_s=0.02, probe_deadline_s=0.1, samples=5),
        ),
        capacity=host.capacity,
        limits=RunLimits(drain_s=1.0, threads=1, parallel=1, reserve_bytes=0, in_place=in_place),
    )
    return Loopd(runner, rollouts, registry, ledger, loader, host, database)


A, B, C = make_release("alpha"), make_release("beta"), make_release("gamma")
