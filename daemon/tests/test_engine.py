"""The engine seam's contract, held by the fake and by real Docker alike."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import docker
import pytest

from loopd.docker_engine import LABEL_INSTANCE, Connection, DockerEngine, parse_event
from loopd.engine import (
    Confinement,
    Engine,
    EngineDownError,
    Event,
    ImageMissingError,
    InMemoryEngine,
    InstanceState,
    Limits,
    Mount,
    Relist,
    StartFailedError,
    Unit,
    Usage,
)
from loopd.errors import NotFoundError
from loopd.seccomp import sandbox_profile

IMAGE = "debian:bookworm-slim"
SLEEP = ("sleep", "600")


@dataclass
class Bench:
    engine: Engine
    instance: str

    async def kill(self, unit: str) -> None:
        """End a unit from outside, as a crash does."""
        if isinstance(self.engine, InMemoryEngine):
            self.engine.die(unit, exit_code=137)
        else:
            client = docker.from_env()
            await asyncio.to_thread(client.containers.get(f"{self.instance}-{unit}").kill)
            client.close()


@pytest.fixture(params=["memory", pytest.param("docker", marks=pytest.mark.docker)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    instance = f"t{secrets.token_hex(4)}"
    if request.param == "memory":
        yield Bench(InMemoryEngine(images={IMAGE: "sha256:1"}), instance)
        return
    engine = DockerEngine(Connection(None, instance))
    await engine.open()
    try:
        yield Bench(engine, instance)
    finally:
        await engine.close()
        client = docker.from_env()
        for container in client.containers.list(all=True, filters={"label": f"{LABEL_INSTANCE}={instance}"}):
            container.remove(force=True)
        for network in client.networks.list(filters={"label": f"{LABEL_INSTANCE}={instance}"}):
            network.remove()
        client.close()


def unit(name: str = "agent", **changes: object) -> Unit:
    values: dict[str, object] = {
        "name": name,
        "image": IMAGE,
        "user": "10002:10002",
        "network": "internal",
        "limits": Limits(memory_bytes=64 << 20, cpus=0.5, pids=32),
        "command": SLEEP,
        "stop_grace_s": 0,
    }
    return Unit(**{**values, **changes})  # type: ignore[arg-type]  # test data by name


async def test_apply_runs_a_unit_and_again_changes_nothing(bench: Bench) -> None:
    first = await bench.engine.apply(unit())
    second = await bench.engine.apply(unit())
    assert first.state is InstanceState.RUNNING
    assert first.address
    assert (second.id, second.started_at) == (first.id, first.started_at)
    assert [i.unit for i in await bench.engine.observe()] == ["agent"]


async def test_a_changed_unit_gets_a_new_container(bench: Bench) -> None:
    first = await bench.engine.apply(unit())
    second = await bench.engine.apply(unit(environment=(("A", "1"),)))
    assert second.id != first.id
    assert [i.id for i in await bench.engine.observe()] == [second.id]


async def test_a_dead_instance_is_seen_with_its_exit_code_and_started_again(bench: Bench) -> None:
    first = await bench.engine.apply(unit())
    await bench.kill("agent")
    dead = (await bench.engine.observe())[0]
    assert (dead.state, dead.exit_code, dead.address) == (InstanceState.STOPPED, 137, None)
    again = await bench.engine.apply(unit())
    assert (again.state, again.id) == (InstanceState.RUNNING, first.id)


async def test_remove_is_fine_with_what_is_absent(bench: Bench) -> None:
    await bench.engine.apply(unit())
    await bench.engine.remove("agent", grace_s=0)
    await bench.engine.remove("agent", grace_s=0)
    assert await bench.engine.observe() == ()


async def test_a_missing_image_is_named(bench: Bench) -> None:
    with pytest.raises(ImageMissingError, match="no-such-image"):
        await bench.engine.apply(unit(image="no-such-image:1"))
    assert await bench.engine.observe() == ()


async def test_watching_tells_of_a_death_after_a_first_relist(bench: Bench) -> None:
    await bench.engine.apply(unit())
    events = bench.engine.watch()
    async with asyncio.timeout(10):
        assert isinstance(await anext(events), Relist)
        await bench.kill("agent")
        async for event in events:
            if isinstance(event, Event) and event.action == "died":
                assert (event.unit, event.exit_code) == ("agent", 137)
                break
    with contextlib.suppress(AttributeError):
        await events.aclose()  # type: ignore[attr-defined]  # both sides are generators


async def test_watching_tells_who_sent_a_signal(bench: Bench) -> None:
    """A unit that somebody stopped by hand did not crash."""
    instance = await bench.engine.apply(unit())
    events = bench.engine.watch()
    async with asyncio.timeout(10):
        assert isinstance(await anext(events), Relist)
        if isinstance(bench.engine, InMemoryEngine):
            bench.engine.touch("agent", 9)
        else:
            await bench.kill("agent")
        async for event in events:
            if isinstance(event, Event) and event.action == "killed":
                assert (event.unit, event.container, event.signal) == ("agent", instance.id, 9)
                break
    with contextlib.suppress(AttributeError):
        await events.aclose()  # type: ignore[attr-defined]  # both sides are generators


async def test_usage_is_of_what_runs(bench: Bench) -> None:
    await bench.engine.apply(unit())
    if isinstance(bench.engine, InMemoryEngine):
        bench.engine.usages["agent"] = Usage(cpu_s=0.1, memory_bytes=1 << 20)
    used = await bench.engine.usage("agent")
    assert 0 < used.cpu_s < 60
    assert 0 < used.memory_bytes < 64 << 20
    with pytest.raises(NotFoundError, match="nobody"):
        await bench.engine.usage("nobody")


async def test_a_signal_to_what_does_not_run_is_refused(bench: Bench) -> None:
    with pytest.raises(NotFoundError, match="agent"):
        await bench.engine.signal("agent", "SIGUSR2")


async def test_logs_of_nothing_are_empty(bench: Bench) -> None:
    assert await bench.engine.logs("agent") == ""


async def test_a_job_runs_to_its_end_and_is_gone(bench: Bench) -> None:
    result = await bench.engine.run(unit("job", command=("true",), network="none"), timeout_s=30)
    assert result.exit_code == 0
    assert await bench.engine.observe() == ()


async def test_networks_give_addresses_as_asked(bench: Bench) -> None:
    none = await bench.engine.apply(unit("a", network="none"))
    host = await bench.engine.apply(unit("b", network="host"))
    assert (none.address, host.address) == (None, "127.0.0.1")


async def test_a_confined_unit_runs_and_again_changes_nothing(bench: Bench) -> None:
    held = Confinement(
        seccomp=sandbox_profile(), masked_paths=("/proc/cmdline",), oom_score_adj=500, open_files=64, runtime="runc"
    )
    first = await bench.engine.apply(unit("a", network="none", confinement=held))
    again = await bench.engine.apply(unit("a", network="none", confinement=held))
    other = await bench.engine.apply(unit("a", network="none", confinement=replace(held, open_files=65)))
    assert (first.state, again.id) == (InstanceState.RUNNING, first.id)
    assert other.id != first.id


async def test_a_runtime_that_there_is_not_is_told(bench: Bench) -> None:
    assert "runc" in await bench.engine.runtimes()
    with pytest.raises((StartFailedError, EngineDownError), match="no-such-runtime"):
        await bench.engine.apply(unit("a", confinement=Confinement(runtime="no-such-runtime")))
    assert not [i for i in await bench.engine.observe() if i.state is InstanceState.RUNNING]


async def test_the_way_out_has_a_network_of_its_own(bench: Bench) -> None:
    inside = await bench.engine.apply(unit("a"))
    outside = await bench.engine.apply(unit("b", network="egress"))
    assert inside.address is not None
    assert outside.address is not None
    assert inside.address.rsplit(".", 1)[0] != outside.address.rsplit(".", 1)[0]


def test_a_unit_without_confinement_is_what_it_was_before_there_was_any() -> None:
    """Else an upgrade would start every container anew."""
    assert unit().fingerprint == "57e9abf8c70fd56a"


# --- what only Docker can show


@pytest.mark.docker
async def test_confinement_is_what_a_container_gets() -> None:
    instance = f"t{secrets.token_hex(4)}"
    engine = DockerEngine(Connection(None, instance))
    await engine.open()
    script = "cat /proc/self/oom_score_adj /proc/cmdline; ulimit -n; unshare -U true || mknod /tmp/p p && echo fifo"
    held = Confinement(seccomp=sandbox_profile(), masked_paths=("/proc/cmdline",), oom_score_adj=500, open_files=64)
    try:
        job = unit("job", command=("sh", "-c", script), network="none", confinement=held)
        told = (await engine.run(job, timeout_s=30)).output
        assert told.splitlines()[:2] == ["500", "64"]
        assert "Operation not permitted" in told
        assert told.endswith("fifo\n")
    finally:
        client = docker.from_env()
        for network in client.networks.list(filters={"label": f"{LABEL_INSTANCE}={instance}"}):
            network.remove()
        client.close()
        await engine.close()


@pytest.mark.docker
async def test_every_container_has_least_privilege() -> None:
    instance = f"t{secrets.token_hex(4)}"
    engine = DockerEngine(Connection(None, instance))
    await engine.open()
    try:
        result = await engine.run(
            unit("job", command=("cat", "/proc/self/status"), network="none"),
            timeout_s=30,
        )
        status = dict(line.split(":\t", 1) for line in result.output.splitlines() if ":\t" in line)
        assert status["CapEff"] == status["CapBnd"] == "0" * 16
        assert (status["NoNewPrivs"], status["Seccomp"], status["Uid"].split()[0]) == ("1", "2", "10002")
        written = await engine.run(unit("job2", command=("touch", "/x"), network="none"), timeout_s=30)
        assert written.exit_code == 1
        assert "Read-only" in written.output
        with pytest.raises(TimeoutError, match="did not end"):
            await engine.run(unit("job3", command=SLEEP, network="none"), timeout_s=1)
        assert await engine.observe() == ()
    finally:
        client = docker.from_env()
        for network in client.networks.list(filters={"label": f"{LABEL_INSTANCE}={instance}"}):
            network.remove()
        client.close()
        await engine.close()


@pytest.mark.docker
async def test_a_foreign_container_of_the_same_name_is_not_touched() -> None:
    instance = f"t{secrets.token_hex(4)}"
    client = docker.from_env()
    foreign = client.containers.create(IMAGE, list(SLEEP), name=f"{instance}-agent")
    engine = DockerEngine(Connection(None, instance))
    await engine.open()
    try:
        with pytest.raises(Exception, match="not ours"):
            await engine.apply(unit())
        await engine.remove("agent")
        foreign.reload()
        assert foreign.status == "created"
    finally:
        foreign.remove(force=True)
        client.networks.get(f"{instance}-internal").remove()
        client.close()
        await engine.close()


@dataclass
class Real:
    """Real Docker, and a client beside loopd's: an operator's."""

    engine: DockerEngine
    instance: str
    operator: docker.DockerClient

    async def hand(self, act: str, *values: object, name: str = "agent") -> None:
        """Have the operator do something to a container."""
        found = await asyncio.to_thread(self.operator.containers.get, f"{self.instance}-{name}")
        await asyncio.to_thread(getattr(found, act), *values)

    def names(self) -> set[str]:
        listed = self.operator.containers.list(all=True, filters={"label": f"{LABEL_INSTANCE}={self.instance}"})
        return {str(found.name) for found in listed}


@pytest.fixture
async def real() -> AsyncIterator[Real]:
    made = Real(DockerEngine(Connection(None, instance := f"t{secrets.token_hex(4)}")), instance, docker.from_env())
    await made.engine.open()
    try:
        yield made
    finally:
        await made.engine.close()
        for container in made.operator.containers.list(all=True, filters={"label": f"{LABEL_INSTANCE}={instance}"}):
            container.remove(force=True)
        made.operator.networks.get(f"{instance}-internal").remove()
        made.operator.close()


@pytest.mark.docker
async def test_a_container_that_someone_renamed_is_the_same_and_gets_its_name_back(real: Real) -> None:
    first = await real.engine.apply(unit())
    await real.hand("rename", f"{real.instance}-mine")
    assert [(i.unit, i.id) for i in await real.engine.observe()] == [("agent", first.id)]
    assert (await real.engine.apply(unit())).id == first.id
    assert real.names() == {f"{real.instance}-agent"}
    await real.hand("rename", f"{real.instance}-mine")
    await real.engine.remove("agent", grace_s=0)
    assert real.names() == set()


@pytest.mark.docker
async def test_a_container_is_started_anew_although_its_image_lost_its_name(real: Real) -> None:
    tag = f"{real.instance}:1"
    await asyncio.to_thread(real.operator.images.get(IMAGE).tag, tag)
    first = await real.engine.apply(unit(image=tag))
    await asyncio.to_thread(real.operator.images.remove, tag, force=True)
    await real.hand("kill")
    assert (await real.engine.apply(unit(image=tag))).id == first.id
    with pytest.raises(ImageMissingError):
        await real.engine.apply(unit(image=tag, environment=(("A", "1"),)))
    assert [i.id for i in await real.engine.observe()] == [first.id]


@pytest.mark.docker
async def test_a_container_that_someone_paused_goes_on_or_is_removed(real: Real) -> None:
    first = await real.engine.apply(unit())
    await real.hand("pause")
    assert (await real.engine.usage("agent")).cpu_s >= 0
    assert (await real.engine.apply(unit())).id == first.id
    await real.hand("reload")
    assert real.operator.containers.get(first.id).status == "running"
    await real.hand("pause")
    async with asyncio.timeout(10):
        await real.engine.remove("agent", grace_s=0)
    assert real.names() == set()


@pytest.mark.docker
async def test_a_process_that_was_stopped_does_not_hold_up_its_removal(real: Real) -> None:
    """It answers no SIGTERM."""
    await real.engine.apply(unit())
    await real.hand("kill", "SIGSTOP")
    async with asyncio.timeout(10):
        await real.engine.remove("agent", grace_s=0)
    assert real.names() == set()


@pytest.mark.parametrize("url", ["unix:///no/such/docker.sock"])
async def test_an_engine_that_is_not_there_is_said_to_be_down(url: str) -> None:
    engine = DockerEngine(Connection(url, "t"))
    with pytest.raises(EngineDownError, match="does not answer"):
        await engine.open()
    with pytest.raises(EngineDownError):
        await engine.observe()
    await engine.close()


async def test_the_fake_can_be_down() -> None:
    with pytest.raises(EngineDownError):
        await InMemoryEngine(down=True).observe()


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"Action": "die"},
        {"Action": "exec_create: x", "Actor": {"Attributes": {"loopbox.unit": "agent"}}},
        {"Action": "die", "Actor": {"Attributes": {"loopbox.unit": "job", "loopbox.job": "1"}}},
    ],
)
def test_events_that_do_not_matter_are_passed_over(raw: dict[str, object]) -> None:
    assert parse_event(raw) is None


def test_mounts_are_part_of_the_fingerprint() -> None:
    assert unit().fingerprint != unit(mounts=(Mount(source="/a", target="/b"),)).fingerprint
