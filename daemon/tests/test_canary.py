"""Rollouts by canary, blue-green and in place, in memory: what turns them back, and that a kill changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from memory_loopd import A, B, C, Host, Killed, Loopd, open_loopd

from loopd.analysis import Answer
from loopd.errors import ConflictError
from loopd.ollama import EngineAnswerError, GoldenError
from loopd.plan import Phase
from loopd.policy import Policy, Stage
from loopd.registry import Registry
from loopd.release import engine_unit
from loopd.state import open_database

CANARY = Policy(
    kind="canary",
    stages=(Stage(percent=10, seconds=0.05, requests=100), Stage(percent=50, seconds=0.05, requests=100)),
)
LONG = Policy(kind="canary", stages=(Stage(percent=50, seconds=20, requests=0),))
GREEN = Policy(kind="blue-green", stages=(Stage(percent=100, seconds=0.05, requests=0),))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "state.db")


@contextlib.asynccontextmanager
async def life(host: Host, policy: Policy, *, in_place: bool = False, kill_at: int = 0) -> AsyncIterator[Loopd]:
    async with open_database(host.path) as database:
        epoch = await Registry(database).raise_epoch()
        yield open_loopd(host, database, epoch, kill_at, policy=policy, in_place=in_place)


@pytest.fixture
async def loopd(host: Host, request: pytest.FixtureRequest) -> AsyncIterator[Loopd]:
    """A loopd with the policy of the test's mark, that serves A."""
    async with life(host, getattr(request, "param", CANARY)) as loopd:
        assert await loopd.rollout(A) is Phase.PROMOTED
        yield loopd


async def steps(loopd: Loopd) -> list[str]:
    newest = (await loopd.rollouts.newest(1))[0]
    return [row.step for row in await loopd.runner.journal.rows(newest.id)]


async def reason(loopd: Loopd) -> str:
    return (await loopd.rollouts.newest(1))[0].reason


async def test_a_good_canary_is_promoted_by_itself_and_its_figures_are_kept(loopd: Loopd) -> None:
    loopd.host.answers = [Answer(server=r.short, failed=False, first_byte_ms=9) for r in (A, B) for _ in range(30)]
    assert await loopd.rollout(B) is Phase.PROMOTED
    assert (await steps(loopd)).count("bake") == 2
    baked = await loopd.ledger.last(B.short, "release.baked")
    assert baked is not None
    assert (baked.detail["percent"], baked.detail["answers"], baked.detail["p95_ms"]) == (50, 30, 9)
    assert await loopd.served() == {B.short: 256}


@pytest.mark.parametrize("loopd", [GREEN], indirect=True)
async def test_blue_green_bakes_with_all_traffic_and_the_old_one_loaded(loopd: Loopd) -> None:
    kept: list[bool] = []
    loopd.loader.on_recheck = lambda: kept.append(A.unit in loopd.host.engine.instances)
    assert await loopd.rollout(B) is Phase.PROMOTED
    assert kept
    assert all(kept)
    assert list(loopd.host.engine.instances) == [B.unit]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([Answer(server=B.short, failed=True, first_byte_ms=0)] * 3, "3 of its 3 answers failed"),
        (
            [Answer(server=A.short, failed=False, first_byte_ms=100)] * 20
            + [Answer(server=B.short, failed=False, first_byte_ms=900)] * 20,
            "first byte takes 900 ms",
        ),
    ],
)
async def test_a_candidate_that_does_worse_is_turned_back_with_the_figures(
    loopd: Loopd, answers: list[Answer], words: str
) -> None:
    loopd.host.answers = answers
    assert await loopd.rollout(B) is Phase.ROLLED_BACK
    assert words in await reason(loopd)
    assert await loopd.served() == {A.short: 256}
    assert list(loopd.host.engine.instances) == [A.unit]
    assert (await steps(loopd))[-4:] == ["shift", "drain", "retire", "conclude"]


async def test_what_fails_for_both_is_not_the_candidates_fault(loopd: Loopd) -> None:
    loopd.host.answers = [Answer(server=r.short, failed=True, first_byte_ms=0) for r in (A, B) for _ in range(9)]
    assert await loopd.rollout(B) is Phase.PROMOTED


@pytest.mark.parametrize("loopd", [LONG], indirect=True)
async def test_a_candidate_that_crashes_while_it_takes_traffic_is_not_restarted(loopd: Loopd) -> None:
    loopd.loader.on_recheck = lambda: loopd.host.engine.die(B.unit) if loopd.loader.rechecks == 2 else None
    assert await loopd.rollout(B) is Phase.ROLLED_BACK
    assert "ended while it took" in await reason(loopd)
    assert loopd.loader.calls.count("start:beta") == 1
    assert await loopd.served() == {A.short: 256}


@pytest.mark.parametrize("loopd", [LONG], indirect=True)
@pytest.mark.parametrize(
    "error", [GoldenError("it guesses"), EngineAnswerError("no answer within 0.1 s")], ids=["garbage", "hang"]
)
async def test_a_candidate_that_goes_wrong_later_is_caught_by_the_next_probe(loopd: Loopd, error: Exception) -> None:
    def spoil() -> None:
        if loopd.loader.rechecks == 3:
            loopd.loader.fail["recheck"] = error

    loopd.loader.on_recheck = spoil
    assert await loopd.rollout(B) is Phase.ROLLED_BACK
    assert str(error) in await reason(loopd)


@pytest.mark.parametrize("loopd", [LONG], indirect=True)
async def test_the_gateways_probe_counts_too(loopd: Loopd) -> None:
    address = []

    def sicken() -> None:
        address.append(loopd.host.engine.instances[B.unit].address)
        loopd.host.gateway.sick.add(f"{address[0]}:11434")

    loopd.loader.on_recheck = sicken
    assert await loopd.rollout(B) is Phase.ROLLED_BACK
    assert "finds it down" in await reason(loopd)


@pytest.mark.parametrize("loopd", [LONG], indirect=True)
async def test_the_operator_turns_a_canary_back(loopd: Loopd) -> None:
    baking = asyncio.Event()
    loopd.loader.on_recheck = baking.set
    work = asyncio.create_task(loopd.rollout(B))
    await baking.wait()
    active = await loopd.rollouts.active()
    assert active is not None
    await loopd.rollouts.request_abort(active.id)
    assert await work is Phase.ROLLED_BACK
    assert await reason(loopd) == "turned back by the operator"
    with pytest.raises(ConflictError, match="nothing to turn back"):
        await loopd.rollouts.request_abort(active.id)


async def test_a_rollout_that_waits_is_dropped_by_hand(loopd: Loopd) -> None:
    await loopd.registry.add(B, source="x")
    waiting = await loopd.rollouts.request(B, kind="rollout", reason="test")
    assert (await loopd.rollouts.request_abort(waiting.id)).phase is Phase.SUPERSEDED
    assert await loopd.rollouts.next() is None


async def test_a_candidate_that_does_not_fit_is_refused_with_the_figures(loopd: Loopd) -> None:
    loopd.host.memory = 1 << 20
    assert await loopd.rollout(B) is Phase.ROLLED_BACK
    assert "MiB of memory" in await reason(loopd)
    assert "swap_in_place" in await reason(loopd)
    assert "start:beta" not in loopd.loader.calls
    assert await loopd.served() == {A.short: 256}


TIGHT = 300 << 20  # room for one engine of these releases, not for two


async def serve_in_place(host: Host) -> None:
    async with life(host, CANARY, in_place=True) as first:
        assert await first.rollout(A) is Phase.PROMOTED
    host.memory = TIGHT - (200 << 20)


async def test_where_two_do_not_fit_the_old_one_leaves_first(host: Host) -> None:
    await serve_in_place(host)
    async with life(host, CANARY, in_place=True) as loopd:
        together: list[int] = []
        loopd.loader.on_call = lambda: together.append(len(host.engine.instances))
        assert await loopd.rollout(B) is Phase.PROMOTED
        assert max(together) == 1
        assert await loopd.served() == {B.short: 256}
        assert (await loopd.registry.serving()).previous == A.id
        assert await loopd.rollout(C) is Phase.PROMOTED


async def test_in_place_a_bad_candidate_gives_its_room_back(host: Host) -> None:
    await serve_in_place(host)
    async with life(host, CANARY, in_place=True) as loopd:
        loopd.loader.fail["check"] = GoldenError("it guesses")
        assert await loopd.rollout(B) is Phase.ROLLED_BACK
        assert await reason(loopd) == "it guesses"
        assert await loopd.served() == {A.short: 256}
        assert list(host.engine.instances) == [A.unit]


async def cut_short(host: Host, policy: Policy, *, in_place: bool, bad: bool, kill_at: int) -> bool:
    """Serve A, then have a loopd die at one boundary of B's rollout; False when there is no such boundary."""
    async with life(host, policy) as first:
        assert await first.rollout(A) is Phase.PROMOTED
    if in_place:
        host.memory = TIGHT - (200 << 20)
    async with life(host, policy, in_place=in_place, kill_at=kill_at) as dying:
        if bad:
            dying.loader.fail["check" if in_place else "recheck"] = GoldenError("it guesses")
        try:
            await dying.rollout(B)
        except Killed:
            return True
    return False


@pytest.mark.parametrize("bad", [False, True], ids=["good", "bad"])
@pytest.mark.parametrize(("policy", "in_place"), [(CANARY, False), (GREEN, False), (CANARY, True)])
async def test_killed_at_every_boundary_the_next_loopd_ends_with_one_outcome(
    tmp_path: Path, policy: Policy, in_place: bool, bad: bool
) -> None:
    """Before and after each journal write, of every step there is, until a life has no boundary left to die at."""
    winner, phase = (A, Phase.ROLLED_BACK) if bad else (B, Phase.PROMOTED)
    kill_at = 1
    while await cut_short(
        host := Host(tmp_path / f"{kill_at}.db"), policy, in_place=in_place, bad=bad, kill_at=kill_at
    ):
        async with life(host, policy, in_place=in_place) as heir:
            if bad:
                heir.loader.fail["check" if in_place else "recheck"] = GoldenError("it guesses")
            if (unfinished := await heir.rollouts.next()) is not None:
                assert (await heir.runner.run(unfinished)).phase is phase
            assert await heir.served() == {winner.short: 256}, f"killed at {kill_at}"
            assert list(host.engine.instances) == [engine_unit(winner.id)], f"killed at {kill_at}"
            assert (await heir.registry.serving()).shares == {winner.id: 100}
        kill_at += 1
    assert kill_at > 4 * 8, "every step was a chance to die"
