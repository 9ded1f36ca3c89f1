"""loopd is killed at every boundary of its journal: what it began ends in one outcome, and no request notices."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import tiny_gguf
from faults.load import Load
from faults.rig import Rig, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

KILLING = (sys.executable, str(Path(__file__).with_name("killing_loopd.py")))


def last_rollout(rig: Rig) -> int:
    return int(rig.query("SELECT max(id) FROM rollouts")[0][0])


@dataclass(frozen=True)
class Trial:
    """A kind of rollout, to be killed at each of its boundaries."""

    candidate: Callable[[Rig], str]
    phase: str  #: that it ends in, killed or not
    settings: Mapping[str, str]

    def start(self, rig: Rig, **environment: str) -> None:
        """Start a loopd that ends what the last one began, and counts the boundaries of newer rollouts."""
        rig.start(KILLING, {**self.settings, **environment, "KILL_AFTER_ROLLOUT": str(last_rollout(rig))})
        rig.settle()

    def boundaries(self, rig: Rig, tmp_path: Path) -> list[str]:
        """Run one to its end and return the boundaries that it passed."""
        rig.kill()
        self.start(rig, COUNT_TO=str(tmp_path / "passed"))
        with Load(rig.public_port):
            number = rig.promote(self.candidate(rig))
            rig.settle()
        assert rig.rollout(number)["phase"] == self.phase
        rig.kill()
        return (tmp_path / "passed").read_text().splitlines()

    def die(self, rig: Rig) -> int:
        """Roll out with a loopd that is to die of it; return the rollout's number."""
        number = last_rollout(rig) + 1
        with contextlib.suppress(OSError, http.client.HTTPException):  # it may die before it answers
            rig.promote(self.candidate(rig))
        assert rig.ended() == -9
        assert last_rollout(rig) == number
        return number


def check_whole(rig: Rig, number: int, phase: str) -> None:
    """Require one outcome, with nothing left over of another."""
    rollout = rig.rollout(number)
    assert rollout["phase"] == phase, rollout
    wait_for(f"the containers are {rig.units()}", lambda: set(rig.containers()) == rig.units(), 5)
    wait_for(f"the gateway has {rig.wanted_servers()}", lambda: rig.servers() == rig.wanted_servers(), 5)
    assert rig.query("SELECT epoch FROM serving") == [(rig.starts,)]
    assert rig.query("SELECT step, state FROM journal WHERE rollout = ? AND state = 'begun'", number) == []
    assert rig.query("SELECT count(*) FROM rollouts WHERE finished_at IS NULL") == [(0,)]


def survive(rig: Rig, trial: Trial, passed: Sequence[str], first: int = 1) -> None:
    """Kill loopd at each boundary of a rollout of its own, from the first on, under load; the next loopd goes on."""
    trial.start(rig, KILL_AT=str(first))
    wrong: list[str] = []
    with Load(rig.public_port) as load:
        for boundary, name in enumerate(passed[first - 1 :], start=first):
            begun = time.monotonic()
            before, candidate = rig.champion(), trial.candidate(rig)
            number = trial.die(rig)
            trial.start(rig, KILL_AT=str(boundary + 1 if boundary < len(passed) else 0))
            try:
                assert rig.champion() == (candidate if trial.phase == "promoted" else before)
                check_whole(rig, number, trial.phase)
                load.wait_answers(2)
                assert load.faults(begun) == []
            except AssertionError as error:
                wrong.append(f"{name}: {error}")
    assert not wrong, "\n".join(wrong)


def test_a_rollout_survives_a_kill_at_every_boundary(rig: Rig, tmp_path: Path) -> None:
    trial = Trial(lambda rig: rig.other(), "promoted", {})
    passed = trial.boundaries(rig, tmp_path)
    assert len(passed) >= 4 * 8, passed  # eight steps, each begun and done
    survive(rig, trial, passed)


@pytest.mark.slow
def test_a_canary_survives_a_kill_at_every_boundary(rig: Rig, tmp_path: Path) -> None:
    stages = [{"percent": percent, "seconds": 0.5, "requests": 3} for percent in (20, 50)]
    canary = {"LOOPBOX_ROLLOUT__POLICY": "canary", "LOOPBOX_ROLLOUT__CANARY": json.dumps(stages)}
    trial = Trial(lambda rig: rig.other(), "promoted", canary)
    passed = trial.boundaries(rig, tmp_path)
    assert len(passed) > 4 * 8, passed
    survive(rig, trial, passed)


def test_a_rollout_that_turns_back_survives_a_kill_at_every_boundary(rig: Rig, tmp_path: Path) -> None:
    if "noise" not in rig.models:
        rig.admit(make_noise(tmp_path / "noise.gguf"))
    trial = Trial(lambda rig: rig.models["noise"], "rolled_back", {})
    passed = trial.boundaries(rig, tmp_path)
    fails = next(number for number, name in enumerate(passed, start=1) if name.endswith("has failed"))
    survive(rig, trial, passed, fails)  # up to there it is as every rollout


def make_noise(path: Path) -> Path:
    """Write a well-formed model whose numbers run over as soon as it thinks."""

    def loud(seed: int, **sizes: int) -> dict[str, tiny_gguf.Matrix]:
        tensors = tiny_weights(seed, **sizes)
        return tensors | {"output_norm.weight": tensors["output_norm.weight"] * np.float32(3e38)}

    tiny_weights = tiny_gguf.tiny_weights
    with mock.patch.object(tiny_gguf, "tiny_weights", loud):
        return tiny_gguf.make_tiny_gguf(path, seed=3, name="noise")
