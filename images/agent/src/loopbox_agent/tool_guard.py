"""tool_guard: owns what stands around every tool call of a run: a breaker, retries where safe, a record for reminders.

A program that fails in the sandbox says nothing about the sandbox, nor a sub-agent that fails about sub-agents: what
they say goes to the model as it is. A tool that asks outside (a server of the user, the web search) can be down, and
then counts against its breaker.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from pydantic import JsonValue

from loopbox_agent.breaker import BreakerOpenError, Breakers
from loopbox_agent.classify import classify
from loopbox_agent.deadline import Clock, Deadline
from loopbox_agent.failure import Category, FailedError, Failure
from loopbox_agent.loop_watch import WINDOW, call_key
from loopbox_agent.reminders import CallSeen
from loopbox_agent.retry import Retries, Work
from loopbox_agent.sandbox import Outcome
from loopbox_agent.tool_failure import classify_result
from loopbox_agent.tool_spec import ToolSpec

_DOWN: Final[frozenset[Category]] = frozenset({"network", "timeout", "service"})  # what a breaker is for


class ToolGuard:
    """Guards the tool calls of one run.

    breakers: shared by all runs. scope: whose servers these are, so that one user's broken server is nobody else's.
    """

    def __init__(self, breakers: Breakers, retries: Retries, *, scope: str, clock: Clock = time.monotonic) -> None:
        self._breakers = breakers
        self._retries = retries
        self._scope = scope
        self._clock = clock
        self._seen: deque[CallSeen] = deque(maxlen=WINDOW)
        self.made = 0  #: calls in all

    def for_child(self, deadline: Deadline) -> ToolGuard:
        """Return the same for a sub-agent: it ends by its own deadline and remembers its own calls."""
        retries = replace(self._retries, deadline=deadline)
        return ToolGuard(self._breakers, retries, scope=self._scope, clock=self._clock)

    @property
    def seen(self) -> Sequence[CallSeen]:
        """The last calls, for reminders, oldest first."""
        return tuple(self._seen)

    async def call(
        self, tool: ToolSpec, arguments: Mapping[str, JsonValue], make: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        """Make a call by ``make``, again where that is safe; what is left alone comes back as an error for the model.

        Raises what ``make`` raises in the end.
        """
        self.made += 1
        key = call_key(tool.name, arguments)
        failure: Failure | None = None
        try:
            outcome, failure = await self._guarded(tool, make)
        except Exception as error:
            failure = classify(error)
            raise
        finally:
            told = (failure.category, failure.advice) if failure else ("", "")
            self._seen.append(CallSeen(tool.name, key, *told))
        return outcome

    async def _guarded(self, tool: ToolSpec, make: Callable[[], Awaitable[Outcome]]) -> tuple[Outcome, Failure | None]:
        name = f"{self._scope}/{tool.source}/{tool.name}" if tool.kind == "server" else f"{tool.source}/{tool.name}"
        work: Work = "read" if tool.effect == "read" else "write"
        outside = tool.kind != "sandbox" and tool.level == "network"
        last: list[tuple[Outcome, Failure | None]] = []

        async def attempt() -> None:
            permit = self._breakers.require(name, self._clock())
            try:
                outcome = await make()
            except Exception as error:
                if classify(error).category in _DOWN:
                    permit.failed(self._clock())
                else:
                    permit.gave_up()
                raise
            except BaseException:
                permit.gave_up()
                raise
            failure = failure_of(outcome)
            last[:] = [(outcome, failure)]
            if not outside or failure is None or failure.category not in _DOWN:
                permit.succeeded(self._clock())
            else:
                permit.failed(self._clock())
            # A result is an answer. It is asked for again only where that changes nothing and may well help.
            if failure is not None and failure.retryable and work == "read" and outside:
                raise FailedError(failure)

        try:
            await self._retries.run(attempt, work)
        except FailedError:
            pass  # the last result says what is wrong better than we could
        except BreakerOpenError as error:
            if not last:
                return Outcome(str(error), {"text": str(error)}, is_error=True), classify(error)
        return last[0]


def failure_of(outcome: Outcome) -> Failure | None:
    """Return what a result means, None for one that went well."""
    if not outcome.is_error:
        return None
    code = outcome.result.get("exit_code")
    return classify_result(
        outcome.text,
        exit_code=code if isinstance(code, int) and not isinstance(code, bool) and code != 0 else None,
        timed_out=outcome.result.get("timed_out") is True,
    )
