"""state.db is damaged, cannot be written, or is a newer loopd's: refused in words, and what serves goes on serving."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults.conftest import PATIENT
from faults.load import Load
from faults.rig import Rig, open_rig, wait_for

pytestmark = [pytest.mark.docker]

EX_OSERR = 71
DISK = "768m"  # models are refused on less than 512 MiB


@pytest.fixture(scope="module")
def with_backup() -> Iterator[Rig]:
    """Bring an appliance up, on a small disk of its own, with one backup made."""
    with open_rig(PATIENT) as rig, small_disk(rig.home):
        rig.start()
        rig.ensure_model("a", seed=1)
        rig.loopctl("backup", "create")
        yield rig
        if rig.process is not None:
            rig.kill()


@contextlib.contextmanager
def small_disk(home: Path) -> Iterator[None]:
    """Have a small file system under a home, with what is there on it."""
    images = (home / "images.json").read_bytes()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "lbf", str(home)], check=True)
    try:
        (home / "images.json").write_bytes(images)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=True)


@pytest.fixture
def rig(with_backup: Rig, tmp_path: Path) -> Iterator[Rig]:
    """Give it with loopd dead and state.db in one file; put the file back and see that all is as it was."""
    rig = with_backup
    if rig.process is None:
        rig.start()
    rig.settle()
    before = rig.containers()
    rig.kill()
    state = rig.home / "state.db"
    with contextlib.closing(sqlite3.connect(state)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(state, tmp_path / "good.db")
    yield rig
    if rig.process is not None:
        rig.kill()
    shutil.copy(tmp_path / "good.db", state)
    for name in ("state.db-wal", "state.db-shm"):
        (rig.home / name).unlink(missing_ok=True)
    rig.starts = int(rig.query("SELECT epoch FROM serving")[0][0])
    rig.start()
    rig.settle()
    assert rig.containers() == before


def truncate(state: Path) -> None:
    with state.open("r+b") as file:
        file.truncate(state.stat().st_size // 2)


def overwrite(state: Path) -> None:
    with state.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


HARMS: dict[str, Callable[[Path], object]] = {
    "cut in half": truncate,
    "emptied": lambda state: state.write_bytes(b""),
    "overwritten inside": overwrite,
    "no database": lambda state: state.write_bytes(b"not a database\n" * 1000),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_state_is_refused_in_words_and_traffic_goes_on(rig: Rig, harm: str) -> None:
    state = rig.home / "state.db"
    HARMS[harm](state)
    damaged = state.read_bytes()
    with Load(rig.public_port) as load:
        status, words = rig.refused()
        load.wait_answers(5)
    assert load.faults() == []
    assert status == EX_OSERR, words
    assert "state.db" in words
    assert "Traceback" not in words
    assert "loopctl backup restore" in words, words
    assert state.read_bytes() == damaged, "the damaged file was to be left as it was"


def test_a_state_of_a_newer_loopd_is_refused_and_left_alone(rig: Rig) -> None:
    state = rig.home / "state.db"
    with contextlib.closing(sqlite3.connect(state)) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    newer = state.read_bytes()
    with Load(rig.public_port) as load:
        status, words = rig.refused()
        load.wait_answers(5)
    assert load.faults() == []
    assert status == EX_OSERR, words
    assert "schema 99" in words
    assert state.read_bytes() == newer


def test_a_state_that_cannot_be_written_is_refused_in_words(rig: Rig) -> None:
    state = rig.home / "state.db"
    subprocess.run(["mount", "--bind", str(state), str(state)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(state)], check=True)
    try:
        with Load(rig.public_port) as load:
            status, words = rig.refused()
            load.wait_answers(5)
    finally:
        subprocess.run(["umount", str(state)], check=True)
    assert load.faults() == []
    assert status == EX_OSERR, words
    assert "state.db" in words
    assert "Traceback" not in words


@contextlib.contextmanager
def full(home: Path) -> Iterator[None]:
    """Fill the disk to its last byte; free it at the end."""
    filler = home / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    try:
        yield
    finally:
        filler.unlink()


def test_a_full_disk_is_told_of_and_traffic_goes_on(rig: Rig) -> None:
    with Load(rig.public_port) as load:
        with full(rig.home):
            status, words = rig.refused()
            load.wait_answers(5)
        assert status == EX_OSERR, words
        assert "full" in words
        assert "Traceback" not in words
        rig.start()
        rig.settle()
        load.wait_answers(5)
    assert load.faults() == []


def test_a_disk_that_becomes_full_under_a_running_loopd_ends_it_in_words_at_worst(rig: Rig) -> None:
    rig.start()
    rig.settle()
    with Load(rig.public_port) as load:
        with full(rig.home):
            status, body = rig.call("POST", f"/v1/releases/{rig.champion()}/promote")
            assert status >= 400, body
            rig.drop_bytes("junk.txt", b"")
            load.wait_answers(10)
            assert rig.process is not None
            assert rig.process.poll() in (None, EX_OSERR), rig.log[-3000:]
        if rig.process.poll() is not None:
            rig.ended()
            rig.start()
        rig.settle()
        wait_for("the junk is refused", lambda: (rig.home / "models" / "rejected" / "junk.txt").exists())
        load.wait_answers(5)
    assert load.faults() == []
    assert "Traceback" not in rig.log
