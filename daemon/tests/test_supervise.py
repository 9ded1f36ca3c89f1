"""Supervision on the in-memory engine and gateway, with a real state.db."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from loopd.cause import Cause, Code
from loopd.config import SuperviseSettings
from loopd.engine import InMemoryEngine, Instance, InstanceState, Limits, Relist, StartFailedError, Unit
from loopd.gateway import InMemoryGateway
from loopd.ledger import Ledger
from loopd.metrics import build_metrics
from loopd.ollama import EngineAnswerError
from loopd.registry import Registry
from loopd.release import Release
from loopd.restarts import Restarts
from loopd.rollout import Rollouts
from loopd.routing import Routing
from loopd.state import Database
from loopd.supervise import Supervisor
from loopd.unit_plan import BACKOFF_MOST_S
from samples import make_release

IMAGE = "image"
A, B = make_release("alpha"), make_release("beta")


def unit(name: str, image: str = IMAGE) -> Unit:
    return Unit(name=name, image=image, user="1:1", network="internal", limits=Limits(memory_bytes=1))


@dataclass
class Loader:
    engine: InMemoryEngine
    loaded: int = 0
    fail: Exception | None = None

    async def start(self, release: Release) -> Instance:
        return await self.engine.apply(unit(release.unit))

    async def load(self, release: Release, address: str) -> float:
        if self.fail:
            raise self.fail
        self.loaded += 1
        return 1.0

    async def check(self, release: Release, address: str) -> float:
        raise AssertionError("supervision asks no golden prompts")

    async def recheck(self, address: str, *, timeout_s: float) -> float:
        return 100.0

    async def probe(self, address: str, *, timeout_s: float) -> float:
        return 0.01

    async def remove(self, release_id: str, unit: str) -> None:
        raise AssertionError("supervision removes no release")


@dataclass
class Bench:
    engine: InMemoryEngine
    gateway: InMemoryGateway
    registry: Registry
    rollouts: Rollouts
    restarts: Restarts
    ledger: Ledger
    loader: Loader
    supervisor: Supervisor
    fixed: list[Unit]
    prepared: list[int]

    async def until(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        """Wait while the supervisor runs."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)

    def running(self, name: str) -> bool:
        found = self.engine.instances.get(name)
        return found is not None and found.state is InstanceState.RUNNING


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[Bench]:
    engine, gateway = InMemoryEngine(images={IMAGE: "sha256:i", "new": "sha256:n"}), InMemoryGateway()
    registry, ledger, restarts = Registry(database), Ledger(database), Restarts(database)
    rollouts = Rollouts(database, registry, ledger)
    loader = Loader(engine)
    fixed = [unit("gateway"), unit("agent")]
    prepared: list[int] = []

    async def prepare() -> None:
        prepared.append(1)

    supervisor = Supervisor(
        engine=engine,
        loader=loader,
        registry=registry,
        rollouts=rollouts,
        routing=Routing.over(registry, engine, gateway),
        restarts=restarts,
        ledger=ledger,
        metrics=build_metrics(),
        fixed=lambda: fixed,
        engine_unit=lambda release: unit(release.unit),
        prepare_gateway=prepare,
        relist_s=0.2,
        limits=SuperviseSettings(crashes=3, crash_window_s=60),
    )
    await registry.add(A, source="a.gguf")
    await registry.promote(A.id)
    task = asyncio.create_task(supervisor.run_forever())
    made = Bench(engine, gateway, registry, rollouts, restarts, ledger, loader, supervisor, fixed, prepared)
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def everything_up(bench: Bench) -> None:
    await bench.until(lambda: all(bench.running(n) for n in ("gateway", "agent", A.unit)) and bench.loader.loaded > 0)


async def test_everything_wanted_is_started_and_routed(bench: Bench) -> None:
    await everything_up(bench)
    await bench.until(lambda: {s.server for s in bench.gateway.servers.values()} == {A.short, "agent"})
    assert bench.prepared, "the gateway's configuration was written before it started"
    assert await bench.restarts.count("agent") == 0


@pytest.mark.parametrize(
    ("exit_code", "oom", "cause"), [(0, False, "code 0"), (137, False, "SIGKILL"), (137, True, "memory")]
)
async def test_a_death_is_mended_and_its_cause_written_down(
    bench: Bench, exit_code: int, oom: bool, cause: str
) -> None:
    await everything_up(bench)
    bench.engine.die("agent", exit_code=exit_code, oom_killed=oom)
    await bench.until(lambda: bench.running("agent"))
    (restart,) = await bench.restarts.of("agent")
    assert cause in restart.cause
    entry = await bench.ledger.last("agent", "unit.restarted")
    assert entry is not None
    assert entry.detail["oom_killed"] is oom


async def test_the_champion_is_loaded_anew_after_its_death(bench: Bench) -> None:
    await everything_up(bench)
    before = bench.loader.loaded
    bench.engine.die(A.unit, exit_code=139)
    await bench.until(lambda: bench.loader.loaded > before and bench.running(A.unit))


async def test_a_container_that_someone_removed_comes_back(bench: Bench) -> None:
    await everything_up(bench)
    await bench.until(lambda: "agent" in {s.server for s in bench.gateway.servers.values()})
    await bench.engine.remove("agent")
    await bench.until(lambda: bench.running("agent"))
    assert "removed" in (await bench.restarts.of("agent"))[0].cause


async def test_a_new_address_reaches_the_gateway(bench: Bench) -> None:
    await everything_up(bench)
    bench.engine.die("agent")
    del bench.engine.instances["agent"]
    await bench.until(lambda: bench.running("agent"))
    address = f"{bench.engine.instances['agent'].address}:8000"
    await bench.until(lambda: bench.gateway.servers["agent", "agent"].address == address)


async def test_a_changed_unit_is_replaced(bench: Bench) -> None:
    await everything_up(bench)
    old = bench.engine.instances["agent"].id
    bench.fixed[1] = unit("agent", "new")
    bench.supervisor.poke()
    await bench.until(lambda: bench.running("agent") and bench.engine.instances["agent"].id != old)


async def test_what_nobody_wants_is_removed_but_sandboxes_are_the_brokers(bench: Bench) -> None:
    await everything_up(bench)
    await bench.engine.apply(unit("engine-stray"))
    await bench.engine.apply(unit("sandbox-1"))
    await bench.until(lambda: "engine-stray" not in bench.engine.instances)
    assert bench.running("sandbox-1")


async def test_an_engine_that_goes_and_comes_back_is_waited_for(bench: Bench) -> None:
    await everything_up(bench)
    bench.engine.down = True
    bench.supervisor.poke()
    await asyncio.sleep(0.05)
    instance = bench.engine.instances["agent"]
    bench.engine.instances["agent"] = replace(instance, state=InstanceState.STOPPED, exit_code=0)
    bench.engine.down = False
    await bench.until(lambda: bench.running("agent"))


async def test_a_unit_that_cannot_start_is_tried_less_and_less_often(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await everything_up(bench)
    apply, tried = bench.engine.apply, []

    async def refuse(of: Unit) -> Instance:
        if of.name == "agent":
            tried.append(1)
            raise StartFailedError("no such mount")
        return await apply(of)

    monkeypatch.setattr(bench.engine, "apply", refuse)
    bench.engine.die("agent")
    await bench.until(lambda: len(tried) >= 3)
    assert await bench.supervisor.looping("agent"), "from now on it waits a minute"
    await asyncio.sleep(0.3)
    assert len(tried) == 3
    entry = await bench.ledger.last("agent", "unit.failed")
    assert entry is not None
    assert entry.cause == "no such mount"


async def test_a_unit_whose_image_is_gone_waits_and_is_no_crash(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await everything_up(bench)
    looks: list[str] = []
    image_id = bench.engine.image_id

    async def look(reference: str) -> str:
        looks.append(reference)
        return await image_id(reference)

    monkeypatch.setattr(bench.engine, "image_id", look)
    bench.fixed[1] = unit("agent", "missing")
    bench.supervisor.poke()
    await bench.until(lambda: "missing" in looks)
    for _ in range(20):
        bench.supervisor.poke()
        await asyncio.sleep(0.01)
    assert looks == ["missing"], "no busy loop"
    assert bench.running("agent"), "what runs is kept until there is something to put in its place"
    assert await bench.restarts.count("agent") == 0
    entry = await bench.ledger.last("agent", "unit.")
    assert entry is not None
    assert (entry.event, entry.detail["code"]) == ("unit.waits", "image_gone")
    assert "missing" in entry.cause
    bench.engine.images["missing"] = "sha256:m"
    bench.supervisor.clock = lambda: datetime.now(UTC) + timedelta(minutes=1)
    bench.supervisor.poke()
    await bench.until(lambda: bench.engine.instances["agent"].image_id == "sha256:m")


async def test_a_load_that_fails_is_tried_again(bench: Bench) -> None:
    await everything_up(bench)
    bench.loader.fail = EngineAnswerError("busy")
    bench.engine.die(A.unit)
    await bench.until(lambda: bench.running(A.unit))
    await asyncio.sleep(0.05)
    bench.loader.fail = None
    before = bench.loader.loaded
    await bench.until(lambda: bench.loader.loaded > before)


async def test_a_gateway_that_is_down_for_a_moment_gets_its_routes_later(bench: Bench) -> None:
    await everything_up(bench)
    bench.gateway.down = True
    bench.engine.die("agent")
    del bench.engine.instances["agent"]
    await bench.until(lambda: bench.running("agent"))
    bench.gateway.down = False
    address = f"{bench.engine.instances['agent'].address}:8000"
    # It has no route at all for as long as the gateway was told that it went.
    await bench.until(
        lambda: (known := bench.gateway.servers.get(("agent", "agent"))) is not None and known.address == address
    )


async def test_what_someone_did_by_hand_is_told_and_is_no_crash(bench: Bench) -> None:
    await everything_up(bench)
    bench.engine.touch("agent", 15)
    bench.engine.die("agent", exit_code=143)
    await bench.until(lambda: bench.running("agent"))
    (restart,) = await bench.restarts.of("agent")
    assert restart.code is Code.OPERATOR
    assert await bench.restarts.crashes("agent") == []


async def crash(bench: Bench, name: str, times: int) -> None:
    for _ in range(times):
        before = await bench.restarts.count(name)
        bench.engine.die(name, exit_code=1)
        async with asyncio.timeout(10):
            while await bench.restarts.count(name) == before or not bench.running(name):
                await asyncio.sleep(0.005)


async def test_a_crash_loop_is_told_once_and_restarts_go_on(bench: Bench) -> None:
    await everything_up(bench)
    await crash(bench, "agent", 3)
    assert await bench.supervisor.looping("agent")
    bench.engine.die("agent", exit_code=1)
    told = [e for e in await bench.ledger.read(limit=500) if e.event == "unit.crash_loop"]
    assert [e.subject for e in told] == ["agent"]
    assert "3 times within 60 s" in told[0].cause


async def test_a_champion_in_a_crash_loop_gives_way_to_the_release_before(bench: Bench) -> None:
    await bench.registry.add(B, source="b.gguf")
    await bench.registry.promote(B.id)
    bench.supervisor.poke()
    await bench.until(lambda: bench.running(B.unit) and bench.loader.loaded > 0)
    await crash(bench, B.unit, 3)
    waiting = (await bench.rollouts.newest(1))[0]
    assert (waiting.kind, waiting.candidate) == ("rollback", A.id)
    assert "crash loop" in waiting.reason


async def test_two_bad_releases_do_not_take_turns(bench: Bench) -> None:
    """The release before was left for its own faults a moment ago: going back to it would never end."""
    await bench.registry.add(B, source="b.gguf")
    await bench.registry.promote(B.id)
    await bench.rollouts.request_rollback("release b is in a crash loop")
    bench.supervisor.poke()
    await bench.until(lambda: bench.running(B.unit) and bench.loader.loaded > 0)
    before = len(await bench.rollouts.newest())
    await crash(bench, B.unit, 3)
    assert await bench.ledger.last(B.unit, "unit.crash_loop") is not None
    assert len(await bench.rollouts.newest()) == before


async def test_what_runs_and_does_not_work_is_replaced(bench: Bench) -> None:
    await everything_up(bench)
    broken = bench.engine.instances[A.unit]
    await bench.until(lambda: bench.supervisor.loaded(broken))
    await bench.until(lambda: not bench.supervisor._mending)
    bench.supervisor.replace(unit(A.unit), broken, Cause(Code.WEDGED, "no token"))
    await bench.until(lambda: bench.running(A.unit) and bench.engine.instances[A.unit].id != broken.id)
    entry = await bench.ledger.last(A.unit, "unit.restarted")
    assert entry is not None
    assert (entry.cause, entry.detail["code"]) == ("no token", "wedged")


async def test_in_a_crash_loop_what_does_not_work_is_replaced_seldom(bench: Bench) -> None:
    await everything_up(bench)
    for _ in range(3):
        await bench.restarts.record("agent", Cause(Code.UNHEALTHY, "down"))
    broken = bench.engine.instances["agent"]
    bench.supervisor.replace(unit("agent"), broken, Cause(Code.UNHEALTHY, "down"))
    await asyncio.sleep(0.1)
    assert bench.engine.instances["agent"].id == broken.id
    bench.supervisor.clock = lambda: datetime.now(UTC) + timedelta(seconds=BACKOFF_MOST_S + 1)

    def asked() -> bool:
        bench.supervisor.replace(unit("agent"), broken, Cause(Code.UNHEALTHY, "down"))
        return bench.running("agent") and bench.engine.instances["agent"].id != broken.id

    await bench.until(asked)


async def test_a_start_that_failed_is_not_said_to_be_somebodys_removal(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await everything_up(bench)
    apply, fails = bench.engine.apply, [StartFailedError("no room")]
    broken = bench.engine.instances["agent"]

    async def once(of: Unit) -> Instance:
        if of.name == "agent" and fails:
            raise fails.pop()
        return await apply(of)

    monkeypatch.setattr(bench.engine, "apply", once)

    def asked() -> bool:  # as long as the first start is not over, nothing is replaced
        if fails:
            bench.supervisor.replace(unit("agent"), broken, Cause(Code.WEDGED, "hangs"))
        return not fails

    await bench.until(asked)
    await bench.until(lambda: bench.running("agent"))
    assert [r.code for r in await bench.restarts.of("agent")] == [Code.WEDGED, Code.START_FAILED]


async def test_the_agent_waits_for_a_gateway_that_is_being_started(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await everything_up(bench)
    open_gate = asyncio.Event()
    asked = asyncio.Event()

    async def prepare() -> None:
        asked.set()
        await open_gate.wait()

    monkeypatch.setattr(bench.supervisor, "prepare_gateway", prepare)
    bench.engine.die("gateway")
    bench.engine.die("agent")
    await asked.wait()
    await bench.supervisor.reconcile()
    await asyncio.sleep(0.1)
    assert not bench.running("agent")
    open_gate.set()
    await bench.until(lambda: bench.running("gateway") and bench.running("agent"))


async def test_a_dead_event_watcher_is_not_passed_over(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> AsyncIterator[Relist]:
        yield Relist()
        raise RuntimeError("a bug")

    monkeypatch.setattr(bench.engine, "watch", broken)
    second = replace(bench.supervisor)
    with pytest.raises(RuntimeError, match="a bug"):
        async with asyncio.timeout(5):
            await second.run_forever()


async def test_only_a_reconcile_that_worked_keeps_the_watchdog_quiet(bench: Bench) -> None:
    pings: list[int] = []
    bench.supervisor.on_success = lambda: pings.append(1)
    await everything_up(bench)
    await bench.until(lambda: bool(pings))
    bench.engine.down = True
    await asyncio.sleep(0.3)
    pings.clear()
    bench.supervisor.poke()
    await asyncio.sleep(0.3)
    assert not pings
    bench.engine.down = False
    await bench.until(lambda: bool(pings))
