"""retry: owns when to try again, and how long to wait before: full jitter, inside one deadline, only where it is safe.

Full jitter, a wait drawn evenly from nothing to a limit that doubles, spreads the callers that one fault brought to the
same moment. Who draws is passed in, so that tests know the waits.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from loopbox_agent.classify import classify
from loopbox_agent.deadline import Deadline
from loopbox_agent.failure import Failure

T = TypeVar("T")
Work = Literal["model", "read", "write"]  #: a model request, a tool that only looks, a tool that changes something
Draw = Callable[[], float]  #: gives a number from 0 up to 1
Sleep = Callable[[float], Awaitable[object]]
Told = Callable[[int, Failure, float], None]  #: of a retry: which try failed, of what, the wait in seconds


def may_retry(failure: Failure, work: Work) -> bool:
    """Tell whether doing it once more is safe: a change only when the failure proves that nothing was done."""
    return failure.retryable and (work != "write" or failure.nothing_ran)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often to try and how far apart."""

    tries: int = 4  #: in all, the first one too
    base_s: float = 0.2  #: the limit of the first wait
    cap_s: float = 8.0  #: the limit of any wait that is drawn
    longest_wait_s: float = 30.0  #: asked for by the other side; for a longer one nobody sits here
    least_left_s: float = 0.05  #: of the deadline after the wait; in less no try could end

    def plan(self, tried: int, failure: Failure, *, left_s: float, draw: Draw) -> float | None:
        """Return the seconds to wait before the next try, None to give up. Pure but for ``draw``.

        tried: how many tries have failed, from 1. left_s: until the deadline.
        """
        if tried >= self.tries or not failure.retryable:
            return None
        # No exponent beyond what a cap can hold: 2.0**2000 is an error.
        wait = draw() * min(self.cap_s, self.base_s * 2.0 ** min(tried - 1, 64))
        if failure.wait_s is not None:
            if failure.wait_s > self.longest_wait_s:
                return None
            wait += failure.wait_s  # never sooner than asked, and not everybody at that moment
        return wait if wait + self.least_left_s <= left_s else None


@dataclass(frozen=True, slots=True)
class Retries:
    """Tries work again while that is safe, there are tries left and the deadline allows."""

    deadline: Deadline
    backoff: Backoff = field(default_factory=Backoff)
    draw: Draw = random.random
    sleep: Sleep = asyncio.sleep
    told: Told | None = None

    async def run(self, attempt: Callable[[], Awaitable[T]], work: Work) -> T:
        """Return what ``attempt`` gives.

        Raises what the last try raised, without a wait when the wait would pass the deadline; DeadlineError when a
        try takes longer than there is time.
        """
        tried = 0
        while True:
            try:
                async with self.deadline.enforced():
                    return await attempt()
            except Exception as error:
                tried += 1
                failure = classify(error)
                left = self.deadline.left()
                wait = self.backoff.plan(tried, failure, left_s=left, draw=self.draw)
                if wait is None or not may_retry(failure, work):
                    raise
                if self.told is not None:
                    self.told(tried, failure, wait)
            await self.sleep(wait)
