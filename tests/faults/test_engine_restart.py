"""The container engine ends under a running loopd and comes back: so does everything, and the ledger says why."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from built import built
from faults.conftest import PATIENT
from faults.load import Load, all_answer
from faults.rig import Rig, open_rig, wait_for
from faults.second_engine import SecondEngine, open_engine

pytestmark = [pytest.mark.docker]


@pytest.fixture(scope="module")
def apart() -> Iterator[tuple[Rig, SecondEngine]]:
    """Bring an appliance up on an engine of its own."""
    images = built()
    with (
        open_engine([images.gateway, images.ollama, images.agent]) as engine,
        open_rig(PATIENT, host=engine.url) as rig,
    ):
        rig.start()
        rig.ensure_model("a", seed=1)
        yield rig, engine


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_engine_that_was_stopped_and_started_has_everything_back(
    apart: tuple[Rig, SecondEngine], took: dict[str, float], how: signal.Signals
) -> None:
    rig, engine = apart
    rig.settle()
    before, seq = rig.containers(), rig.newest_event()
    engine.end(how)
    wait_for("loopd says that Docker does not answer", lambda: "container engine" in rig.status()["reason"])
    assert rig.status()["state"] == "down"
    if how is signal.SIGKILL:  # nobody stopped the containers
        with Load(rig.public_port) as load:
            load.wait_answers(5)
        assert load.faults() == []
    took[f"dockerd: {how.name}, dockerd itself"] = engine.start()
    begun = time.monotonic()
    for unit in before:
        wait_for(f"{unit} was restarted", lambda unit=unit: rig.restarted(unit, seq))  # type: ignore[misc]  # its default
    rig.wait_serving()
    wait_for("engine and agent answer", lambda: all_answer(rig.public_port))
    took[f"dockerd: {how.name}, from its answer to serving"] = time.monotonic() - begun
    assert rig.containers() == before
    assert rig.servers() == rig.wanted_servers()
    for unit in before:
        told = [entry["detail"]["code"] for entry in rig.events(seq, "unit.restarted", unit)]
        assert told[-1] == "engine_restart", told
