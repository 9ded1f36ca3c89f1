"""runner: owns bringing one rollout after the other to its end.

It observes, plans, does the first step through the journal, and observes again, so a kill between any two steps needs
no special case.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import assert_never

import structlog

from loopd.admission import Admission, Capacity, Demand, admit, memory_expected
from loopd.bake import Baker, InterruptedRolloutError
from loopd.engine import Engine, EngineDownError, InstanceState
from loopd.errors import LoopdError, UnavailableError
from loopd.gateway import Gateway, GatewayDownError
from loopd.journal import Journal, StaleEpochError
from loopd.ledger import Ledger
from loopd.loading import Loader
from loopd.metrics import Metrics
from loopd.plan import ENDED, Goal, Observed, Phase, plan_rollout
from loopd.registry import Registry
from loopd.release import Release, engine_unit
from loopd.rollout import Rollout, Rollouts
from loopd.routing import Routing
from loopd.steps import (
    Admit,
    Bake,
    Check,
    Conclude,
    Drain,
    Load,
    Promote,
    Retire,
    Shift,
    Start,
    Step,
    Vacate,
    key,
    kind,
)
from loopd.units import CANDIDATE_WEIGHT, SERVING_WEIGHT

HOST = "local"
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
MOST_STARTS = 3  # a candidate whose container dies more often than this is given up
ABORT_DRAIN_S = 30.0  # a candidate that failed gets no more than this for what it still answers

log = structlog.get_logger("loopd.rollout")


class CandidateUnstableError(UnavailableError):
    """The candidate's container dies again and again."""

    code = "candidate_unstable"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """What the settings allow a rollout."""

    drain_s: float
    threads: int  #: of each engine
    parallel: int  #: requests an engine answers at once
    reserve_bytes: int
    in_place: bool  #: whether the old release may stop first


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs rollouts to their end."""

    rollouts: Rollouts
    registry: Registry
    journal: Journal
    ledger: Ledger
    engine: Engine
    loader: Loader
    gateway: Gateway
    routing: Routing
    metrics: Metrics
    baker: Baker
    capacity: Callable[[], Awaitable[Capacity]]
    limits: RunLimits

    async def run_forever(self) -> None:
        """Run each rollout as it comes."""
        while True:
            self.rollouts.changed.clear()
            if (rollout := await self.rollouts.next()) is None:
                await self.rollouts.changed.wait()
                continue
            await self.run(rollout)

    async def run(self, rollout: Rollout) -> Rollout:
        """Bring one rollout to its end; return it ended. Raises StaleEpochError."""
        failures = 0
        while rollout.phase not in ENDED:
            with structlog.contextvars.bound_contextvars(rollout=rollout.id, release=rollout.candidate[:12]):
                try:
                    step = (await self.plan(rollout))[0]
                    await self._journaled(rollout, step)
                    failures = 0
                except StaleEpochError:
                    raise
                except InterruptedRolloutError:
                    log.info("rollout.interrupted")
                except (EngineDownError, GatewayDownError) as error:
                    # Not the candidate's fault: the same step again, when the part is back.
                    failures += 1
                    log.warning("rollout.retries", error=str(error), failures=failures)
                    await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S)) - 1])
                except LoopdError as error:
                    if await self._promoted(rollout) or rollout.phase is Phase.ABORTING:
                        failures += 1
                        log.warning("rollout.retries", error=str(error), failures=failures)
                        await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S)) - 1])
                    else:
                        await self.rollouts.abort(rollout, str(error))
            rollout = await self.rollouts.get(rollout.id)
        self.metrics.rollouts.labels(outcome=rollout.phase.value).inc()
        return rollout

    async def plan(self, rollout: Rollout) -> tuple[Step, ...]:
        """Return the steps a rollout still needs, from what is seen now."""
        serving = await self.registry.serving()
        concerned = {rollout.candidate, *serving.shares} | ({rollout.champion} if rollout.champion else set())
        units = {engine_unit(release): release for release in concerned}
        seen = {units[i.unit]: i for i in await self.engine.observe() if i.unit in units}
        return plan_rollout(
            Goal(
                candidate=rollout.candidate,
                champion=rollout.champion,
                phase=rollout.phase,
                policy=rollout.policy,
                strategy=rollout.strategy,
                host=HOST,
            ),
            Observed(
                running={r: i.id for r, i in seen.items() if i.state is InstanceState.RUNNING},
                present=frozenset(seen),
                champion=serving.champion,
                shares=serving.shares,
                done=await self.journal.finished_keys(rollout.id),
            ),
        )

    async def _journaled(self, rollout: Rollout, step: Step) -> None:
        seq = await self.journal.begin(rollout.id, step)
        with self.metrics.rollout_step_seconds.labels(step=kind(step)).time():
            try:
                await self._do(rollout, step)
            except LoopdError as error:
                await self.journal.failed(seq, str(error))
                raise
        await self.journal.done(seq)

    async def _do(self, rollout: Rollout, step: Step) -> None:
        match step:
            case Admit(release=release):
                await self.rollouts.admit(rollout, await self._admission(rollout, release))
            case Start(release=release):
                await self._start(rollout, release)
            case Load(release=release):
                speed = await self.loader.load(await self.registry.get(release), await self._address(release))
                log.info("release.loaded", tokens_per_s=round(speed, 1))
            case Check(release=release):
                await self._check(release)
            case Bake():
                await self._bake(rollout, step)
            case Shift() | Promote():
                await self._shift(step)
            case Drain(release=release):
                await self._drain(rollout, release)
            case Retire(release=release) | Vacate(release=release):
                await self._remove(step, release)
            case Conclude(phase=phase):
                await self.rollouts.conclude(rollout, Phase(phase))
            case _:
                assert_never(step)

    async def _admission(self, rollout: Rollout, release: str) -> Admission:
        champion = await self.registry.get(rollout.champion) if rollout.champion else None
        demand = Demand(
            candidate=self._memory(await self.registry.get(release)),
            champion=self._memory(champion) if champion else 0,
            threads=self.limits.threads,
            reserve=self.limits.reserve_bytes,
        )
        return admit(demand, await self.capacity(), in_place_allowed=self.limits.in_place)

    def _memory(self, release: Release) -> int:
        return memory_expected(release, parallel=self.limits.parallel)

    async def _start(self, rollout: Rollout, release: str) -> None:
        rows = await self.journal.rows(rollout.id)
        if release == rollout.candidate and any(row.step == "bake" for row in rows):
            raise CandidateUnstableError("its container ended while it took traffic")
        starts = [row for row in rows if row.key == key(Start(release=release, host=HOST)) and row.state == "done"]
        if len(starts) >= MOST_STARTS:
            raise CandidateUnstableError(f"its container died {len(starts)} times during the rollout")
        await self.loader.start(await self.registry.get(release))
        if release == rollout.candidate:
            await self.engine.weigh(engine_unit(release), CANDIDATE_WEIGHT)

    async def _check(self, release: str) -> None:
        speed = await self.loader.check(await self.registry.get(release), await self._address(release))
        await self.ledger.append(
            "release.checked", release[:12], "the golden prompts were answered", tokens_per_s=round(speed, 1)
        )

    async def _bake(self, rollout: Rollout, step: Bake) -> None:
        async def interrupted() -> bool:
            return (await self.rollouts.get(rollout.id)).phase is not Phase.ACTIVE

        baked = await self.baker.bake(step, await self._address(step.release), interrupted=interrupted)
        await self.ledger.append(
            "release.baked",
            step.release[:12],
            f"it did as well as the champion at {step.percent} % of the traffic",
            percent=step.percent,
            probes=baked.probes,
            tokens_per_s=round(baked.tokens_per_s, 1),
            answers=baked.candidate.answers,
            errors=baked.candidate.errors,
            p95_ms=baked.candidate.p95_ms,
            champion_answers=baked.champion.answers,
            champion_errors=baked.champion.errors,
            champion_p95_ms=baked.champion.p95_ms,
        )

    async def _shift(self, step: Shift | Promote) -> None:
        """Record who gets what, then have the gateway do it."""
        if isinstance(step, Promote):
            await self.registry.promote(step.release)
            applied = await self.routing.converge()
            self.metrics.flip_seconds.observe(applied.flip_s)
            flip_ms = round(applied.flip_s * 1000, 3)
            await self.ledger.append("release.promoted", step.release[:12], "it takes all traffic", flip_ms=flip_ms)
            return
        if step.attach:
            await self.engine.weigh(engine_unit(step.attach), SERVING_WEIGHT)
        await self.registry.set_shares(dict(step.shares))
        applied = await (self.routing.attach(step.attach) if step.attach else self.routing.converge())
        if applied.flip_s:
            self.metrics.flip_seconds.observe(applied.flip_s)

    async def _remove(self, step: Retire | Vacate, release: str) -> None:
        if isinstance(step, Retire):
            await self.registry.unroute(release)
        with contextlib.suppress(GatewayDownError):
            await self.routing.converge()
        await self.loader.remove(release, engine_unit(release))

    async def _drain(self, rollout: Rollout, release: str) -> None:
        await self.routing.converge()  # the flip may have been recorded and not applied, when the gateway was down
        aborting = rollout.phase is Phase.ABORTING
        limit = min(self.limits.drain_s, ABORT_DRAIN_S) if aborting else self.limits.drain_s
        if await self.gateway.wait_idle("engine", release[:12], deadline_s=limit):
            return
        await self.ledger.append(
            "release.drain_expired", release[:12], f"requests were still in flight after {limit:g} s; they were cut"
        )

    async def _address(self, release: str) -> str:
        unit = engine_unit(release)
        for instance in await self.engine.observe():
            if instance.unit == unit and instance.address:
                return instance.address
        raise CandidateUnstableError(f"{unit} does not run any more")

    async def _promoted(self, rollout: Rollout) -> bool:
        return (await self.registry.serving()).champion == rollout.candidate
