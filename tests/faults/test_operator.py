"""An operator stops, kills, removes, renames or pauses what loopd runs, behind its back: all is as it was, and told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from docker.models.containers import Container

from faults.harm import exit_with, main_process
from faults.load import Load, all_answer
from faults.rig import Rig, wait_for

pytestmark = [pytest.mark.docker]

WEDGE_S = 10.0  # for a wedged engine to be seen and replaced
WEDGE_SLACK_S = 5.0  # for two cores with other work

HANDS: dict[str, Callable[[Container], None]] = {
    "stop": lambda container: container.stop(timeout=5),
    "kill": lambda container: container.kill(),
    "rm -f": lambda container: container.remove(force=True),
}


@pytest.mark.parametrize("part", ["gateway", "engine", "agent"])
@pytest.mark.parametrize("hand", HANDS)
def test_what_an_operator_takes_away_is_back(rig: Rig, took: dict[str, float], part: str, hand: str) -> None:
    unit = rig.engine() if part == "engine" else part
    seq, before = rig.newest_event(), rig.containers()
    begun = time.monotonic()
    HANDS[hand](rig.container(unit))
    wait_for(f"{unit} was restarted", lambda: rig.restarted(unit, seq))
    rig.wait_serving()
    wait_for("engine and agent answer", lambda: all_answer(rig.public_port))
    took[f"{part}: docker {hand}"] = time.monotonic() - begun
    told = [entry["detail"]["code"] for entry in rig.events(seq, "unit.restarted", unit)]
    if hand == "rm -f":  # seen dead or gone, or both in turn
        assert set(told) <= {"operator", "removed"}, told
        del before[unit]
    else:
        assert told == ["operator"]
    assert before.items() <= rig.containers().items()
    assert set(rig.containers()) == rig.units()
    assert rig.servers() == rig.wanted_servers()


def only_ours(rig: Rig) -> bool:
    """Tell whether each unit has one container, under its own name."""
    return len(rig.listed()) == len(rig.units()) and set(rig.containers()) == rig.units()


def test_a_renamed_container_leaves_nothing_behind_when_it_dies(rig: Rig) -> None:
    rig.container("agent").rename(f"{rig.instance}-mine")
    exit_with(main_process(rig.container("mine")), 1)
    wait_for("each unit has one container", lambda: only_ours(rig), 20)
    rig.wait_serving()
    wait_for("engine and agent answer", lambda: all_answer(rig.public_port))


def test_a_renamed_engine_leaves_nothing_behind_when_it_retires(rig: Rig) -> None:
    with Load(rig.public_port) as load:
        load.wait_answers(2)
        rig.container(rig.engine()).rename(f"{rig.instance}-mine")
        candidate = rig.other()
        number = rig.promote(candidate)
        wait_for("the rollout ends", lambda: rig.rollout(number)["finished_at"], 20)
        load.wait_answers(2)
    assert load.faults() == []
    assert rig.rollout(number)["phase"] == "promoted"
    wait_for("each unit has one container", lambda: only_ours(rig))


def runner_of(container: Container) -> int:
    """Return the process that generates, a child of the one that answers."""
    server = main_process(container)
    threads = Path(f"/proc/{server}/task").glob("*/children")  # any of them may have started it
    return next(int(pid) for children in threads for pid in children.read_text().split())


FREEZERS: dict[str, Callable[[Container], None]] = {
    "docker pause": lambda container: container.pause(),
    "SIGSTOP of the server": lambda container: os.kill(main_process(container), signal.SIGSTOP),
    "SIGSTOP of the runner": lambda container: os.kill(runner_of(container), signal.SIGSTOP),
}


@pytest.mark.parametrize("freezer", FREEZERS)
def test_an_engine_that_stands_still_is_taken_for_wedged_and_replaced(
    rig: Rig, took: dict[str, float], freezer: str
) -> None:
    unit, seq = rig.engine(), rig.newest_event()
    begun = time.monotonic()
    FREEZERS[freezer](rig.container(unit))
    wait_for(f"{unit} was restarted", lambda: rig.restarted(unit, seq), WEDGE_S + WEDGE_SLACK_S)
    rig.wait_serving()
    wait_for("engine and agent answer", lambda: all_answer(rig.public_port))
    took[f"engine: {freezer}"] = time.monotonic() - begun
    [entry] = rig.events(seq, "unit.restarted", unit)
    assert entry["detail"]["code"] == "wedged", entry
    assert set(rig.containers()) == rig.units()
    assert rig.servers() == rig.wanted_servers()
