"""Back-off and token buckets: what they let through, and that nothing they remember grows without bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopd import attempts
from loopd.attempts import Backoff, Buckets, SlowDownError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def waits(limit: Backoff, key: str) -> int:
    try:
        limit.check(key)
    except SlowDownError as error:
        return error.wait_s
    return 0


def test_some_failures_are_free_then_each_doubles_the_wait() -> None:
    clock = Clock()
    limit = Backoff(3, 60.0, clock)
    seen = []
    for _ in range(12):
        limit.failed("ann")
        seen.append(waits(limit, "ann"))
        clock.now += seen[-1]
        assert waits(limit, "ann") == 0
    assert seen == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert waits(limit, "bob") == 0


def test_success_and_an_hour_of_peace_forget_failures() -> None:
    clock = Clock()
    limit = Backoff(1, 60.0, clock)
    limit.failed("ann")
    assert waits(limit, "ann") == 1
    limit.succeeded("ann")
    assert waits(limit, "ann") == 0
    for _ in range(5):
        limit.failed("ann")
    clock.now += 3601
    limit.failed("ann")
    assert waits(limit, "ann") == 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "MOST_KEYS", 10)
    limit, buckets = Backoff(1, 60.0), Buckets(1.0, 1.0)
    for number in range(1000):
        limit.failed(str(number))
        buckets.take(str(number))
    assert len(limit._failures) == len(buckets._buckets) == 10
    assert waits(limit, "999") == 1, "the newest are kept"


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 100),
    gaps=st.lists(st.floats(0, 5), min_size=1, max_size=200),
)
def test_a_bucket_never_gives_more_than_burst_and_rate_allow(rate: float, burst: int, gaps: list[float]) -> None:
    clock = Clock()
    buckets = Buckets(rate, burst, clock)
    taken: list[float] = []
    waits_s: list[int] = []
    for gap in gaps:
        clock.now += gap
        try:
            buckets.take("ann")
        except SlowDownError as error:
            waits_s.append(error.wait_s)
            continue
        taken.append(clock.now)
    assert all(wait_s >= 1 for wait_s in waits_s)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - taken[first]) + 1e-6


def test_after_the_told_wait_there_is_a_token() -> None:
    clock = Clock()
    buckets = Buckets(0.3, 1, clock)
    buckets.take("ann")
    with pytest.raises(SlowDownError) as caught:
        buckets.take("ann")
    assert caught.value.wait_s == 4
    clock.now += caught.value.wait_s
    buckets.take("ann")


def test_no_rate_is_no_limit() -> None:
    buckets = Buckets(0, 1)
    for _ in range(1000):
        buckets.take("ann")
