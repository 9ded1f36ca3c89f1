"""hub: owns the runs under way: starts each in a task of its own, lets clients follow, leave, come back and cancel."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar

import structlog

from loopbox_agent.carried_through import carried_through
from loopbox_agent.errors import AgentError, DeadlineError, body_of
from loopbox_agent.live_run import Event, LiveRun
from loopbox_agent.metrics import Metrics
from loopbox_agent.principal import Principal
from loopbox_agent.recorder import Recorder, trouble
from loopbox_agent.run_log import Ended, RunLog, Status
from loopbox_agent.run_records import RunRequest, RunResult, RunStatus
from loopbox_agent.settings import Settings
from loopbox_agent.slots import Slots

CLOSE_S = 4.0  # for the runs to end when the agent is stopped; their clients are told within READ_S then
READ_S = 1.0
RETRY_S = 5  # until an agent that is being stopped is back, as a rule
STOPPED = "the agent is being stopped"
KEPT_ENDED = 64  # runs that ended last, for clients that come back at once; older ones are in the run log

log = structlog.get_logger("agent.hub")


class UnknownRunError(AgentError):
    """There is no such run, or it is somebody else's."""

    code: ClassVar[str] = "unknown_run"
    status: ClassVar[int] = 404


class ShuttingDownError(AgentError):
    """The agent is being stopped."""

    code: ClassVar[str] = "shutting_down"
    status: ClassVar[int] = 503


class Work:
    """One run's work: done by ``carry_out``, told of by ``result`` at any time."""

    async def carry_out(self) -> RunStatus:
        """Do it. Raises AgentError."""
        raise NotImplementedError

    def result(self, status: RunStatus) -> RunResult:
        """Return what there is so far."""
        raise NotImplementedError

    def ended(self, outcome: str) -> None:
        """Hear how it ended: completed, held, cancelled, or the code of what it failed of."""


class Hub:
    """Runs under way, and the ones that ended last."""

    def __init__(
        self,
        settings: Settings,
        slots: Slots,
        metrics: Metrics,
        run_log: RunLog,
        work: Callable[[LiveRun, RunRequest], Work],
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._metrics = metrics
        self._run_log = run_log
        self._work = work
        self._runs: dict[str, LiveRun] = {}
        self._ended: deque[str] = deque()
        self._timers: set[asyncio.TimerHandle] = set()
        self.stopping = False
        self._attached = 0
        self._all_left = asyncio.Event()
        self._all_left.set()

    def start(self, asked: RunRequest, principal: Principal, correlation_id: str) -> LiveRun:
        """Start a run. Raises BusyError, ShuttingDownError."""
        if self.stopping:
            raise ShuttingDownError(
                f"The agent is being stopped; nothing was started. Try again in {RETRY_S} s.", retry_after_s=RETRY_S
            )
        slot = self._slots.take()
        slot.__enter__()  # given back when the run's task ends, which this function does not see
        run = LiveRun(
            id=f"run_{secrets.token_hex(8)}",
            principal=principal,
            correlation_id=correlation_id,
            thread=asked.thread_id,
            grace_s=math.inf if asked.background else self._settings.resume_grace_s if asked.stream else 0.0,
        )
        self._runs[run.id] = run
        run.tell("run.started", {"run_id": run.id, "model": self._settings.model, "thread_id": run.thread})
        run.task = asyncio.create_task(self._drive(run, asked, lambda: slot.__exit__(None, None, None)), name=run.id)
        return run

    def get(self, run_id: str, principal: Principal) -> LiveRun:
        """Return a run by its id. Raises UnknownRunError, also for somebody else's."""
        if (run := self.find(run_id, principal)) is None:
            raise UnknownRunError(f"No run {run_id[:40]!r} of yours is under way, and none ended just now.")
        return run

    def find(self, run_id: str, principal: Principal) -> LiveRun | None:
        """Return a run under way, or one that ended just now; None for any other, and for somebody else's.

        A held one is left to the run log, where a decision about it is written.
        """
        run = self._runs.get(run_id)
        if run is None or not principal.may_see(run.principal.user) or (run.ended and run.mute):
            return None
        return run

    def live(self, principal: Principal) -> list[LiveRun]:
        """Return the runs that somebody may see, oldest first."""
        return [run for run in self._runs.values() if principal.may_see(run.principal.user)]

    @asynccontextmanager
    async def attached(self, run: LiveRun, *, after: int = 0) -> AsyncIterator[AsyncIterator[Sequence[Event]]]:
        """Follow a run; when its last follower leaves and none comes within its grace, the run is cancelled."""
        run.followers += 1
        events = run.follow(after)
        self._attached += 1
        self._all_left.clear()
        try:
            yield events
        finally:
            await events.aclose()  # type: ignore[attr-defined]  # it is a generator
            run.followers -= 1
            self._attached -= 1
            if not self._attached:
                self._all_left.set()
            if not run.ended and not run.followers and math.isfinite(run.grace_s):
                self._later(run.grace_s, lambda: None if run.followers else run.cancel("its client went away"))

    async def end_all(self, user: str, why: str) -> None:
        """Cancel a user's runs, wait a while at most until nothing of them is left, and forget those that ended."""
        mine = [run for run in self._runs.values() if run.principal.user == user]
        for run in mine:
            run.cancel(why)
        if tasks := [run.task for run in mine if run.task and not run.task.done()]:
            await asyncio.wait(tasks, timeout=CLOSE_S)
        for run in mine:
            if run.ended:
                self._runs.pop(run.id, None)

    async def close(self) -> None:
        """Take nothing on, end what is under way, and wait until its clients were told."""
        self.stopping = True
        tasks = [run.task for run in self._runs.values() if run.task and not run.task.done()]
        for run in self._runs.values():
            run.cancel(STOPPED)
        for timer in self._timers:
            timer.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
        with suppress(TimeoutError):  # a client that takes nothing
            async with asyncio.timeout(READ_S):
                await self._all_left.wait()

    async def _drive(self, run: LiveRun, asked: RunRequest, give_back: Callable[[], object]) -> None:
        outcome = "cancelled"
        recorder = Recorder(run, self._run_log)
        recorder.begin(asked)
        limit = min(asked.timeout_s or self._settings.run_timeout_s, self._settings.run_timeout_s)
        work = self._work(run, asked)
        try:
            async with asyncio.timeout(limit):
                outcome = await work.carry_out()
            await self._end(run, recorder, outcome, work.result(outcome))
        except TimeoutError:
            outcome = DeadlineError.code
            words = f"The run took longer than {limit:g} s and was ended; its sandbox is gone."
            await self._fail(run, recorder, DeadlineError(words))
        except asyncio.CancelledError:
            if run.ended:  # its end was being written when the cancel came
                outcome = run.events[-1].name.removeprefix("run.")
            elif not run.cancelled_by:
                raise
            elif run.cancelled_by == STOPPED:
                outcome = ShuttingDownError.code
                await self._fail(run, recorder, _cut_off(run), "interrupted")
            else:
                await self._end(run, recorder, "cancelled", work.result("cancelled"))
        except AgentError as error:
            outcome = error.code
            await self._fail(run, recorder, error)
        except Exception as error:
            outcome = "internal"
            log.exception("run.failed", run_id=run.id)
            await self._fail(run, recorder, error)
        finally:
            if not run.ended:
                run.tell("run.cancelled", {"run_id": run.id, "status": "cancelled"})
            give_back()
            work.ended(outcome)
            seconds = time.monotonic() - run.begun
            self._metrics.run_seconds.labels(outcome=outcome).observe(seconds)
            log.info("run.ended", run_id=run.id, outcome=outcome, seconds=round(seconds, 3), why=run.cancelled_by)
            self._ended.append(run.id)
            while len(self._ended) > KEPT_ENDED:
                self._runs.pop(self._ended.popleft(), None)

    async def _end(self, run: LiveRun, recorder: Recorder, status: RunStatus, result: RunResult) -> None:
        """Write how it ended, then tell: what was answered is not lost."""
        body = result.model_dump(mode="json")
        usage = result.usage
        ended = Ended(status=status, result=body, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
        await self._tell_last(run, recorder, ended, f"run.{status}", body)

    async def _fail(self, run: LiveRun, recorder: Recorder, error: BaseException, status: Status = "failed") -> None:
        run.error = error
        body = body_of(error).model_dump(mode="json")
        await self._tell_last(run, recorder, Ended(status=status, error=body), "run.failed", body)

    @staticmethod
    async def _tell_last(run: LiveRun, recorder: Recorder, ended: Ended, name: str, body: dict[str, Any]) -> None:
        run.deaf = True  # nothing comes before the last event once that is numbered
        last = Event(len(run.events) + 1, name, body)
        try:
            await carried_through(recorder.end(ended, last))
        except AgentError as error:
            trouble(error, run)
        finally:  # a cancel that came meanwhile changes nothing of what was written
            run.tell(name, body)

    def _later(self, seconds: float, call: Callable[[], object]) -> None:
        def due() -> None:
            self._timers.discard(timer)
            call()

        if not seconds:
            call()
            return
        timer = asyncio.get_running_loop().call_later(seconds, due)
        self._timers.add(timer)


def _cut_off(run: LiveRun) -> ShuttingDownError:
    kept = f" What it did so far is in {run.thread}: look at it, then go on there." if run.thread else ""
    return ShuttingDownError(
        f"The agent was stopped while the run was under way, which ended it; its sandbox was given back.{kept} "
        "The agent is as a rule back in some seconds."
    )
