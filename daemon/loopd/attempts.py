"""attempts: owns slowing down whoever guesses: back-off after failed logins, and token buckets, of bounded size.

Kept in memory: a loopd that starts anew forgets, which helps nobody who cannot restart it.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from loopd.errors import LoopdError

MOST_KEYS = 10_000
FORGET_S = 3600.0  # after the last failure


class SlowDownError(LoopdError):
    """Too many tries; nothing was looked at. The text says how long to wait."""

    code = "too_many_requests"
    status = 429

    def __init__(self, wait_s: float) -> None:
        self.wait_s = max(1, math.ceil(wait_s))
        super().__init__(f"too many tries; wait {self.wait_s} s, then try again. Nothing was looked at")


@dataclass(slots=True)
class _Failures:
    count: int = 0
    until: float = 0.0
    last: float = 0.0


@dataclass(slots=True)
class Backoff:
    """After ``free`` failures each further one doubles the wait, from 1 s to ``most_s``."""

    free: int
    most_s: float
    clock: Callable[[], float] = time.monotonic
    _failures: OrderedDict[str, _Failures] = field(default_factory=OrderedDict)

    def check(self, key: str) -> None:
        """Raises SlowDownError while the key must wait."""
        found = self._failures.get(key)
        if found and (wait := found.until - self.clock()) > 0:
            raise SlowDownError(wait)

    def failed(self, key: str) -> None:
        """Count a failure. The key that failed longest ago is forgotten when there are too many."""
        now = self.clock()
        found = self._failures.pop(key, None)
        if found is None or now - found.last > FORGET_S:
            found = _Failures()
        found.count += 1
        found.last = now
        beyond = found.count - self.free
        found.until = now + min(self.most_s, 2.0 ** min(beyond, 30)) if beyond >= 0 else 0.0
        self._failures[key] = found
        while len(self._failures) > MOST_KEYS:
            self._failures.popitem(last=False)

    def succeeded(self, key: str) -> None:
        """Forget its failures."""
        self._failures.pop(key, None)


@dataclass(slots=True)
class Buckets:
    """Token buckets: ``rate`` a second, ``burst`` at once; a rate of 0 takes everything."""

    rate: float
    burst: float
    clock: Callable[[], float] = time.monotonic
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def take(self, key: str) -> None:
        """Take one token. Raises SlowDownError with the time until there is one."""
        if not self.rate:
            return
        now = self.clock()
        tokens, at = self._buckets.pop(key, (self.burst, now))
        tokens = min(self.burst, tokens + (now - at) * self.rate)
        self._buckets[key] = (tokens - 1 if tokens >= 1 else tokens, now)
        while len(self._buckets) > MOST_KEYS:
            self._buckets.popitem(last=False)
        if tokens < 1:
            raise SlowDownError((1 - tokens) / self.rate)
