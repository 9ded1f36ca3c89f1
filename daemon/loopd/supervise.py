"""supervise: owns keeping gateway, agent and the champion's engine running, and writing down why each restarted.

Desired against observed on every event, every ``relist_s`` and whenever a wait ends. Each unit is mended in a task
of its own, so that a slow one holds up nobody. Sandboxes belong to the broker, candidates to their rollout.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from loopd.engine import Engine, Event, Instance, Relist, Unit
from loopd.errors import LoopdError
from loopd.gateway import GatewayDownError
from loopd.ledger import Ledger
from loopd.loading import Loader
from loopd.metrics import Metrics
from loopd.registry import Registry
from loopd.release import Release
from loopd.restarts import Restarts
from loopd.rollout import Rollouts
from loopd.routing import Routing
from loopd.unit_plan import Apply, Remove, Wait, plan_units
from loopd.units import ENGINE_PREFIX, GATEWAY, SANDBOX_PREFIX

RETRY_S = 1.0  # after a reconcile that failed
GATEWAY_S = 5.0  # from its container's start to its admin socket

log = structlog.get_logger("loopd.supervise")


@dataclass(kw_only=True)
class Supervisor:
    """Keeps the units running."""

    engine: Engine
    loader: Loader
    registry: Registry
    rollouts: Rollouts
    routing: Routing
    restarts: Restarts
    ledger: Ledger
    metrics: Metrics
    fixed: Callable[[], Sequence[Unit]]  #: the units that are always wanted: gateway and agent
    engine_unit: Callable[..., Unit]  #: the unit of a release
    prepare_gateway: Callable[[], object]  #: awaited before the gateway starts: its configuration must be on disk
    relist_s: float
    on_success: Callable[[], None] = lambda: None  #: after each reconcile that worked
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _mending: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _wake_at: float | None = None
    _loaded: tuple[str, datetime | None] | None = None  #: container and start of the engine that was loaded last

    async def run_forever(self) -> None:
        """Reconcile until cancelled."""
        watcher = asyncio.create_task(self._watch(), name="engine-events")
        try:
            while True:
                self._wake.clear()
                try:
                    with self.metrics.reconcile_seconds.time():
                        await self.reconcile()
                    self.metrics.reconciled_at.set(time.time())
                    self.on_success()
                    delay = self.relist_s
                except LoopdError as error:
                    log.warning("reconcile.failed", error=str(error))
                    delay = RETRY_S
                await self._sleep(delay)
        finally:
            watcher.cancel()
            for task in self._mending.values():
                task.cancel()
            await asyncio.gather(watcher, *self._mending.values(), return_exceptions=True)

    def poke(self) -> None:
        """Reconcile soon."""
        self._wake.set()

    async def desired(self) -> list[Unit]:
        """Return the units that should run."""
        units = list(self.fixed())
        champion = (await self.registry.serving()).champion
        if champion and champion != await self.rollouts.vacated():  # whose room a candidate takes stays away
            units.append(self.engine_unit(await self.registry.get(champion)))
        return units

    async def reconcile(self) -> None:
        """Observe once, plan once, start what is to be mended. Raises EngineDownError."""
        await self.engine.open()
        desired = await self.desired()
        theirs = await self._of_rollout() - {unit.name for unit in desired}
        observed = {
            i.unit: i
            for i in await self.engine.observe()
            if not i.unit.startswith(SANDBOX_PREFIX) and i.unit not in theirs
        }
        histories = {unit.name: [r.at for r in await self.restarts.of(unit.name)] for unit in desired}
        known = frozenset([u.name for u in desired if await self.ledger.last(u.name, "unit.")])
        steps = plan_units(desired=desired, observed=observed, restarts=histories, known=known, now=datetime.now(UTC))
        self._wake_at = None
        for step in steps:
            match step:
                case Apply(unit=unit):
                    self._mend(unit.name, self._apply(step, observed.get(unit.name)))
                case Remove(unit=name, cause=cause):
                    self._mend(name, self._remove(name, cause))
                case Wait(until=until):
                    delay = max(0.0, (until - datetime.now(UTC)).total_seconds())
                    self._wake_at = min(self._wake_at or delay, delay)
        if not steps and not self._mending:
            await self.routing.converge()
            await self._keep_loaded(observed)

    def _mend(self, name: str, work: object) -> None:
        """Run one unit's repair, unless one is under way."""
        assert asyncio.iscoroutine(work)  # noqa: S101 both callers pass one; for the type checker
        if name in self._mending:
            work.close()
            return
        task = asyncio.create_task(work, name=f"mend-{name}")
        self._mending[name] = task

        def finished(ended: asyncio.Task[None]) -> None:
            del self._mending[name]
            if not ended.cancelled() and (error := ended.exception()) is not None:
                log.error("unit.mend_failed", unit=name, error=repr(error))
                asyncio.get_running_loop().call_later(RETRY_S, self._wake.set)  # a bug must not become a busy loop
                return
            self._wake.set()

        task.add_done_callback(finished)

    async def _apply(self, step: Apply, seen: Instance | None) -> None:
        """Start or restart one unit, then bring it into service."""
        unit = step.unit
        if step.restart:
            await self.restarts.record(unit.name, step.cause)
            self.metrics.restarts.labels(unit=unit.name).inc()
            await self.ledger.append(
                "unit.restarted",
                unit.name,
                step.cause,
                exit_code=seen.exit_code if seen else None,
                oom_killed=seen.oom_killed if seen else False,
            )
        try:
            await self._bring_up(unit)
        except LoopdError as error:
            await self.ledger.append("unit.failed", unit.name, str(error)[:1000])
            if not step.restart:  # a first start that failed counts, so that the next one waits
                await self.restarts.record(unit.name, str(error)[:200])
            return
        if not step.restart:
            await self.ledger.append("unit.started", unit.name, step.cause)

    async def _bring_up(self, unit: Unit) -> None:
        if unit.name.startswith(ENGINE_PREFIX):
            champion = (await self.registry.serving()).champion
            if champion is None or self.engine_unit(release := await self.registry.get(champion)).name != unit.name:
                return  # promoted away meanwhile
            instance = await self.loader.start(release)
            await self._load(release, instance)
        else:
            if unit.name == GATEWAY:
                prepared = self.prepare_gateway()
                assert asyncio.iscoroutine(prepared)  # noqa: S101 a callable type cannot say "coroutine of anything"
                await prepared
            await self.engine.apply(unit)
            if unit.name == GATEWAY:
                await self.routing.wait_answering(timeout_s=GATEWAY_S)
        with contextlib.suppress(GatewayDownError):  # a gateway that is down gets its routes when it is back
            await self.routing.converge()

    async def _keep_loaded(self, observed: Mapping[str, Instance]) -> None:
        """Load the champion into an engine that runs and was not seen loaded: after a failure, or a start of loopd."""
        champion = (await self.registry.serving()).champion
        if champion is None:
            return
        release = await self.registry.get(champion)
        instance = observed.get(self.engine_unit(release).name)
        if instance is not None and self._loaded != (instance.id, instance.started_at):
            self._mend(instance.unit, self._load(release, instance))

    async def _load(self, release: Release, instance: Instance) -> None:
        if instance.address is None:
            return
        try:
            await self.loader.load(release, instance.address)
        except LoopdError as error:
            await self.ledger.append("unit.failed", instance.unit, f"not loaded: {error}"[:1000])
            await asyncio.sleep(RETRY_S)
            return
        self._loaded = (instance.id, instance.started_at)

    async def _remove(self, name: str, cause: str) -> None:
        await self.engine.remove(name)
        await self.ledger.append("unit.removed", name, cause)

    async def _of_rollout(self) -> set[str]:
        """Return the units that belong to the rollout under way."""
        rollout = await self.rollouts.active()
        if rollout is None:
            return set()
        releases = [rollout.candidate, rollout.champion, *(await self.registry.serving()).shares]
        return {self.engine_unit(await self.registry.get(r)).name for r in releases if r}

    async def _watch(self) -> None:
        async for event in self.engine.watch():
            match event:
                case Relist():
                    self.metrics.relists.inc()
                case Event(unit=unit) if unit.startswith(SANDBOX_PREFIX):
                    continue
                case Event(action="died" | "oom" | "removed"):
                    delay = (datetime.now(UTC) - event.at).total_seconds()
                    self.metrics.death_seen_seconds.observe(max(0.0, delay))
                    log.info("unit.ended", unit=event.unit, action=event.action, exit_code=event.exit_code)
            self._wake.set()

    async def _sleep(self, delay: float) -> None:
        """Wait for the next reason to reconcile, at most ``delay`` seconds."""
        if self._wake_at is not None:
            delay = min(delay, self._wake_at)
        try:
            async with asyncio.timeout(delay):
                await self._wake.wait()
        except TimeoutError:
            pass
