"""loopd and each container are killed: what serves goes on, what died is back, and the ledger says what it died of."""

from __future__ import annotations

import os
import signal
import time

import pytest

from faults.harm import exit_with, main_process, starve
from faults.load import Load, all_answer
from faults.rig import Rig, wait_for

pytestmark = [pytest.mark.docker]


def test_loopd_killed_ten_times_leaves_the_same_containers_and_no_request_notices(rig: Rig) -> None:
    before = rig.containers()
    with Load(rig.public_port) as load:
        for _ in range(10):
            rig.kill()
            load.wait_answers(2)
            rig.start()
        rig.wait_serving()
        load.wait_answers(2)
    assert load.faults() == []
    assert rig.containers() == before
    assert rig.query("SELECT epoch FROM serving") == [(rig.starts,)]


def unit_of(rig: Rig, part: str) -> str:
    return rig.engine() if part == "engine" else part


def harm(rig: Rig, part: str, how: str) -> None:
    """Have the part's main process end: with an exit code, by a signal, or for want of memory."""
    container = rig.container(unit_of(rig, part))
    if how == "oom":
        starve(container)
    elif how == "SIGSEGV" and part == "engine":  # Go makes a crash with exit code 2 of a signal from outside
        exit_with(main_process(container), 139)
    elif how.startswith("exit "):
        exit_with(main_process(container), int(how[5:]))
    else:
        os.kill(main_process(container), signal.Signals[how])


@pytest.mark.parametrize("part", ["gateway", "engine", "agent"])
@pytest.mark.parametrize(
    ("how", "status", "code", "word"),
    [
        ("exit 0", 0, "exited", "code 0"),
        ("exit 1", 1, "exited", "code 1"),
        ("SIGKILL", 137, "signalled", "137"),
        ("SIGSEGV", 139, "signalled", "139"),
        ("oom", 137, "out_of_memory", "memory"),
    ],
)
def test_a_part_that_ends_is_back_and_the_ledger_says_what_it_ended_of(
    rig: Rig, took: dict[str, float], part: str, how: str, status: int, code: str, word: str
) -> None:
    unit = unit_of(rig, part)
    seq, before = rig.newest_event(), rig.containers()
    begun = time.monotonic()
    harm(rig, part, how)
    wait_for(f"{unit} was restarted", lambda: rig.restarted(unit, seq))
    rig.wait_serving()
    wait_for("engine and agent answer", lambda: all_answer(rig.public_port))
    took[f"{part}: {how}"] = time.monotonic() - begun
    [entry] = rig.events(seq, "unit.restarted", unit)
    assert (entry["detail"]["code"], entry["detail"]["exit_code"], entry["detail"]["oom_killed"]) == (
        code,
        status,
        how == "oom",
    )
    assert word in entry["cause"]
    assert entry["cause"] in rig.loopctl("why", unit).stdout.replace("\n", " ")
    assert rig.containers() == before, "the container that died was to be started anew, not replaced"
    assert rig.servers() == rig.wanted_servers()


def test_a_lone_engine_that_dies_costs_waiting_and_no_answer(rig: Rig) -> None:
    """What it left unanswered is asked again; what comes meanwhile waits at the gateway."""
    rig.settle()
    seq = rig.newest_event()
    with Load(rig.public_port, clients=4, streams=0) as load:
        load.wait_answers(20)
        rig.container(rig.engine()).kill()
        load.wait_answers(40)
    wait_for("the engine was restarted", lambda: rig.restarted(rig.engine(), seq))
    assert load.faults() == []
