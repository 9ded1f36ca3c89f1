"""deadline: owns Deadline, the one moment by which a run must have ended; passed down, it only ever comes nearer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from loopbox_agent.errors import DeadlineError

Clock = Callable[[], float]  #: seconds, never going back


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on a monotonic clock."""

    at: float  #: seconds on ``clock``; math.inf: never
    clock: Clock = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Clock = time.monotonic) -> Deadline:
        """Return the deadline ``seconds`` from now."""
        return cls(clock() + seconds, clock)

    @classmethod
    def never(cls) -> Deadline:
        """Return a deadline that never comes."""
        return cls(math.inf)

    def left(self) -> float:
        """Return the seconds left, 0 when it has passed."""
        return max(0.0, self.at - self.clock())

    @property
    def passed(self) -> bool:
        """Whether it has passed."""
        return self.clock() >= self.at

    def within(self, seconds: float) -> Deadline:
        """Return the earlier of this deadline and ``seconds`` from now."""
        return Deadline(min(self.at, self.clock() + seconds), self.clock)

    def check(self) -> None:
        """Raise DeadlineError when it has passed."""
        if self.passed:
            raise DeadlineError("The time for this run is over; what was done so far is kept.")

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """End what is inside when the time is over; begin nothing when it is over already. Raises DeadlineError."""
        self.check()
        left = self.left()
        try:
            async with asyncio.timeout(None if math.isinf(left) else left) as scope:
                yield
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineError("The time for this run is over; what was done so far is kept.") from error
