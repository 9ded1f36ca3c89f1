"""A part that dies again and again is restarted ever later, loopd's own death or not; a release that does gives way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise

import docker
import pytest

from faults.harm import exit_with, main_process
from faults.load import all_answer
from faults.rig import Rig, open_rig, wait_for

pytestmark = [pytest.mark.docker]

CRASHES = 4
WINDOW = {"LOOPBOX_SUPERVISE__CRASHES": str(CRASHES), "LOOPBOX_SUPERVISE__CRASH_WINDOW_S": "60"}


@pytest.fixture
def hasty() -> Iterator[Rig]:
    """Bring one up that takes four crashes in a minute for a loop, with a release to go back to."""
    with open_rig(WINDOW) as rig:
        rig.start()
        rig.ensure_model("a", seed=1)
        rig.ensure_model("b", seed=2)
        yield rig


def crash(rig: Rig, unit: str) -> bool:
    """Have a unit's main process exit with 1; False when it does not run."""
    with contextlib.suppress(OSError, IndexError, AssertionError, docker.errors.NotFound):
        container = rig.container(unit)
        if container.status == "running":
            exit_with(main_process(container), 1)
            return True
    return False


def restarts(rig: Rig, unit: str) -> list[datetime]:
    rows = rig.query("SELECT at FROM restarts WHERE unit = ? ORDER BY seq", unit)
    return [datetime.fromisoformat(at) for (at,) in rows]


def test_a_crash_loop_is_restarted_ever_later_also_over_a_new_loopd(hasty: Rig) -> None:
    for number in range(1, CRASHES):  # one fewer than a loop
        wait_for("it runs, to be crashed", lambda: crash(hasty, "agent"))
        wait_for("it was restarted", lambda number=number: len(restarts(hasty, "agent")) >= number)  # type: ignore[misc]  # its default
        hasty.kill()
        hasty.start()
    times = restarts(hasty, "agent")
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
    assert len(times) == CRASHES - 1, times
    assert all(gap >= 0.1 * 2**number for number, gap in enumerate(gaps)), gaps
    hasty.wait_serving()


def test_a_release_in_a_crash_loop_gives_way_to_the_one_before(hasty: Rig, took: dict[str, float]) -> None:
    good, bad = hasty.models["a"], hasty.champion()
    assert bad == hasty.models["b"]
    seq = hasty.newest_event()
    begun = time.monotonic()

    def given_up() -> bool:
        """Crash it once more, unless it is given up."""
        if hasty.champion() == good:
            return True
        crash(hasty, f"engine-{bad[:12]}")
        return False

    wait_for("the release before serves", given_up)
    hasty.settle()
    wait_for("engine and agent answer", lambda: all_answer(hasty.public_port))
    took[f"engine: {CRASHES} crashes, until the one before serves"] = time.monotonic() - begun
    wait_for("the bad one is gone", lambda: set(hasty.containers()) == hasty.units())
    [asked] = hasty.events(seq, "rollout.requested")
    assert "crash" in asked["cause"], asked
