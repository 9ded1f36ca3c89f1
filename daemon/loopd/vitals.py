"""vitals: owns telling whether what runs also works: the gateway's probes of each unit, real tokens of the champion.

An engine in a deadlock answers its status pages for hours; only a generation tells. One that does not answer in time
may be busy, so its CPU time decides: who uses none does not work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from loopd.cause import Cause, Code
from loopd.config import SuperviseSettings
from loopd.engine import Engine, Instance, InstanceState, Unit
from loopd.errors import LoopdError
from loopd.gateway import Gateway, GatewayDownError, Pool, Server, ServerState
from loopd.gpu import Gpus, InMemoryGpus, Leftovers, lost_device
from loopd.loading import Loader
from loopd.ollama import EngineAnswerError
from loopd.supervise import Supervisor
from loopd.units import AGENT, ENGINE_PREFIX, GATEWAY

LOOK_S = 1.0
DEVICE_S = 15.0
DEAD_SHARE = 0.01  # of one core: it is stopped
IDLE_SHARE = 0.10  # of one core: it may be waiting for a GPU, so a second probe decides

log = structlog.get_logger("loopd.vitals")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """A probe without an answer."""

    waited_s: float
    cpu_s: float  #: that the container used meanwhile
    in_a_row: int  #: with those right before
    silent_s: float  #: since the last answer, or since it was loaded
    error: str


def judge_probe(probe: Unanswered, limits: SuperviseSettings) -> Cause | None:
    """Say what is wrong with an engine that did not answer a probe, None while it may only be busy."""
    if probe.waited_s < limits.probe_deadline_s:
        # It answered at once, with an error; the engine mends its runner by itself, if it can.
        if probe.silent_s >= limits.unhealthy_s:
            return Cause(Code.UNHEALTHY, f"it generates nothing since {probe.silent_s:.0f} s: {probe.error}")
        return None
    share = probe.cpu_s / probe.waited_s
    if share < DEAD_SHARE or (share < IDLE_SHARE and probe.in_a_row > 1):
        return Cause(
            Code.WEDGED,
            f"no token within {probe.waited_s:.1f} s while it used {share:.0%} of a core: it hangs",
        )
    if probe.silent_s >= limits.stuck_s:
        return Cause(Code.WEDGED, f"no token for {probe.silent_s:.0f} s, although it is busy")
    return None


@dataclass(slots=True)
class Health:
    """What the gateway's probe found of one run of a unit. Monotonic seconds."""

    since: float
    was_up: bool = False
    down_since: float | None = None

    def see(self, *, up: bool, now: float) -> None:
        """Take one look into account."""
        self.was_up = self.was_up or up
        self.down_since = None if up else (self.down_since if self.down_since is not None else now)

    def judge(self, limits: SuperviseSettings, now: float) -> Cause | None:
        """Say that it is unhealthy. A slow starter is not, before its grace is over."""
        if self.down_since is None or now - self.down_since < limits.unhealthy_s:
            return None
        if not self.was_up and now - self.since < limits.grace_s:
            return None
        return Cause(Code.UNHEALTHY, f"it runs and has not answered for {now - self.down_since:.0f} s")


@dataclass(kw_only=True)
class Vitals:
    """Watches; the supervisor replaces."""

    engine: Engine
    gateway: Gateway
    loader: Loader
    supervisor: Supervisor
    limits: SuperviseSettings
    gpus: Gpus = field(default_factory=InMemoryGpus)
    clock: Callable[[], float] = time.monotonic
    _sent: tuple[str, int] = ("", 0)  #: the champion's engine, bytes it had sent when last looked at
    _health: dict[tuple[str, str], Health] = field(default_factory=dict)
    _leftovers: Leftovers = field(default_factory=Leftovers)

    async def run_forever(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_health())
            group.create_task(self._watch_champion())
            group.create_task(self._watch_device())

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except LoopdError as error:  # the engine is away: the supervisor sees to that
                log.info("vitals.postponed", error=str(error))
                self._health.clear()

    async def look(self) -> None:
        """Compare what runs with what the gateway's probes find, once."""
        begun = self.clock()  # a gateway that hangs is given its time to answer: it was down before that was over
        try:
            servers = {(s.pool, s.server): s for s in await self.gateway.observe()}
        except GatewayDownError:
            servers = None
        running = await self._running()
        kept: dict[tuple[str, str], Health] = {}
        for unit, instance in running:
            up = _is_up(unit.name, servers)
            if up is None:
                continue
            run = (instance.id, str(instance.started_at))
            health = kept[run] = self._health.get(run, Health(since=self.clock()))
            health.see(up=up, now=begun)
            if (cause := health.judge(self.limits, self.clock())) is not None:
                self.supervisor.replace(unit, instance, cause)
                del kept[run]
        self._health = kept

    async def _watch_champion(self) -> None:
        asked: tuple[str, str] | None = None
        answered_at, in_a_row = 0.0, 0
        while True:
            await asyncio.sleep(0 if in_a_row else self.limits.probe_s)
            try:
                found = await self._champion()
                if found is None:
                    in_a_row = 0
                    continue
                unit, instance = found
                if (run := (instance.id, str(instance.started_at))) != asked:
                    asked, answered_at, in_a_row = run, self.clock(), 0
                unanswered = await self._ask(unit, instance)
                if unanswered is not None and await self._answers_others(unit.name):
                    answered_at = self.clock()  # it is busy: a probe waits its turn behind requests
            except LoopdError as error:
                log.info("vitals.postponed", error=str(error))
                in_a_row = 0
                continue
            if unanswered is None:
                answered_at, in_a_row = self.clock(), 0
                continue
            waited_s, cpu_s, error_text = unanswered
            in_a_row = in_a_row + 1 if waited_s >= self.limits.probe_deadline_s else 0
            cause = judge_probe(
                Unanswered(
                    waited_s=waited_s,
                    cpu_s=cpu_s,
                    in_a_row=in_a_row,
                    silent_s=self.clock() - answered_at,
                    error=error_text,
                ),
                self.limits,
            )
            log.warning("vitals.unanswered", unit=unit.name, waited_s=round(waited_s, 2), cpu_s=round(cpu_s, 3))
            if cause is not None:
                self.supervisor.replace(unit, instance, cause)
                in_a_row = 0

    async def _watch_device(self) -> None:
        missed = ""  # the run that computed on no GPU at the last look
        while True:
            await asyncio.sleep(DEVICE_S)
            try:
                missed = await self.look_at_device(missed)
            except LoopdError as error:
                log.warning("vitals.postponed", error=str(error))

    async def look_at_device(self, missed: str) -> str:
        """Replace the champion's engine when it computes on no GPU for a second time; return the run that does so now.

        ``missed``: the run that did so at the last look; the weights may be on their way.
        """
        gpus = await self.gpus.read()
        if not gpus:
            return ""
        found = await self._champion()
        run = f"{found[1].id} {found[1].started_at}" if found else ""
        if left := self._leftovers.see(run, gpus, self.clock()):
            await self.supervisor.tell(
                "gpu.memory_kept",
                "gpu",
                f"an engine that ended left {left >> 20} MiB of GPU memory in use, which no process has; "
                "a reset of the GPU or a reboot frees it",
            )
        if found is None:
            return ""
        unit, instance = found
        if not lost_device(await self.engine.pids(unit.name), gpus):
            return ""
        if missed != instance.id:
            return instance.id
        self.supervisor.replace(
            unit, instance, Cause(Code.DEVICE_LOST, f"it computes on none of the host's {len(gpus)} GPUs any more")
        )
        return ""

    async def _answers_others(self, unit: str) -> bool:
        """Tell whether answers came from an engine through the gateway since this was asked last."""
        name = unit.removeprefix(ENGINE_PREFIX)
        sent = sum(s.bytes_out for s in await self.gateway.observe() if (s.pool, s.server) == ("engine", name))
        before, self._sent = self._sent, (unit, sent)
        return before[0] == unit and sent > before[1]

    async def _ask(self, unit: Unit, instance: Instance) -> tuple[float, float, str] | None:
        """Ask for a token; return seconds waited, CPU seconds used and the error when none came."""
        before = await self.engine.usage(unit.name)
        begun = self.clock()
        try:
            await self.loader.probe(instance.address or "", timeout_s=self.limits.probe_deadline_s)
        except EngineAnswerError as error:
            waited = self.clock() - begun
            after = await self.engine.usage(unit.name)
            return waited, after.cpu_s - before.cpu_s, str(error)[:300]
        return None

    async def _champion(self) -> tuple[Unit, Instance] | None:
        """Return the champion's engine if its weights are in memory, as far as loopd knows."""
        for unit, instance in await self._running():
            if unit.name.startswith(ENGINE_PREFIX) and self.supervisor.loaded(instance):
                return unit, instance
        return None

    async def _running(self) -> list[tuple[Unit, Instance]]:
        observed = {i.unit: i for i in await self.engine.observe() if i.state is InstanceState.RUNNING}
        return [(unit, observed[unit.name]) for unit in await self.supervisor.desired() if unit.name in observed]


def _is_up(unit: str, servers: Mapping[tuple[Pool, str], Server] | None) -> bool | None:
    """Tell whether a unit answers, None where nobody knows; ``servers``: None when the gateway does not answer."""
    if unit == GATEWAY:
        return servers is not None
    pool: Pool = "agent" if unit == AGENT else "engine"
    server = (servers or {}).get((pool, unit.removeprefix(ENGINE_PREFIX)))
    return server.state is not ServerState.DOWN if server else None
