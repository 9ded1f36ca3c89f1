"""The circuit breaker against a model of it that is written down as slowly and plainly as can be."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loopbox_agent.breaker import Breaker, BreakerOpenError, Breakers, Permit, Policy

POLICY = Policy(window=6, least=3, rate=0.5, open_s=2, longest_open_s=7, probe_s=20)


@dataclass
class Plain:
    """What a breaker should do: everything is kept and looked at again each time."""

    now: float = 0.0
    state: str = "closed"
    since: list[bool] = field(default_factory=list)  # outcomes in this closed time; True: failed
    opened_at: float = 0.0
    row: int = 0
    probe_at: float | None = None

    def open_for(self) -> float:
        return min(POLICY.open_s * 2.0 ** (self.row - 1), POLICY.longest_open_s)

    def passes(self) -> bool:
        if self.state == "closed":
            return True
        if self.state == "open":
            return self.now >= self.opened_at + self.open_for()
        return self.probe_at is None or self.now >= self.probe_at + POLICY.probe_s

    def fails(self) -> None:
        self.state, self.opened_at, self.row, self.since = "open", self.now, self.row + 1, []


class Machine(RuleBasedStateMachine):
    """Calls that begin and end in any order, and time that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.real = Breaker("x", POLICY)
        self.plain = Plain()
        self.under_way: list[tuple[Permit, int]] = []  # with the number of the state it began in
        self.number = 0

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0, 7.0, 21.0]))
    def time_passes(self, seconds: float) -> None:
        self.plain.now += seconds

    @rule()
    def begin(self) -> None:
        passes = self.plain.passes()
        permit = self.real.enter(self.plain.now)
        assert (permit is not None) == passes
        if permit is None:
            return
        if self.plain.state != "closed":
            self.number += 1
            self.plain.state, self.plain.probe_at = "half_open", self.plain.now
            assert permit.probes
        self.under_way.append((permit, self.number))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), outcome=st.sampled_from(["ok", "failed", "gave up"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        permit, number = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        {
            "ok": lambda: permit.succeeded(self.plain.now),
            "failed": lambda: permit.failed(self.plain.now),
            "gave up": permit.gave_up,
        }[outcome]()
        if number != self.number:
            return  # it began in a state that is over
        if self.plain.state == "half_open":
            if outcome == "gave up":
                self.plain.probe_at = None
                return
            self.number += 1
            self.plain.probe_at = None
            if outcome == "failed":
                self.plain.fails()
            else:
                self.plain.state, self.plain.row, self.plain.since = "closed", 0, []
        elif outcome != "gave up":
            self.plain.since.append(outcome == "failed")
            seen = self.plain.since[-POLICY.window :]
            if outcome == "failed" and len(seen) >= POLICY.least and sum(seen) >= POLICY.rate * len(seen):
                self.number += 1
                self.plain.fails()

    @invariant()
    def tells_the_truth(self) -> None:
        shown = self.real.snapshot(self.plain.now)
        assert (shown.wait_s == 0) == self.plain.passes()
        assert (shown.state == "closed") == (self.plain.state == "closed")
        assert shown.calls <= POLICY.window
        assert shown.failures <= shown.calls


TestBreaker = Machine.TestCase
TestBreaker.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def broken(breaker: Breaker, now: float) -> None:
    for _ in range(POLICY.least):
        permit = breaker.enter(now)
        assert permit is not None
        permit.failed(now)


def test_one_probe_at_a_time() -> None:
    breaker = Breaker("x", POLICY)
    broken(breaker, 0)
    assert breaker.enter(1.9) is None
    probe = breaker.enter(2.0)
    assert probe is not None
    assert breaker.enter(2.0) is None
    probe.failed(2.5)
    assert (breaker.enter(6.4), breaker.snapshot(6.4).wait_s) == (None, 0.1)  # twice as long
    again = breaker.enter(6.5)
    assert again is not None
    again.succeeded(6.6)
    assert breaker.snapshot(6.6).state == "closed"
    broken(breaker, 7.0)
    assert breaker.snapshot(7.0).wait_s == POLICY.open_s  # what was well between is not held against it


def test_breakers_are_bounded_and_those_that_know_something_stay() -> None:
    breakers = Breakers(POLICY, most=3)
    broken(breakers.get("ill"), 0)
    for number in range(50):
        breakers.get(f"well{number}")
    names = [one.name for one in breakers.snapshot(0)]
    assert len(names) == 3
    assert names[0] == "ill"
    for number in range(3):
        broken(breakers.get(f"ill{number}"), 0)
    assert [one.name for one in breakers.snapshot(0)] == ["ill0", "ill1", "ill2"]


def test_a_refusal_says_for_how_long() -> None:
    breakers = Breakers(POLICY)
    broken(breakers.get("python"), 0)
    with pytest.raises(BreakerOpenError) as caught:
        breakers.require("python", 0.5)
    assert caught.value.retry_after_s == 2
    assert breakers.require("python", 2.0).probes
