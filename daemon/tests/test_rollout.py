"""Rollouts on the in-memory engine and gateway, with a real state.db, killed at every boundary."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from memory_loopd import A, B, C, Host, Killed, Loopd, open_loopd

from loopd.errors import ConflictError
from loopd.journal import StaleEpochError
from loopd.ollama import GoldenError
from loopd.plan import Phase
from loopd.registry import Registry
from loopd.release import Release, engine_unit
from loopd.rollout import NoRollbackError
from loopd.state import open_database
from loopd.steps import kind


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "state.db")


@pytest.fixture
async def loopd(host: Host) -> AsyncIterator[Loopd]:
    async with open_database(host.path) as database:
        yield open_loopd(host, database, await Registry(database).raise_epoch())


async def test_a_candidate_takes_over_and_the_old_one_goes(loopd: Loopd) -> None:
    assert await loopd.rollout(A) is Phase.PROMOTED
    assert await loopd.rollout(B) is Phase.PROMOTED
    assert await loopd.served() == {B.short: 256}
    assert list(loopd.host.engine.instances) == [B.unit]
    serving = await loopd.registry.serving()
    assert (serving.champion, serving.previous, serving.shares) == (B.id, A.id, {B.id: 100})


@pytest.mark.parametrize("step", ["start", "load", "check"])
async def test_a_candidate_that_fails_leaves_no_trace_and_its_reason(loopd: Loopd, step: str) -> None:
    await loopd.rollout(A)
    loopd.loader.fail[step] = GoldenError("it said nonsense")
    assert await loopd.rollout(B) is Phase.ROLLED_BACK
    assert await loopd.served() == {A.short: 256}
    assert list(loopd.host.engine.instances) == [A.unit]
    last = await loopd.ledger.last(B.short, "rollout.")
    assert last is not None
    assert (last.event, last.cause) == ("rollout.rolled_back", "it said nonsense")


async def test_a_candidate_the_gateway_finds_sick_gets_no_traffic(
    loopd: Loopd, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loopd.rollout(A)
    monkeypatch.setattr("loopd.routing.ATTACH_TIMEOUT_S", 0.05)
    loopd.loader.sicken = loopd.host.gateway
    assert await loopd.rollout(B) is Phase.ROLLED_BACK
    assert await loopd.served() == {A.short: 256}


async def test_a_stream_that_outlasts_the_drain_is_written_down(loopd: Loopd) -> None:
    await loopd.rollout(A)
    loopd.host.gateway.hold("engine", A.short, 1)
    assert await loopd.rollout(B) is Phase.PROMOTED
    last = await loopd.ledger.last(A.short, "release.drain")
    assert last is not None


async def test_rollback_returns_to_the_release_before(loopd: Loopd) -> None:
    with pytest.raises(NoRollbackError):
        await loopd.rollouts.request_rollback()
    await loopd.rollout(A)
    await loopd.rollout(B)
    await loopd.rollouts.request_rollback()
    assert await loopd.finish() is Phase.PROMOTED
    assert await loopd.served() == {A.short: 256}
    assert (await loopd.registry.serving()).previous == B.id


async def test_a_newer_candidate_supersedes_one_that_waits(loopd: Loopd) -> None:
    for release in (A, B, C):
        await loopd.registry.add(release, source="x")
    await loopd.rollouts.request(A, kind="rollout", reason="first")
    active = await loopd.rollouts.next()
    waiting = await loopd.rollouts.request(B, kind="rollout", reason="second")
    newest = await loopd.rollouts.request(C, kind="rollout", reason="third")
    assert active is not None
    assert (await loopd.rollouts.get(waiting.id)).phase is Phase.SUPERSEDED
    await loopd.runner.run(active)
    assert await loopd.finish() is Phase.PROMOTED
    assert (await loopd.rollouts.get(newest.id)).phase is Phase.PROMOTED
    assert await loopd.served() == {C.short: 256}


async def test_what_serves_already_is_not_rolled_out_again(loopd: Loopd) -> None:
    await loopd.rollout(A)
    with pytest.raises(ConflictError, match="serves already"):
        await loopd.rollouts.request(A, kind="rollout", reason="again")


async def test_a_container_that_dies_in_between_is_loaded_anew(loopd: Loopd) -> None:
    """What was loaded into a dead container is not taken for loaded."""
    await loopd.rollout(A)
    original = loopd.loader.check

    async def check_then_die(release: Release, address: str) -> float:
        loopd.loader.check = original  # type: ignore[method-assign]  # once
        speed = await original(release, address)
        del loopd.host.engine.instances[release.unit]
        return speed

    loopd.loader.check = check_then_die  # type: ignore[method-assign]  # the fault under test
    assert await loopd.rollout(B) is Phase.PROMOTED
    assert loopd.loader.calls.count("load:beta") == 2


async def test_a_candidate_that_keeps_dying_is_given_up(loopd: Loopd) -> None:
    await loopd.rollout(A)
    original = loopd.loader.check

    async def check_then_die(release: Release, address: str) -> float:
        speed = await original(release, address)
        del loopd.host.engine.instances[release.unit]
        return speed

    loopd.loader.check = check_then_die  # type: ignore[method-assign]  # the fault under test
    assert await loopd.rollout(B) is Phase.ROLLED_BACK
    assert await loopd.served() == {A.short: 256}


async def test_an_engine_that_is_down_for_a_moment_is_not_the_candidates_fault(loopd: Loopd) -> None:
    await loopd.rollout(A)
    loopd.host.engine.down = True
    work = asyncio.create_task(loopd.rollout(B))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.3, setattr, loopd.host.engine, "down", False)
    assert await work is Phase.PROMOTED


async def test_an_older_loopd_is_refused(host: Host) -> None:
    """Two daemons on one state would else interleave their steps."""
    async with open_database(host.path) as database:
        registry = Registry(database)
        old = open_loopd(host, database, await registry.raise_epoch())
        await registry.raise_epoch()
        await registry.add(A, source="x")
        await old.rollouts.request(A, kind="rollout", reason="test")
        with pytest.raises(StaleEpochError):
            await old.finish()
    assert host.engine.instances == {}


BOUNDARIES = 4 * 9  # begin and done of nine steps, before and after each


@pytest.mark.parametrize("kill_at", range(1, BOUNDARIES + 1))
async def test_killed_at_any_boundary_the_next_loopd_ends_with_one_outcome(host: Host, kill_at: int) -> None:
    async with open_database(host.path) as database:
        await open_loopd(host, database, await Registry(database).raise_epoch()).rollout(A)
    async with open_database(host.path) as database:
        dying = open_loopd(host, database, await Registry(database).raise_epoch(), kill_at)
        with pytest.raises(Killed):
            await dying.rollout(B)
        assert sum((await dying.served()).values()) > 0, "traffic is served while loopd is dead"
    async with open_database(host.path) as database:
        heir = open_loopd(host, database, await Registry(database).raise_epoch())
        unfinished = await heir.rollouts.next()
        if unfinished is not None:
            assert (await heir.runner.run(unfinished)).phase is Phase.PROMOTED
        assert await heir.served() == {B.short: 256}
        assert list(host.engine.instances) == [engine_unit(B.id)]
        assert (await heir.registry.serving()).shares == {B.id: 100}
        assert await heir.ledger.verify() is None


@pytest.mark.parametrize("kill_at", range(1, 4 * 6 + 1))
async def test_killed_while_turning_back_the_next_loopd_turns_back(host: Host, kill_at: int) -> None:
    async with open_database(host.path) as database:
        await open_loopd(host, database, await Registry(database).raise_epoch()).rollout(A)
    async with open_database(host.path) as database:
        dying = open_loopd(host, database, await Registry(database).raise_epoch(), kill_at)
        dying.loader.fail["check"] = GoldenError("nonsense")
        with pytest.raises(Killed):
            await dying.rollout(B)
            raise Killed  # the boundary lies beyond the end
    async with open_database(host.path) as database:
        heir = open_loopd(host, database, await Registry(database).raise_epoch())
        heir.loader.fail["check"] = GoldenError("nonsense")
        unfinished = await heir.rollouts.next()
        if unfinished is not None:
            assert (await heir.runner.run(unfinished)).phase is Phase.ROLLED_BACK
        assert await heir.served() == {A.short: 256}
        assert list(host.engine.instances) == [engine_unit(A.id)]


async def test_the_plan_shown_is_the_plan_run(loopd: Loopd) -> None:
    await loopd.rollout(A)
    await loopd.registry.add(B, source="x")
    await loopd.rollouts.request(B, kind="rollout", reason="test")
    rollout = await loopd.rollouts.next()
    assert rollout is not None
    planned = [kind(step) for step in await loopd.runner.plan(rollout)]
    await loopd.runner.run(rollout)
    assert [row.step for row in await loopd.runner.journal.rows(rollout.id)] == planned
