"""Whether what runs also works."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopd.cause import Cause, Code
from loopd.config import SuperviseSettings
from loopd.engine import InMemoryEngine, Instance, Limits, Unit, Usage
from loopd.gateway import InMemoryGateway, Route
from loopd.gpu import Gpu, GpuError, InMemoryGpus, NvmlGpus, free_memory
from loopd.loading import Loader
from loopd.ollama import EngineAnswerError
from loopd.supervise import Supervisor
from loopd.vitals import Health, Unanswered, Vitals, judge_probe

LIMITS = SuperviseSettings(probe_s=0.02, probe_deadline_s=0.1, stuck_s=300, unhealthy_s=10, grace_s=60)
ENGINE = Unit(name="engine-a", image="i", user="1:1", network="internal", limits=Limits(memory_bytes=1))


def unanswered(*, waited_s: float = 0.1, cpu_s: float = 0.0, in_a_row: int = 1, silent_s: float = 1.0) -> Unanswered:
    return Unanswered(waited_s=waited_s, cpu_s=cpu_s, in_a_row=in_a_row, silent_s=silent_s, error="no answer")


@pytest.mark.parametrize(
    ("probe", "code"),
    [
        (unanswered(), Code.WEDGED),
        (unanswered(cpu_s=0.005), None),
        (unanswered(cpu_s=0.005, in_a_row=2), Code.WEDGED),
        (unanswered(cpu_s=0.1, in_a_row=9), None),
        (unanswered(cpu_s=0.1, silent_s=301), Code.WEDGED),
        (unanswered(waited_s=0.01), None),
        (unanswered(waited_s=0.01, silent_s=11), Code.UNHEALTHY),
    ],
    ids=["stopped", "idle once", "idle twice", "busy", "busy for ever", "one error", "only errors"],
)
def test_who_does_not_answer_is_broken_only_if_it_does_not_work_either(probe: Unanswered, code: Code | None) -> None:
    cause = judge_probe(probe, LIMITS)
    assert (cause and cause.code) == code


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=30))
def test_a_unit_that_is_up_again_and_again_is_never_unhealthy(looks: list[tuple[float, bool]]) -> None:
    health, now = Health(since=0.0), 0.0
    for gap, up in looks:
        now += min(gap, LIMITS.unhealthy_s / 3)
        health.see(up=up, now=now)
        health.see(up=True, now=now)
        assert health.judge(LIMITS, now) is None


def test_a_unit_that_is_down_for_long_is_unhealthy_but_not_while_it_starts() -> None:
    starting, broken = Health(since=0.0), Health(since=0.0)
    broken.see(up=True, now=1)
    for health in (starting, broken):
        health.see(up=False, now=2)
    assert broken.judge(LIMITS, 11) is None
    assert broken.judge(LIMITS, 13) is not None
    assert starting.judge(LIMITS, 59) is None, "a slow starter is not killed"
    assert starting.judge(LIMITS, 61) is not None


@dataclass
class FakeSupervisor:
    """Stands for the two questions and the one order that vitals have."""

    replaced: list[Cause] = field(default_factory=list)
    units: list[tuple[Unit, Cause]] = field(default_factory=list)
    happened: asyncio.Event = field(default_factory=asyncio.Event)
    ready: bool = True

    wanted: list[Unit] = field(default_factory=lambda: [ENGINE])
    told: list[tuple[str, str]] = field(default_factory=list)

    async def tell(self, event: str, subject: str, words: str) -> None:
        self.told.append((event, words))

    async def desired(self) -> list[Unit]:
        return self.wanted

    def loaded(self, instance: Instance) -> bool:
        return self.ready

    def replace(self, unit: Unit, instance: Instance, cause: Cause) -> None:
        self.replaced.append(cause)
        self.units.append((unit, cause))
        self.happened.set()


@dataclass
class FakeLoader:
    fail: bool = False
    probes: int = 0
    probed: asyncio.Event = field(default_factory=asyncio.Event)

    async def probe(self, address: str, *, timeout_s: float) -> float:
        self.probes += 1
        if self.probes > 2:
            self.probed.set()
        if self.fail:
            await asyncio.sleep(timeout_s)
            raise EngineAnswerError("no answer in time")
        return 0.01


@dataclass
class Bench:
    engine: InMemoryEngine
    gateway: InMemoryGateway
    loader: FakeLoader
    supervisor: FakeSupervisor
    gpus: InMemoryGpus = field(default_factory=InMemoryGpus)

    def vitals(self) -> Vitals:
        return Vitals(
            engine=self.engine,
            gateway=self.gateway,
            loader=cast("Loader", self.loader),
            supervisor=cast("Supervisor", self.supervisor),
            limits=LIMITS,
            gpus=self.gpus,
        )


@pytest.fixture
async def bench() -> Bench:
    engine = InMemoryEngine(images={"i": "sha256:i"})
    await engine.apply(ENGINE)
    return Bench(engine, InMemoryGateway(), FakeLoader(), FakeSupervisor())


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopd.vitals.LOOK_S", 0.01)


async def test_an_engine_that_hangs_is_replaced_as_wedged(bench: Bench) -> None:
    bench.loader.fail = True
    task = asyncio.create_task(bench.vitals().run_forever())
    async with asyncio.timeout(5):
        await bench.supervisor.happened.wait()
    task.cancel()
    assert bench.supervisor.replaced[0].code is Code.WEDGED


async def test_an_engine_that_works_hard_is_left_alone(bench: Bench) -> None:
    """Requests in its queue make a probe wait, too."""
    bench.loader.fail = True

    async def work() -> None:
        begun = datetime.now(UTC)
        while True:
            busy = (datetime.now(UTC) - begun).total_seconds()
            bench.engine.usages[ENGINE.name] = Usage(cpu_s=busy, memory_bytes=1)
            await asyncio.sleep(0.001)

    worker = asyncio.create_task(work())
    task = asyncio.create_task(bench.vitals().run_forever())
    async with asyncio.timeout(5):
        await bench.loader.probed.wait()
    task.cancel()
    worker.cancel()
    assert bench.supervisor.replaced == []


async def test_an_engine_that_is_not_loaded_yet_is_not_asked(bench: Bench) -> None:
    bench.supervisor.ready = False
    task = asyncio.create_task(bench.vitals().run_forever())
    await asyncio.sleep(0.1)
    task.cancel()
    assert bench.loader.probes == 0


async def test_an_engine_of_the_host_that_is_away_is_waited_for(bench: Bench) -> None:
    bench.engine.down = True
    task = asyncio.create_task(bench.vitals().run_forever())
    await asyncio.sleep(0.1)
    bench.engine.down = False
    async with asyncio.timeout(5):
        await bench.loader.probed.wait()
    assert not task.done()
    task.cancel()


async def test_the_gateways_probe_makes_a_unit_unhealthy(bench: Bench) -> None:
    clock = [0.0]
    vitals = bench.vitals()
    vitals.clock = lambda: clock[0]
    address = f"{bench.engine.instances[ENGINE.name].address}:11434"
    await bench.gateway.apply((Route(pool="engine", server="a", address=address, share=100),))
    await vitals.look()
    bench.gateway.sick.add(address)
    for clock[0] in (1.0, 5.0, 10.0):
        await vitals.look()
    assert bench.supervisor.replaced == []
    clock[0] = 11.5
    await vitals.look()
    assert [cause.code for cause in bench.supervisor.replaced] == [Code.UNHEALTHY]


def gpu(*pids: int, used: int = 1) -> Gpu:
    return Gpu(index=0, name="a", uuid="u", total_bytes=10, used_bytes=used, pids=frozenset(pids))


async def test_an_engine_without_its_gpu_is_replaced_at_the_second_look(bench: Bench) -> None:
    vitals = bench.vitals()
    bench.gpus.gpus = (gpu(1),)
    assert await vitals.look_at_device("") == "", "its process is on the GPU"
    bench.gpus.gpus = (gpu(99),)
    missed = await vitals.look_at_device("")
    assert bench.supervisor.replaced == []
    await vitals.look_at_device(missed)
    assert [cause.code for cause in bench.supervisor.replaced] == [Code.DEVICE_LOST]


async def test_without_a_gpu_nothing_is_lost(bench: Bench) -> None:
    assert await bench.vitals().look_at_device("") == ""
    assert await free_memory(InMemoryGpus()) is None
    assert await free_memory(NvmlGpus()) is None, "this host has no driver, which is no fault"


async def test_a_driver_that_went_away_is_told(bench: Bench) -> None:
    bench.gpus.gone = True
    with pytest.raises(GpuError):
        await bench.vitals().look_at_device("")
    assert await free_memory(bench.gpus) is None


async def test_the_emptiest_gpu_counts() -> None:
    assert await free_memory(InMemoryGpus((gpu(used=9), gpu(used=2)))) == 8


async def test_a_gateway_that_runs_and_does_not_answer_is_replaced(bench: Bench) -> None:
    """Stopped by a signal, it takes connections and no request: nothing else would mend it."""
    gateway = Unit(name="gateway", image="i", user="1:1", network="host", limits=Limits(memory_bytes=1))
    await bench.engine.apply(gateway)
    bench.supervisor.wanted = [gateway, ENGINE]
    clock = [0.0]
    vitals = bench.vitals()
    vitals.clock = lambda: clock[0]
    await vitals.look()
    bench.gateway.down = True
    for clock[0] in (1.0, 6.0):
        await vitals.look()
    bench.gateway.down = False
    await vitals.look()
    bench.gateway.down = True
    for clock[0] in (7.0, 16.9):
        await vitals.look()
    assert bench.supervisor.replaced == []
    clock[0] = 17.1
    await vitals.look()
    assert [(unit.name, cause.code) for unit, cause in bench.supervisor.units] == [("gateway", Code.UNHEALTHY)]


async def test_gpu_memory_that_an_engine_left_behind_is_told_once(bench: Bench) -> None:
    clock = [0.0]
    vitals = bench.vitals()
    vitals.clock = lambda: clock[0]
    idle = Gpu(index=0, name="card", uuid="GPU-0", total_bytes=80 << 30, used_bytes=0, pids=frozenset(), owned_bytes=0)
    gpus = InMemoryGpus((replace(idle, used_bytes=9 << 30, owned_bytes=9 << 30, pids=frozenset({1})),))
    vitals.gpus = gpus
    await vitals.look_at_device("")
    bench.supervisor.ready = False
    gpus.gpus = (replace(idle, used_bytes=9 << 30),)
    for clock[0] in (15.0, 30.0, 45.0):
        await vitals.look_at_device("")
    assert [(event, "9216 MiB" in words) for event, words in bench.supervisor.told] == [("gpu.memory_kept", True)]


async def test_an_engine_that_answers_requests_is_busy_however_long_its_probes_wait(bench: Bench) -> None:
    """Queues of minutes are no fault: a probe stands behind the requests."""
    vitals = bench.vitals()
    address = f"{bench.engine.instances[ENGINE.name].address}:11434"
    await bench.gateway.apply((Route(pool="engine", server="a", address=address, share=100),))
    assert not await vitals._answers_others(ENGINE.name), "the first look has nothing to compare with"
    assert not await vitals._answers_others(ENGINE.name)
    bench.gateway.servers["engine", "a"] = replace(bench.gateway.servers["engine", "a"], bytes_out=9)
    assert await vitals._answers_others(ENGINE.name)
    assert not await vitals._answers_others(ENGINE.name)
