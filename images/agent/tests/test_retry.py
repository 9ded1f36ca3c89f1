"""When something is tried again, how long is waited before, and that no wait goes past the deadline."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox_agent.deadline import Deadline
from loopbox_agent.errors import DeadlineError
from loopbox_agent.failure import Failure
from loopbox_agent.retry import Backoff, Retries, Work, may_retry

SECONDS = st.floats(min_value=0, max_value=1e4)


@dataclass
class Clock:
    """Time that passes only by sleeping."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@given(
    tried=st.integers(1, 5000),
    failure=st.builds(Failure, st.just("service"), st.booleans(), st.booleans(), st.none() | SECONDS),
    backoff=st.builds(Backoff, st.integers(1, 5000), SECONDS, SECONDS, SECONDS, st.floats(0, 1)),
    left_s=SECONDS | st.just(math.inf),
    drawn=st.floats(0, 1, exclude_max=True),
)
def test_a_wait_fits_the_deadline_the_cap_and_what_was_asked(
    tried: int, failure: Failure, backoff: Backoff, left_s: float, drawn: float
) -> None:
    wait = backoff.plan(tried, failure, left_s=left_s, draw=lambda: drawn)
    if wait is None:
        return
    assert failure.retryable
    assert tried < backoff.tries
    assert 0 <= wait + backoff.least_left_s <= left_s
    asked = failure.wait_s or 0.0
    assert asked <= backoff.longest_wait_s
    assert asked <= wait <= asked + backoff.cap_s


@given(st.integers(1, 6), st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2))
def test_the_limit_doubles_and_the_whole_of_it_is_used(tried: int, drawn: list[float]) -> None:
    """Full jitter: a wait is drawn from nothing at all up to the limit."""
    backoff = Backoff(tries=10, base_s=1, cap_s=16)
    for number in drawn:
        wait = backoff.plan(tried, Failure("network", retryable=True), left_s=math.inf, draw=[number].pop)
        assert wait == number * min(16, 2 ** (tried - 1))


def test_no_wait_leaves_too_little_to_try_in() -> None:
    backoff = Backoff(base_s=1, least_left_s=0.5)
    for left_s, wanted in ((1.51, 1.0), (1.49, None)):
        assert backoff.plan(1, Failure("network", retryable=True), left_s=left_s, draw=lambda: 1.0) == wanted


@pytest.mark.parametrize(
    ("failure", "work", "again"),
    [
        (Failure("service", retryable=True), "model", True),
        (Failure("service", retryable=True), "read", True),
        (Failure("service", retryable=True), "write", False),  # it may have been done
        (Failure("network", retryable=True, nothing_ran=True), "write", True),
        (Failure("permission", nothing_ran=True), "read", False),
        (Failure("permission", nothing_ran=True), "write", False),
    ],
)
def test_a_change_is_repeated_only_when_nothing_was_done(failure: Failure, work: Work, *, again: bool) -> None:
    assert may_retry(failure, work) is again


def failing(times: int, error: Callable[[], Exception]) -> tuple[Callable[[], object], list[int]]:
    made: list[int] = []

    async def attempt() -> str:
        made.append(1)
        if len(made) <= times:
            raise error()
        return "done"

    return attempt, made


def retries(clock: Clock, seconds: float = 60, **changes: float) -> Retries:
    backoff = Backoff(tries=int(changes.get("tries", 4)), longest_wait_s=changes.get("longest_wait_s", 30))
    draw = random.Random(7).random  # noqa: S311 the same draws in every run
    return Retries(Deadline.after(seconds, clock), backoff, draw, clock.sleep)


async def run(tries: Retries, times: int, error: Callable[[], Exception], work: Work = "model") -> tuple[object, int]:
    attempt, made = failing(times, error)
    try:
        return await tries.run(attempt, work), len(made)  # type: ignore[arg-type]  # it is a coroutine function
    except Exception as raised:  # noqa: BLE001 what was raised is what is asked for
        return raised, len(made)


async def test_a_transient_fault_is_waited_out_and_the_waits_are_known() -> None:
    clock = Clock()
    drawn = random.Random(7)  # noqa: S311 the same draws in every run
    assert await run(retries(clock), 2, lambda: httpx2.ConnectError("refused")) == ("done", 3)
    assert clock.slept == [drawn.random() * 0.2, drawn.random() * 0.4]


async def test_it_gives_up_after_its_tries_with_the_last_error() -> None:
    given_up, made = await run(retries(Clock(), tries=3), 9, lambda: httpx2.ReadError("reset"))
    assert (type(given_up), made) == (httpx2.ReadError, 3)


async def test_a_write_that_may_have_been_done_is_not_repeated() -> None:
    clock = Clock()
    given_up, made = await run(retries(clock), 1, lambda: httpx2.ReadError("reset"), "write")
    assert (type(given_up), made, clock.slept) == (httpx2.ReadError, 1, [])
    assert await run(retries(clock), 1, lambda: httpx2.ConnectError("refused"), "write") == ("done", 2)


async def test_what_can_not_help_is_not_repeated() -> None:
    given_up, made = await run(retries(Clock()), 9, lambda: PermissionError("no"))
    assert (type(given_up), made) == (PermissionError, 1)


def limited(seconds: int) -> Callable[[], Exception]:
    response = httpx2.Response(429, headers={"Retry-After": str(seconds)}, request=httpx2.Request("GET", "http://x"))
    return lambda: httpx2.HTTPStatusError("no", request=response.request, response=response)


async def test_a_retry_after_is_honoured_or_not_waited_for_at_all() -> None:
    clock = Clock()
    assert await run(retries(clock), 1, limited(9)) == ("done", 2)
    assert 9 <= clock.slept[0] < 9.2
    for seconds, changes in (
        (9.0, {}),
        (60.0, {"longest_wait_s": 8.0}),
    ):  # past the deadline; longer than one sits here
        clock = Clock()
        given_up, made = await run(retries(clock, seconds, **changes), 1, limited(9))
        assert (type(given_up), made, clock.slept) == (httpx2.HTTPStatusError, 1, [])


async def test_a_try_that_takes_too_long_is_ended_by_the_deadline() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlineError):
        await Retries(Deadline.after(0.02)).run(hang, "model")


async def test_a_timeout_of_the_work_itself_is_not_the_deadlines() -> None:
    async def hang() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await Retries(Deadline.after(60), Backoff(tries=1)).run(hang, "model")


async def test_a_cancel_is_no_failure() -> None:
    begun = asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(Retries(Deadline.after(60)).run(hang, "read"))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@given(st.lists(SECONDS, max_size=6), SECONDS)
def test_a_deadline_passed_down_only_comes_nearer(steps: list[float], passed: float) -> None:
    clock = Clock()
    deadline = Deadline.after(100, clock)
    for step in steps:
        nearer = deadline.within(step)
        assert nearer.at <= deadline.at
        deadline = nearer
    clock.now += passed
    assert deadline.left() >= 0
    assert deadline.passed == (deadline.left() == 0)
