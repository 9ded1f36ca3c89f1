"""breaker: owns the circuit breaker: what keeps failing is left alone for a while, then one call finds out.

Closed: calls pass, the last ones are counted. Open: calls are refused at once, for a time that doubles with each probe
that fails. Half-open: one call, the probe, passes; its outcome closes or opens again. The clock is passed in.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from loopbox_agent.errors import AgentError

State = Literal["closed", "open", "half_open"]


class BreakerOpenError(AgentError):
    """What keeps failing is left alone for a while; nothing was tried."""

    code: ClassVar[str] = "breaker_open"
    status: ClassVar[int] = 503


@dataclass(frozen=True, slots=True)
class Policy:
    """When to open and for how long."""

    window: int = 20  #: outcomes looked at
    least: int = 10  #: outcomes before it may open
    rate: float = 0.6  #: share of failures that opens it
    open_s: float = 2.0  #: the first time
    longest_open_s: float = 60.0
    probe_s: float = 150.0  #: a probe that says nothing for so long was lost, and the next call is one


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A breaker as it stands, for people and metrics."""

    name: str
    state: State
    calls: int  #: in the window
    failures: int  #: of these
    opened: int  #: how often, ever
    wait_s: float  #: until a call would pass


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one call; its outcome is told once, by one of three words, or not at all."""

    breaker: Breaker
    epoch: int

    @property
    def probes(self) -> bool:
        """Whether this call is the one that finds out."""
        return self.breaker.probed_by(self)

    def succeeded(self, now: float) -> None:
        """Tell that the call went well."""
        self.breaker.settle(self, now, failed=False)

    def failed(self, now: float) -> None:
        """Tell that the call failed by the other side's fault."""
        self.breaker.settle(self, now, failed=True)

    def gave_up(self) -> None:
        """Tell that the outcome says nothing: cancelled, or the caller's own fault."""
        self.breaker.drop(self)


@dataclass(slots=True)
class Breaker:
    """One circuit breaker."""

    name: str
    policy: Policy = field(default_factory=Policy)
    opened: int = 0
    _state: State = "closed"
    _epoch: int = 0  # outcomes of calls begun in an earlier state say nothing about this one
    _outcomes: deque[bool] = field(default_factory=deque)  # True: failed
    _until: float = 0.0  # open: when a probe may pass; half-open: when the probe is taken for lost
    _row: int = 0  # openings without a success between

    def enter(self, now: float) -> Permit | None:
        """Return leave for one call, None when it is refused. now: seconds, monotonic."""
        if self._state != "closed":
            if now < self._until:
                return None
            self._move("half_open", now + self.policy.probe_s)
        return Permit(self, self._epoch)

    def settle(self, permit: Permit, now: float, *, failed: bool) -> None:
        """Take the outcome of a call."""
        if permit.epoch != self._epoch:
            return
        if self._state == "half_open":
            if failed:
                self._open(now)
            else:
                self._row = 0
                self._move("closed", 0.0)
            return
        self._outcomes.append(failed)
        while len(self._outcomes) > self.policy.window:
            self._outcomes.popleft()
        if not failed:
            return
        if len(self._outcomes) >= self.policy.least and sum(self._outcomes) >= self.policy.rate * len(self._outcomes):
            self._open(now)

    def probed_by(self, permit: Permit) -> bool:
        """Return whether this call is the probe."""
        return self._state == "half_open" and permit.epoch == self._epoch

    def drop(self, permit: Permit) -> None:
        """Forget a call; if it was the probe, the next call is one."""
        if self.probed_by(permit):
            self._until = float("-inf")

    def wait_s(self, now: float) -> float:
        """Return the seconds until a call may pass, 0 for at once. While a probe is out, when to ask again."""
        left = 0.0 if self._state == "closed" else max(0.0, self._until - now)
        return left if self._state == "open" else min(left, self.policy.open_s)

    def snapshot(self, now: float) -> Snapshot:
        """Return how it stands. An open one whose time is over is told as half-open."""
        state: State = "half_open" if self._state == "open" and now >= self._until else self._state
        return Snapshot(
            self.name, state, len(self._outcomes), sum(self._outcomes), self.opened, round(self.wait_s(now), 3)
        )

    @property
    def idle(self) -> bool:
        """Whether forgetting it loses nothing that matters."""
        return self._state == "closed" and not any(self._outcomes)

    def _open(self, now: float) -> None:
        self.opened += 1
        seconds = min(self.policy.open_s * 2.0 ** min(self._row, 64), self.policy.longest_open_s)
        self._row += 1
        self._move("open", now + seconds)

    def _move(self, state: State, until: float) -> None:
        self._state, self._until = state, until
        self._epoch += 1
        self._outcomes.clear()


class Breakers:
    """Breakers by name, as many as ``most``; the one that was not used for longest makes room, idle ones first."""

    def __init__(self, policy: Policy | None = None, *, most: int = 256) -> None:
        self._policy = policy or Policy()
        self._most = most
        self._all: OrderedDict[str, Breaker] = OrderedDict()

    def get(self, name: str) -> Breaker:
        """Return the breaker of that name, a new closed one where there is none."""
        if (known := self._all.get(name)) is not None:
            self._all.move_to_end(name)
            return known
        if len(self._all) >= self._most:
            oldest = next(iter(self._all))
            del self._all[next((key for key, breaker in self._all.items() if breaker.idle), oldest)]
        made = self._all[name] = Breaker(name, self._policy)
        return made

    def require(self, name: str, now: float) -> Permit:
        """Return leave for one call. Raises BreakerOpenError."""
        breaker = self.get(name)
        if (permit := breaker.enter(now)) is not None:
            return permit
        wait = max(1, round(breaker.wait_s(now) + 0.5))
        raise BreakerOpenError(
            f"{name} failed too often just now and is left alone for {wait} s; nothing was tried. Do without it, or "
            "wait.",
            retry_after_s=wait,
        )

    def snapshot(self, now: float) -> tuple[Snapshot, ...]:
        """Return how each stands, those that are not closed first."""
        shown = (breaker.snapshot(now) for breaker in self._all.values())
        return tuple(sorted(shown, key=lambda one: (one.state == "closed", one.name)))
