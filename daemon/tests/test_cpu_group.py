"""The control group that all our containers are in."""

from __future__ import annotations

from pathlib import Path

from loopd.cpu_group import NAME, SHARES, prepare_group, remove_group


def test_a_group_is_made_with_its_weight_and_removed_when_empty(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    assert prepare_group("cgroupfs", tmp_path) == prepare_group("cgroupfs", tmp_path) == f"/{NAME}"
    shares = tmp_path / "cpu" / NAME / "cpu.shares"
    assert int(shares.read_text()) == SHARES
    remove_group(tmp_path)
    assert shares.exists(), "something is in it"
    shares.unlink()
    remove_group(tmp_path)
    assert not (tmp_path / "cpu" / NAME).exists()


def test_where_systemd_or_the_newer_interface_rules_nothing_is_made(tmp_path: Path) -> None:
    assert prepare_group("cgroupfs", tmp_path) is None
    (tmp_path / "cpu").mkdir()
    assert prepare_group("systemd", tmp_path) is None
    assert list((tmp_path / "cpu").iterdir()) == []


def test_a_group_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / NAME).write_text("in the way")
    assert prepare_group("cgroupfs", tmp_path) is None
