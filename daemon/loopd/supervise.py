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
from datetime import UTC, datetime, timedelta

import structlog

from loopd.boot import HostTimes
from loopd.cause import CRASHES, Cause, Code, Evidence
from loopd.config import SuperviseSettings
from loopd.crash_loop import ROLLOUTS_READ, why_no_return
from loopd.engine import Engine, Event, ImageMissingError, Instance, Relist, Unit
from loopd.errors import LoopdError
from loopd.gateway import GatewayDownError
from loopd.ledger import Ledger
from loopd.loading import Loader
from loopd.metrics import Metrics
from loopd.registry import Registry
from loopd.release import SHORT, Release
from loopd.release import engine_unit as engine_name
from loopd.restarts import Restarts
from loopd.rollout import Rollouts
from loopd.routing import Routing
from loopd.state import StateWriteError
from loopd.unit_plan import BACKOFF_MOST_S, Apply, Past, Remove, Wait, due_at, is_looping, plan_units
from loopd.units import AGENT, ENGINE_PREFIX, GATEWAY, KEPT_BY_OTHERS

RETRY_S = 1.0  # after a reconcile that failed
TOUCH_KEPT = timedelta(minutes=10)  # what somebody did to a unit longer ago did not end it
GATEWAY_S = 5.0  # from its container's start to its admin socket
IMAGE_S = timedelta(seconds=10)  # between two looks for an image that is gone

log = structlog.get_logger("loopd.supervise")


def metric_unit(unit: str) -> str:
    """Keep a label's values few: all engines are one."""
    return "engine" if unit.startswith(ENGINE_PREFIX) else unit


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
    limits: SuperviseSettings = field(default_factory=SuperviseSettings)
    host: HostTimes = field(default_factory=HostTimes)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    on_success: Callable[[], None] = lambda: None  #: after each reconcile that worked
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _mending: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _wake_at: float | None = None
    _loaded: tuple[str, datetime | None] | None = None  #: container and start of the engine that was loaded last
    _touched: dict[str, Event] = field(default_factory=dict)  #: by unit: what somebody did to it last
    _engine_back_at: datetime | None = None
    _seen: set[str] = field(default_factory=set)  #: units wanted now that were there at some look of this life
    _waits: dict[str, datetime] = field(default_factory=dict)  #: by unit: it lacks its image, look again then

    async def run_forever(self) -> None:
        """Reconcile until cancelled."""
        watcher = asyncio.create_task(self._watch(), name="engine-events")
        watcher.add_done_callback(lambda _: self._wake.set())
        try:
            while True:
                self._wake.clear()
                if watcher.done():  # a bug: deaths would be seen by relists only, and nobody would know
                    watcher.result()
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
        # What is being mended while we look is seen half-way; the end of its repair wakes us again.
        half_way = set(self._mending)
        desired = await self.desired()
        theirs = await self._of_rollout() - {unit.name for unit in desired}
        observed = {
            i.unit: i
            for i in await self.engine.observe()
            if not i.unit.startswith(KEPT_BY_OTHERS) and i.unit not in theirs | half_way
        }
        desired = [unit for unit in desired if unit.name not in half_way]
        self._seen = {unit.name for unit in desired if unit.name in observed or unit.name in self._seen}
        past = {unit.name: await self._past(unit.name, absent=unit.name not in observed) for unit in desired}
        for name, one in past.items():
            self.metrics.unit_crash_loop.labels(unit=metric_unit(name)).set(one.looping)
        steps = plan_units(desired=desired, observed=observed, past=past, now=self.clock())
        self._wake_at = None
        for step in steps:
            match step:
                case Apply(unit=unit):
                    self._mend(unit.name, self._apply(step, observed.get(unit.name)))
                case Remove(unit=name, cause=cause):
                    self._mend(name, self._remove(name, cause))
                case Wait(until=until):
                    delay = max(0.0, (until - self.clock()).total_seconds())
                    self._wake_at = min(self._wake_at or delay, delay)
        if not steps and not self._mending:
            await self.routing.converge()
            await self._keep_loaded(observed)

    async def looping(self, unit: str) -> bool:
        """Tell whether a unit is in a crash loop."""
        return (await self._past(unit)).looping

    def loaded(self, instance: Instance) -> bool:
        """Tell whether the champion's weights were brought into this run of its engine."""
        return self._loaded == (instance.id, instance.started_at)

    async def tell(self, event: str, subject: str, words: str) -> None:
        """Write down what was seen and needs a person."""
        with contextlib.suppress(StateWriteError):
            await self.ledger.append(event, subject, words)

    def replace(self, unit: Unit, instance: Instance, cause: Cause) -> None:
        """Replace a unit that runs and does not work."""
        self._mend(unit.name, self._replace(unit, instance, cause))

    async def _replace(self, unit: Unit, instance: Instance, cause: Cause) -> None:
        if due_at(await self._past(unit.name), instance, self.clock()) > self.clock():
            return  # it was replaced a moment ago, and the time before; who asked will ask again
        with contextlib.suppress(StateWriteError):
            await self._write_down(unit.name, cause, instance)
        await self.engine.remove(unit.name, grace_s=0)  # what hangs does not end by itself
        await self._start(unit, cause)

    async def _past(self, unit: str, *, absent: bool = False) -> Past:
        """Return what is remembered of a unit; of one that is absent also what only the ledger knows."""
        crashes = await self.restarts.crashes(unit)
        limits = self.limits
        last = await self.ledger.last(unit, "unit.") if absent else None  # a long look back: seldom
        ran = unit in self._seen or (absent and await self._ran(unit))
        return Past(
            crashes=crashes,
            ran=ran,
            failed=last is not None and (last.event, last.detail.get("code")) == ("unit.failed", Code.START_FAILED),
            wait_until=self._waits.get(unit),
            evidence=Evidence(
                touched=self._touched.get(unit),
                booted_at=self.host.booted_at,
                engine_back_at=self._engine_back_at or self.host.engine_started_at(),
            ),
            looping=is_looping(crashes, most=limits.crashes, window_s=limits.crash_window_s, now=self.clock()),
        )

    async def _ran(self, unit: str) -> bool:
        """Tell whether an earlier loopd started a unit."""
        known = await self.ledger.last(unit, "unit.started") or await self.ledger.last(unit, "unit.restarted")
        return known is not None

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
        if not await self._has_image(step.unit, seen):
            return
        if step.unit.name == AGENT and (first := self._mending.get(GATEWAY)) is not None:
            await asyncio.wait([first], timeout=GATEWAY_S)  # the agent reaches the model through the gateway
        if step.restart:
            with contextlib.suppress(StateWriteError):  # a full disk keeps nobody from being started again
                await self._write_down(step.unit.name, step.cause, seen)
        await self._start(step.unit, step.cause if step.restart else None)

    async def _write_down(self, unit: str, cause: Cause, seen: Instance | None) -> None:
        """Record a restart, and whether it is one too many."""
        self._touched.pop(unit, None)  # it has explained this end, and explains no other
        await self.restarts.record(unit, cause)
        self.metrics.restarts.labels(unit=metric_unit(unit), cause=cause.code.value).inc()
        await self.ledger.append(
            "unit.restarted",
            unit,
            cause.words,
            code=cause.code.value,
            exit_code=seen.exit_code if seen else None,
            oom_killed=seen.oom_killed if seen else False,
        )
        if cause.code in CRASHES and (await self._past(unit)).looping:
            await self._crash_loop(unit)

    async def _has_image(self, unit: Unit, seen: Instance | None) -> bool:
        """Tell whether a unit can be made; one that cannot waits for its image, which is no fault of its own."""
        if seen is not None and seen.fingerprint == unit.fingerprint:
            return True  # its container is there
        try:
            await self.engine.image_id(unit.image)
        except ImageMissingError as error:
            self._waits[unit.name] = self.clock() + IMAGE_S
            told = await self.ledger.last(unit.name, "unit.")
            if told is None or (told.event, told.cause) != ("unit.waits", str(error)):
                await self.ledger.append("unit.waits", unit.name, str(error), code=Code.IMAGE_GONE.value)
            return False
        self._waits.pop(unit.name, None)
        return True

    async def _crash_loop(self, unit: str) -> None:
        """Say once that a unit keeps crashing; a champion that does is replaced by the release before it."""
        limits = self.limits
        since = self.clock() - timedelta(seconds=limits.crash_window_s)
        told = await self.ledger.last(unit, "unit.crash_loop")
        if told is not None and datetime.fromisoformat(told.at) > since:
            return
        serving = await self.registry.serving()
        champion = serving.champion
        mine = champion is not None and engine_name(champion) == unit
        obstacle = why_no_return(serving, await self.rollouts.newest(ROLLOUTS_READ), since=since) if mine else ""
        await self.ledger.append(
            "unit.crash_loop",
            unit,
            f"it crashed {limits.crashes} times within {limits.crash_window_s:g} s; from now on it is started again "
            f"every {BACKOFF_MOST_S:g} s only" + (f". No rollback is asked for: {obstacle}" if obstacle else ""),
        )
        if champion is not None and mine and not obstacle:
            with contextlib.suppress(LoopdError):
                await self.rollouts.request_rollback(f"release {champion[:SHORT]} is in a crash loop")

    async def _start(self, unit: Unit, cause: Cause | None) -> None:
        """Bring a unit up; ``cause``: why it is started anew, None for a first start."""
        failure = ""
        try:
            await self._bring_up(unit)
        except LoopdError as error:
            failure = str(error)
        with contextlib.suppress(StateWriteError):
            if failure:
                await self.ledger.append("unit.failed", unit.name, failure[:1000], code=Code.START_FAILED.value)
            elif cause is None:
                await self.ledger.append("unit.started", unit.name, "first start")
            if failure and (cause is None or cause.code not in CRASHES):
                # A start that failed counts, so that the next one waits.
                await self.restarts.record(unit.name, Cause(Code.START_FAILED, failure[:200]))

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
                case Relist(back=back):
                    self.metrics.relists.inc()
                    if back:
                        self._engine_back_at = self.clock()
                case Event(unit=unit) if unit.startswith(KEPT_BY_OTHERS):
                    continue
                case Event(action="killed", unit=unit):
                    self._touched[unit] = event
                    continue
                case Event(action="died" | "oom" | "removed"):
                    delay = (datetime.now(UTC) - event.at).total_seconds()
                    self.metrics.death_seen_seconds.observe(max(0.0, delay))
                    self._touched = {name: e for name, e in self._touched.items() if event.at - e.at < TOUCH_KEPT}
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
