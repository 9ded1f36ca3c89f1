"""Docker's socket is slow, breaks off, says 500 to what it did or nothing at all: nothing doubles, traffic goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.conftest import PATIENT
from faults.harm import exit_with, main_process
from faults.load import Load, all_answer
from faults.rig import Rig, open_rig, wait_for
from faults.socket_proxy import SocketProxy, open_proxy

pytestmark = [pytest.mark.docker]

RELIST_S = 3.0


@pytest.fixture(scope="module")
def behind_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, SocketProxy]]:
    """Bring an appliance up whose loopd reaches Docker through the proxy."""
    path = Path(tmp_path_factory.mktemp("proxy")) / "docker.sock"
    with open_proxy(path) as proxy, open_rig(PATIENT | {"LOOPBOX_RELIST_S": f"{RELIST_S}"}) as rig:
        rig.environment["LOOPBOX_DOCKER_HOST"] = proxy.url
        rig.start()
        rig.ensure_model("a", seed=1)
        rig.ensure_model("b", seed=2)
        yield rig, proxy


@pytest.fixture
def proxy(behind_proxy: tuple[Rig, SocketProxy]) -> Iterator[SocketProxy]:
    """Give the proxy; without a fault before and after."""
    rig, proxy = behind_proxy
    wait_for("the events are followed", lambda: proxy.streams)
    rig.settle()
    yield proxy
    proxy.delay_s, proxy.reset_before, proxy.reset_after, proxy.refuse_after, proxy.silent = 0.0, 0, 0, "", False


@pytest.fixture
def rig(behind_proxy: tuple[Rig, SocketProxy], proxy: SocketProxy) -> Rig:
    return behind_proxy[0]


def roll_out(rig: Rig) -> float:
    """Roll the other release out under load; return the seconds. Nothing may be doubled, lost or left."""
    candidate = rig.other()
    with Load(rig.public_port) as load:
        load.wait_answers(2)
        begun = time.monotonic()
        number = rig.promote(candidate)
        wait_for("the rollout ends", lambda: rig.rollout(number)["finished_at"])
        seconds = time.monotonic() - begun
        load.wait_answers(2)
    assert rig.rollout(number)["phase"] == "promoted", rig.rollout(number)
    assert load.faults() == []
    wait_for(f"the containers are {rig.units()}", lambda: set(rig.containers()) == rig.units(), 10)
    wait_for("the gateway has one server each", lambda: rig.servers() == rig.wanted_servers(), 10)
    return seconds


def test_a_rollout_over_a_slow_docker_ends_well(rig: Rig, proxy: SocketProxy, took: dict[str, float]) -> None:
    proxy.delay_s = 0.1
    took["docker: 0.1 s later on each call, a rollout"] = roll_out(rig)


def test_a_rollout_over_a_docker_that_breaks_off_before_it_acts_ends_well(
    rig: Rig, proxy: SocketProxy, took: dict[str, float]
) -> None:
    proxy.reset_before = 3
    took["docker: 3 calls cut before they are done, a rollout"] = roll_out(rig)
    assert proxy.reset_before == 0


def test_a_rollout_over_a_docker_that_breaks_off_after_it_acted_ends_well(
    rig: Rig, proxy: SocketProxy, took: dict[str, float]
) -> None:
    proxy.reset_after = 3
    took["docker: 3 calls cut after they were done, a rollout"] = roll_out(rig)
    assert proxy.reset_after == 0


@pytest.mark.parametrize("call", ["/containers/create", "/start", "/stop"])
def test_what_docker_did_and_answered_with_500_is_not_done_twice(
    rig: Rig, proxy: SocketProxy, took: dict[str, float], call: str
) -> None:
    proxy.refuse_after = call
    took[f"docker: 500 to a {call.rpartition('/')[2]} that was done, a rollout"] = roll_out(rig)
    assert proxy.refuse_after == "", "no such call was made"


@pytest.mark.parametrize("fault", ["ends", "goes quiet"])
def test_a_death_behind_an_event_stream_that_tells_nothing_is_seen(
    rig: Rig, proxy: SocketProxy, took: dict[str, float], fault: str
) -> None:
    unit, before, seq = rig.engine(), rig.containers(), rig.newest_event()
    proxy.silent = fault == "goes quiet"
    if fault == "ends":
        proxy.end_streams()
    begun = time.monotonic()
    exit_with(main_process(rig.container(unit)), 1)
    wait_for("the death is seen", lambda: rig.restarted(unit, seq), RELIST_S + 5)
    rig.wait_serving()
    wait_for("engine and agent answer", lambda: all_answer(rig.public_port))
    took[f"docker: event stream {fault} and the engine dies, relist {RELIST_S:g} s"] = time.monotonic() - begun
    assert rig.containers() == before


def test_a_docker_that_refuses_connections_is_told_of_and_traffic_goes_on(
    rig: Rig, proxy: SocketProxy, took: dict[str, float]
) -> None:
    before = rig.containers()
    with Load(rig.public_port) as load:
        proxy.close()
        wait_for("loopd says that Docker does not answer", lambda: "container engine" in rig.status()["reason"])
        assert rig.status()["state"] == "down"
        load.wait_answers(5)
        rig.kill()
        rig.start()  # without Docker
        load.wait_answers(5)
        proxy.listen()
        took["docker: refused connections, then back"] = rig.wait_serving()
        load.wait_answers(5)
    assert load.faults() == []
    assert rig.containers() == before
