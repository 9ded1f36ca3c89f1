"""The warm pool: who waits is served in order; the plan never starts more than there is room for."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopd.pool import Need, Pool, plan_fill
from loopd.units import SandboxKind


async def test_who_waits_is_served_in_order() -> None:
    pool = Pool(target=0)
    order: list[tuple[int, str]] = []

    async def take(number: int) -> None:
        order.append((number, await pool.take(5)))

    waiting = [asyncio.create_task(take(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert pool.waiting == 5
    for number in range(5):
        pool.offer(f"s{number}")
    await asyncio.gather(*waiting)
    assert order == [(number, f"s{number}") for number in range(5)]
    assert pool.warm == []


async def test_a_newcomer_takes_none_past_those_who_wait() -> None:
    pool = Pool(target=0)
    first = asyncio.create_task(pool.take(5))
    await asyncio.sleep(0)
    pool.warm.append("odd")  # however it came there
    with pytest.raises(TimeoutError):
        await pool.take(0.01)
    pool.offer("s")
    assert await first == "s"


async def test_who_gave_up_is_passed_over_and_loses_nothing() -> None:
    pool = Pool(target=0)
    gone, stays = asyncio.create_task(pool.take(5)), asyncio.create_task(pool.take(5))
    await asyncio.sleep(0)
    gone.cancel()
    pool.offer("s")
    assert await stays == "s"
    late = asyncio.create_task(pool.take(5))
    await asyncio.sleep(0)
    pool.offer("t")
    late.cancel()  # at the moment it was given one
    await asyncio.gather(gone, late, return_exceptions=True)
    assert pool.warm == ["t"] or late.result() == "t"


needs = st.fixed_dictionaries(
    {kind: st.builds(Need, st.integers(0, 6), st.integers(0, 6), st.integers(0, 4)) for kind in ("tools", "browser")}
)


@given(needs, st.integers(-2, 8), st.integers(-1, 6))
def test_no_plan_starts_more_than_there_is_room_for(needs: dict[SandboxKind, Need], room: int, at_once: int) -> None:
    plan = plan_fill(needs, room=room, at_once=at_once)
    assert len(plan.start) <= max(0, at_once)
    assert len(plan.start) <= max(0, room) + len(plan.evict) or room < 0
    for kind, need in needs.items():
        assert plan.start.count(kind) <= need.wanted
        assert plan.evict.count(kind) <= (0 if need.waiting else need.spare)


def test_who_waits_comes_before_what_is_to_be_warm() -> None:
    plan = plan_fill({"tools": Need(3, 0, 0), "browser": Need(1, 1, 0)}, room=2, at_once=2)
    assert sorted(plan.start) == ["browser", "tools"]


def test_a_warm_one_that_nobody_waits_for_makes_room() -> None:
    plan = plan_fill({"tools": Need(0, 0, 2), "browser": Need(1, 1, 0)}, room=0, at_once=2)
    assert (plan.start, plan.evict) == (("browser",), ("tools",))
