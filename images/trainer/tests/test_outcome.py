from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from loopbox_trainer.__main__ import main
from loopbox_trainer.errors import ExhaustedError, TrainerError, exhaustion
from loopbox_trainer.events import EVENTS, RESULT, EventLog, Result
from loopbox_trainer.outcome import conclude
from loopbox_trainer.spec import read_spec


def told(job: Path) -> tuple[dict[str, object], list[dict[str, object]]]:
    events = [json.loads(line) for line in (job / EVENTS).read_text().splitlines()]
    return json.loads((job / RESULT).read_text()), events


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (TrainerError("data_too_small", "few"), "data_too_small", 3),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", 4),
        (RuntimeError("PytorchStreamWriter failed writing file data/1"), "disk_full", 4),
        (MemoryError(), "out_of_memory", 4),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out_of_memory", 4),
        (ZeroDivisionError("a bug"), "internal_error", 1),
    ],
)
def test_each_way_to_fail_has_its_code_and_its_result(
    tmp_path: Path, error: Exception, code: str, exit_code: int
) -> None:
    def work() -> Result:
        raise error

    (tmp_path / RESULT).write_text("{}")
    assert conclude(tmp_path, work) == exit_code
    result, events = told(tmp_path)
    assert (result["status"], result["code"]) == ("failed", code)
    assert events[-1]["event"] == "failed"


def test_a_job_that_is_done_says_so_last(tmp_path: Path) -> None:
    def work() -> Result:
        assert not (tmp_path / RESULT).exists()
        EventLog(tmp_path).tell("step", loss=float("nan"))
        return Result(status="done", figures={"steps": 3})

    assert conclude(tmp_path, work) == 0
    result, events = told(tmp_path)
    assert result["figures"] == {"steps": 3}
    assert [(event["event"], event.get("loss")) for event in events] == [("step", None), ("done", None)]


def test_what_is_no_exhaustion_is_none() -> None:
    assert exhaustion(ValueError("memory of a free disk")) is None
    assert isinstance(exhaustion(MemoryError()), ExhaustedError)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"base": "relative", "train": ["/data/a"]}', '{"base": "/b", "train": []}']
)
def test_a_spec_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(TrainerError) as caught:
        read_spec(tmp_path / "spec.json")
    assert caught.value.code == "spec_invalid"
    with pytest.raises(TrainerError):
        read_spec(tmp_path / "none.json")


@pytest.mark.parametrize("arguments", [[], ["dance"], ["train", "a", "b"]])
def test_another_command_is_told_which_there_are(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "curate|train|export|score" in capsys.readouterr().err
