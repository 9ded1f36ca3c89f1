"""bake: owns watching a candidate while it takes its share of the traffic: deaths, probes, answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from loopd.analysis import Answer, Figures, Tally, judge
from loopd.config import AnalysisSettings
from loopd.engine import Engine, Event
from loopd.errors import UnavailableError
from loopd.gateway import Gateway, GatewayDownError, ServerState
from loopd.loading import Loader
from loopd.ollama import EngineAnswerError, GoldenError
from loopd.release import SHORT, engine_unit
from loopd.steps import Bake

TICK_S = 0.1
SLOW_PROBES = 3  # in a row


class CandidateFailedError(UnavailableError):
    """The candidate did worse than it may; it gets no traffic any more."""

    code = "candidate_failed"


class InterruptedRolloutError(UnavailableError):
    """The rollout was turned back by the operator."""

    code = "rollout_interrupted"


class Tap(Protocol):
    """Opens what tells how requests end at the gateway."""

    def __call__(self, heard: Callable[[Answer], object], /) -> AbstractAsyncContextManager[None]:
        """Call ``heard`` for each answer until left."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Baked:
    """What a stage showed."""

    candidate: Figures
    champion: Figures
    probes: int  #: golden probes that were answered well
    tokens_per_s: float  #: the slowest of them


@dataclass(frozen=True, kw_only=True)
class Baker:
    """Watches candidates."""

    engine: Engine
    gateway: Gateway
    loader: Loader
    tap: Tap
    limits: AnalysisSettings

    async def bake(self, step: Bake, address: str, *, interrupted: Callable[[], Awaitable[bool]]) -> Baked:
        """Return once the candidate has shown enough. Raises CandidateFailedError, GoldenError."""
        watch = _Watch(self, step, address)
        unit = engine_unit(step.release)
        async with self.tap(watch.heard), _task(self._until_death(unit)) as death, contextlib.aclosing(watch):
            while not watch.over():
                waited: set[asyncio.Future[Any]] = {death, *watch.pending()}  # Any: of either result
                await asyncio.wait(waited, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
                if death.done():
                    death.result()
                    raise CandidateFailedError(f"its container ended while it took {step.percent} % of the traffic")
                if await interrupted():
                    raise InterruptedRolloutError("it was turned back while it took traffic")
                await self._require_up(step.release)
                watch.look()
        return watch.baked()

    async def _until_death(self, unit: str) -> None:
        async for event in self.engine.watch():
            match event:
                case Event(action="died" | "oom" | "removed", unit=ended) if ended == unit:
                    return
                case Event():
                    continue
                case _:  # events may have been missed
                    if unit not in {i.unit for i in await self.engine.observe() if i.address}:
                        return

    async def _require_up(self, release: str) -> None:
        with contextlib.suppress(GatewayDownError):  # that is not the candidate's fault
            for server in await self.gateway.observe():
                if server.server == release[:SHORT] and server.state is ServerState.DOWN:
                    raise CandidateFailedError("the gateway's probe finds it down")


@dataclass(slots=True)
class _Watch:
    """One stage as it goes."""

    baker: Baker
    step: Bake
    address: str
    begun: float = field(default_factory=time.monotonic)
    tallies: dict[str, Tally] = field(default_factory=dict)
    answered_at: float = 0.0  #: when the candidate last answered a request
    probe: asyncio.Task[float] | None = None
    probed_at: float = 0.0
    probes: int = 0
    slow: int = 0
    fastest: float = 0.0
    slowest: float = 0.0

    def heard(self, answer: Answer) -> None:
        if answer.server in (self.step.release[:SHORT], self.step.champion[:SHORT]):
            self.tallies.setdefault(answer.server, Tally()).add(answer)
            if answer.server == self.step.release[:SHORT] and not answer.failed:
                self.answered_at = time.monotonic()

    def pending(self) -> set[asyncio.Future[float]]:
        return {self.probe} if self.probe else set()

    def over(self) -> bool:
        """Tell whether enough was seen: a sign of life, and the stage's requests or its time."""
        candidate = self.tallies.get(self.step.release[:SHORT], Tally())
        enough = bool(self.step.requests) and candidate.answers >= self.step.requests
        alive = self.probes > 0 or self.answered_at > 0
        return alive and (enough or time.monotonic() - self.begun >= self.step.seconds)

    def look(self) -> None:
        """Judge what was seen so far, and keep a probe under way."""
        limits = self.baker.limits
        if reason := judge(self._figures(self.step.release), self._figures(self.step.champion), limits):
            raise CandidateFailedError(reason)
        if self.probe and self.probe.done():
            self._probed(self.probe)
            self.probe = None
        if self.probe is None and (not self.probed_at or time.monotonic() - self.probed_at >= limits.probe_s):
            self.probed_at = time.monotonic()
            self.probe = asyncio.create_task(
                self.baker.loader.recheck(self.address, timeout_s=limits.probe_deadline_s), name="golden-probe"
            )

    def _probed(self, probe: asyncio.Task[float]) -> None:
        limits = self.baker.limits
        took_ms = (time.monotonic() - self.probed_at) * 1000
        try:
            speed = probe.result()
        except GoldenError:
            raise
        except EngineAnswerError as error:
            # A probe waits its turn behind requests: while those are answered, the engine is busy and not broken.
            if self.answered_at > self.probed_at:
                return
            raise CandidateFailedError(f"it answers neither a golden probe nor any request: {error}") from error
        self.probes += 1
        self.fastest = max(self.fastest, speed)
        self.slowest = min(self.slowest or speed, speed)
        slow = took_ms > limits.latency_floor_ms and speed < limits.speed_factor * self.fastest
        self.slow = self.slow + 1 if slow else 0
        if self.slow >= SLOW_PROBES:
            raise CandidateFailedError(f"it slowed down from {self.fastest:.1f} to {speed:.1f} tokens/s")

    async def aclose(self) -> None:
        if self.probe:
            self.probe.cancel()
            await asyncio.gather(self.probe, return_exceptions=True)

    def baked(self) -> Baked:
        return Baked(
            candidate=self._figures(self.step.release),
            champion=self._figures(self.step.champion),
            probes=self.probes,
            tokens_per_s=self.slowest,
        )

    def _figures(self, release: str) -> Figures:
        return self.tallies.get(release[:SHORT], Tally()).figures()


@contextlib.asynccontextmanager
async def _task(work: Awaitable[None]) -> AsyncIterator[asyncio.Future[None]]:
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
