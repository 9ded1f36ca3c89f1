"""subagents: owns child runs: what they may do, and that whatever becomes of one is an answer to its parent.

A child has its own task, budget, list of tools and deadline. It may crash, hang, loop or flood: its parent is told so
and goes on. One that does not end when it is cancelled is left behind: it can spend nothing any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

import anyio
import structlog
from pydantic import JsonValue

from loopbox_agent.budget import Budget, BudgetSpentError, Spending, Spent
from loopbox_agent.classify import classify
from loopbox_agent.errors import AgentError, DeadlineError
from loopbox_agent.loop_watch import LoopWatch

LONGEST_TASK: Final = 32_000  # characters
_LONGEST_WORDS: Final = 500  # characters of an error, to the parent

Status = Literal["ok", "failed", "timeout", "budget", "looping", "refused"]

log = structlog.get_logger("agent.children")


class LoopingError(AgentError):
    """A child made the same call again and again."""

    code: ClassVar[str] = "looping"
    status: ClassVar[int] = 502


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildOrder:
    """What a parent asks of a child."""

    task: str
    tools: frozenset[str] = frozenset()
    budget: Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """What no order may exceed."""

    depth: int = 2  #: generations below the run
    children: int = 16  #: of one parent, in all
    at_once: int = 4  #: of one parent
    grace_s: float = 1.0  #: for a cancelled child to end
    answer: int = 16_000  #: characters
    same_call: int = 5  #: equal calls among the last ones
    left_behind: int = 4  #: children that would not end, before no further one is started


@dataclass(frozen=True, slots=True)
class ChildAnswer:
    """What became of a child."""

    child: str
    status: Status
    text: str  #: for the model: the answer, or what happened and what to do
    spent: Spent = field(default_factory=Spent)
    seconds: float = 0.0
    left_behind: bool = False  #: it did not end when it was cancelled


@dataclass(frozen=True, slots=True)
class Child:
    """A child run, as it sees itself. Its loop must charge what it spends, and tell of every call before it is made."""

    id: str
    task: str
    tools: frozenset[str]
    spending: Spending
    children: Children  #: it may have some of its own
    limits: ChildLimits
    _calls: LoopWatch = field(default_factory=LoopWatch)

    def about_to_call(self, tool: str, arguments: Mapping[str, JsonValue]) -> None:
        """Allow a tool call, and pay for it. Raises AgentError, and then it must not be made."""
        if tool not in self.tools:
            raise EscalationError(f"The child {self.id} may not use {tool[:64]!r}; nothing was run.")
        times = self._calls.note(tool, arguments)
        if times >= self.limits.same_call:
            raise LoopingError(f"The child called {tool} {times} times with the same arguments; it was ended.")
        self.spending.charge_call()


class EscalationError(AgentError):
    """A child was to have, or used, a tool that its parent may not use."""

    code: ClassVar[str] = "tool_forbidden"
    status: ClassVar[int] = 403


RunChild = Callable[[Child], Awaitable[str]]


class Children:
    """The children of one run."""

    def __init__(
        self,
        name: str,
        tools: Iterable[str],
        spending: Spending,
        *,
        limits: ChildLimits | None = None,
        depth: int = 0,
    ) -> None:
        self._name = name
        self._tools = frozenset(tools)
        self._spending = spending
        self._limits = limits or ChildLimits()
        self._depth = depth
        self._started = 0
        self._room = asyncio.Semaphore(self._limits.at_once)
        self._behind: set[asyncio.Task[str]] = set()  # would not end; kept so that they are not collected unseen

    @property
    def left_behind(self) -> int:
        """How many children were cancelled and have not ended yet."""
        return len(self._behind)

    async def supervise_all(self, orders: Sequence[ChildOrder], run_child: RunChild) -> list[ChildAnswer]:
        """Run children side by side; return their answers in the order of the orders. Cancelled, it ends them all."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.supervise(order, run_child)) for order in orders]
        return [task.result() for task in tasks]

    async def supervise(self, order: ChildOrder, run_child: RunChild) -> ChildAnswer:
        """Run a child and return what became of it. Raises nothing but the cancel of the caller."""
        self._started += 1
        name = f"{self._name}.{self._started}"
        if reason := self._refusal(order):
            return ChildAnswer(name, "refused", f"The sub-agent was not started: {reason}")
        try:
            async with self._spending.deadline.enforced():
                await self._room.acquire()
        except DeadlineError:
            return ChildAnswer(name, "timeout", "The sub-agent was not started: there was no room for it in time.")
        try:
            # Only now, so that its time begins when it does.
            spending = self._spending.carve(order.budget)
            return await self._waited(name, order, spending, run_child)
        except (BudgetSpentError, DeadlineError) as error:
            return ChildAnswer(name, "refused", f"The sub-agent was not started: {error}")
        finally:
            self._room.release()

    def _refusal(self, order: ChildOrder) -> str:
        most = self._limits
        if more := sorted(order.tools - self._tools):
            shown = ", ".join(tool[:64] for tool in more[:5])
            return f"it may not have tools that you do not have ({shown}). Leave them out."
        if self._depth >= most.depth:
            return f"sub-agents may be {most.depth} generations deep. Do it yourself."
        if self._started > most.children:
            return f"a run may start {most.children} sub-agents. Do the rest yourself."
        if len(self._behind) >= most.left_behind:
            return f"{len(self._behind)} sub-agents did not end when they were cancelled. Do it yourself."
        if not order.task.strip() or len(order.task) > LONGEST_TASK:
            return f"its task must have 1 to {LONGEST_TASK} characters."
        return ""

    async def _waited(self, name: str, order: ChildOrder, spending: Spending, run_child: RunChild) -> ChildAnswer:
        begun = time.monotonic()
        below = Children(name, order.tools, spending, limits=self._limits, depth=self._depth + 1)
        child = Child(name, order.task, order.tools, spending, below, self._limits)
        with structlog.contextvars.bound_contextvars(child=name):
            task = asyncio.create_task(_bounded(run_child, child), name=name)
        try:
            try:
                async with spending.deadline.enforced():
                    await asyncio.wait({task})
            except DeadlineError:
                spending.close(f"The time of the sub-agent {name} is over")
                behind = await self._end(task)
                return self._answer(child, "timeout", _out_of_time(behind=behind), begun, behind=behind)
            return self._judge(child, task, begun)
        except asyncio.CancelledError:
            spending.close(f"The parent of {name} was cancelled")
            await self._end(task)
            raise
        finally:
            spending.close(f"The sub-agent {name} has ended")

    async def _end(self, task: asyncio.Task[str]) -> bool:
        """Cancel a child; return whether it goes on all the same. Takes the grace at most, whoever cancels."""
        if task in self._behind:
            return True
        task.cancel()
        cancelled: asyncio.CancelledError | None = None
        ends_at = time.monotonic() + self._limits.grace_s
        with anyio.CancelScope(shield=True):  # the server's own scope cancels again at every wait
            while not task.done() and (left := ends_at - time.monotonic()) > 0:
                try:
                    await asyncio.wait({task}, timeout=left)
                except asyncio.CancelledError as error:  # of asyncio, which no shield holds off: first this, then that
                    cancelled = error
        behind = not task.done()
        if behind:
            log.warning("child.left_behind", child=task.get_name(), grace_s=self._limits.grace_s)
            self._behind.add(task)
            task.add_done_callback(self._behind.discard)
        task.add_done_callback(_look)
        if cancelled is not None:
            raise cancelled
        return behind

    def _judge(self, child: Child, task: asyncio.Task[str], begun: float) -> ChildAnswer:
        if task.cancelled():
            return self._answer(child, "failed", "The sub-agent cancelled itself and gave no answer.", begun)
        error = task.exception()
        if error is None:
            return self._answer(child, "ok", _cut(task.result(), self._limits.answer), begun)
        status, words = _told(error)
        log.info(
            "child.failed", child=child.id, status=status, error=f"{type(error).__name__}: {error}"[:_LONGEST_WORDS]
        )
        return self._answer(child, status, words, begun)

    @staticmethod
    def _answer(child: Child, status: Status, text: str, begun: float, *, behind: bool = False) -> ChildAnswer:
        return ChildAnswer(child.id, status, text, child.spending.spent, round(time.monotonic() - begun, 3), behind)


class _ExitError(Exception):
    """A child tried to end the process."""


async def _bounded(run_child: RunChild, child: Child) -> str:
    """Run the child; what would end the event loop or the process ends the child."""
    try:
        answer = await run_child(child)
    except SystemExit as error:
        raise _ExitError(f"it tried to exit with {error.code!r}") from error
    if not isinstance(answer, str):
        raise TypeError(f"its answer is of the type {type(answer).__name__}, not a text")
    return answer


def _told(error: BaseException) -> tuple[Status, str]:
    """Return a status and words for the parent's model: why, and what to do."""
    words = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_WORDS]
    if _has(error, LoopingError):
        return (
            "looping",
            f"The sub-agent repeated itself and was ended ({words}). Give it another task, or do it yourself.",
        )
    if _has(error, BudgetSpentError):
        return (
            "budget",
            f"The sub-agent used up its budget and was ended ({words}). Give it less to do, or more to spend.",
        )
    if _has(error, DeadlineError):
        return "timeout", _out_of_time(behind=False)
    failure = classify(error)
    return "failed", f"The sub-agent failed ({failure.category}; {words}). {failure.advice}"


def _has(error: BaseException, kind: type[AgentError]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(kind) is not None
    return isinstance(error, kind)


def _out_of_time(*, behind: bool) -> str:
    left = " It did not end when it was told to; it can do nothing more." if behind else ""
    return f"The sub-agent's time was over before it answered; it was ended.{left} Give it less to do, or more time."


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"


def _look(task: asyncio.Task[str]) -> None:
    if not task.cancelled():
        task.exception()  # looked at, so that it is not told of as forgotten
