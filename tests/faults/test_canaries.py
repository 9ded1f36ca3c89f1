"""Canaries on real engines under load: good ones, and ones that crash, hang or talk nonsense meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from gguf import GGUFReader

from faults.load import Load
from faults.rig import Rig, wait_for
from tiny_gguf import make_tiny_gguf

pytestmark = pytest.mark.docker

CORES = str(len(os.sched_getaffinity(0)))
LONG = json.dumps([{"percent": 50, "seconds": 60, "requests": 1000000}])
SHORT = json.dumps([{"percent": 10, "seconds": 1, "requests": 10}, {"percent": 50, "seconds": 1, "requests": 10}])


@contextlib.contextmanager
def loopd_with(rig: Rig, **settings: str) -> Iterator[None]:
    """Run loopd with other settings for a while; containers serve on through both restarts."""
    rig.stop()
    kept = rig.environment
    rig.environment = kept | {f"LOOPBOX_{name.upper()}": value for name, value in settings.items()}
    rig.start()
    rig.settle()
    try:
        yield
        rig.settle()
    finally:
        rig.environment = kept
        rig.kill()
        rig.start()
        rig.settle()


def baking(rig: Rig, number: int) -> Callable[[], bool]:
    """Tell whether a rollout's candidate takes its share at this moment."""
    return lambda: any(s["step"] == "bake" and s["state"] == "begun" for s in rig.rollout(number)["steps"])


def outcome(rig: Rig, number: int) -> tuple[str, str]:
    wait_for("the rollout ends", lambda: rig.rollout(number)["finished_at"])
    ended = rig.rollout(number)
    return ended["phase"], ended["reason"]


def test_a_good_canary_takes_its_shares_and_then_all_with_no_request_lost(rig: Rig) -> None:
    with loopd_with(rig, rollout__policy="canary", rollout__canary=SHORT), Load(rig.public_port, clients=2) as load:
        load.wait_answers(20)
        candidate = rig.other()
        assert outcome(rig, rig.promote(candidate)) == ("promoted", "all steps done")
        load.wait_answers(5)
    assert load.faults() == []
    assert rig.champion() == candidate
    assert rig.servers() == rig.wanted_servers()


def crash(rig: Rig, unit: str) -> None:
    rig.container(unit).kill()


def hang(rig: Rig, unit: str) -> None:
    rig.container(unit).pause()


def babble(rig: Rig, unit: str) -> None:
    """Make the engine's alias anew from weights that are all zero: a sound container format, one token for ever."""
    path = make_tiny_gguf(rig.base / "zero.gguf", seed=9)
    whole = path.read_bytes()
    begin = min(int(tensor.data_offset) for tensor in GGUFReader(path).tensors)
    path.write_bytes(whole[:begin] + bytes(len(whole) - begin))
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    network = rig.container(unit).attrs["NetworkSettings"]["Networks"]
    (address,) = [entry["IPAddress"] for entry in network.values()]
    with httpx.Client(base_url=f"http://{address}:11434", timeout=30, trust_env=False) as engine:
        engine.post(f"/api/blobs/{digest}", content=path.read_bytes()).raise_for_status()
        body = {"model": "agent", "files": {"m.gguf": digest}, "parameters": {"num_thread": 1}, "stream": False}
        engine.post("/api/create", json=body).raise_for_status()


@pytest.mark.parametrize(
    ("fault", "words"),
    [(crash, "its container ended"), (hang, ""), (babble, "golden prompt")],
    ids=["crash", "hang", "babble"],
)
def test_a_canary_that_goes_wrong_under_load_is_turned_back_by_itself(
    rig: Rig, fault: Callable[[Rig, str], None], words: str, took: dict[str, float]
) -> None:
    champion = rig.champion()
    settings = {
        "rollout__policy": "canary",
        "rollout__canary": LONG,
        "rollout__drain_s": "3",  # what a hung engine owes never comes
        "rollout__analysis__latency_floor_ms": "60000",  # a machine with other work on it is no fault of a candidate
    }
    with loopd_with(rig, **settings), Load(rig.public_port, clients=2) as load:
        load.wait_answers(20)
        candidate = rig.other()
        number = rig.promote(candidate)
        wait_for("the canary takes traffic", baking(rig, number))
        load.wait_answers(20)
        begun = time.monotonic()
        fault(rig, f"engine-{candidate[:12]}")
        wait_for("all traffic is back", lambda: rig.servers().get(f"engine/{candidate[:12]}", 0) == 0)
        took[f"{fault.__name__} in a canary: all traffic back"] = time.monotonic() - begun
        phase, reason = outcome(rig, number)
        load.wait_answers(5)
    assert phase == "rolled_back"
    assert words in reason
    assert rig.champion() == champion
    assert rig.servers() == rig.wanted_servers()
    assert set(rig.containers()) == rig.units()
    assert all(one.release in ("", candidate[:12]) for one in load.faults()), "the champion failed nobody"


def test_the_operator_turns_a_canary_back(rig: Rig) -> None:
    with loopd_with(rig, rollout__policy="canary", rollout__canary=LONG), Load(rig.public_port) as load:
        number = rig.promote(rig.other())
        wait_for("the canary takes traffic", baking(rig, number))
        rig.loopctl("rollouts", "abort", str(number))
        assert outcome(rig, number) == ("rolled_back", "turned back by the operator")
        load.wait_answers(5)
    assert load.faults() == []


def test_blue_green_goes_back_with_a_flip_while_it_bakes(rig: Rig) -> None:
    champion = rig.champion()
    with loopd_with(rig, rollout__policy="blue-green", rollout__bake_s="60"), Load(rig.public_port) as load:
        number = rig.promote(rig.other())
        wait_for("the new one has all traffic", baking(rig, number))
        assert f"engine-{champion[:12]}" in rig.containers()
        rig.loopctl("rollouts", "abort", str(number))
        assert outcome(rig, number)[0] == "rolled_back"
        load.wait_answers(5)
    assert load.faults() == []
    assert rig.champion() == champion


def test_threads_that_do_not_fit_are_refused_or_swapped_in_place_with_requests_held(rig: Rig) -> None:
    """Two engines that share the cores with all threads slow each other down a hundred times."""
    with loopd_with(rig, engine_threads=CORES), Load(rig.public_port) as load:
        phase, reason = outcome(rig, rig.promote(rig.other()))
        assert phase == "rolled_back"
        assert f"two engines of {CORES} threads are too many" in reason
        assert "rollout.swap_in_place" in reason
        load.wait_answers(5)
    assert load.faults() == []
    candidate = rig.other()
    settings = {"engine_threads": CORES, "rollout__swap_in_place": "true"}
    with loopd_with(rig, **settings), Load(rig.public_port, clients=2) as load:
        load.wait_answers(5)
        assert outcome(rig, rig.promote(candidate)) == ("promoted", "all steps done")
        load.wait_answers(5)
        assert load.faults() == [], "requests were held, none was refused"
        assert rig.champion() == candidate
