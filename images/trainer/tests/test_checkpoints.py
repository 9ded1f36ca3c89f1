from __future__ import annotations

from pathlib import Path

import pytest

from loopbox_trainer import checkpoints
from loopbox_trainer.errors import TrainerError


def make(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_text("w")
    return path


def test_the_newest_whole_one_is_gone_on_from_and_the_rest_of_a_crash_is_removed(tmp_path: Path) -> None:
    for step in (9, 10):
        checkpoints.close(make(tmp_path, step), "f")
    cut_off = make(tmp_path, 11)
    assert checkpoints.newest(tmp_path, "f") == tmp_path / "checkpoint-10"
    assert not cut_off.exists()


def test_one_of_other_data_is_refused_and_kept(tmp_path: Path) -> None:
    checkpoints.close(make(tmp_path, 1), "f")
    with pytest.raises(TrainerError) as caught:
        checkpoints.newest(tmp_path, "g")
    assert caught.value.code == "checkpoint_of_another"
    assert (tmp_path / "checkpoint-1" / "weights").exists()


def test_none_is_none(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path, "f") is None
