"""Files changed only by whom has seen them, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loopbox_toolrunner.files import ABSENT, ConflictError, Files
from loopbox_toolrunner.jail import FileError, Jail


@pytest.fixture
def files(workspace: Path) -> Files:
    return Files(Jail(workspace), max_read_bytes=1 << 20, max_write_bytes=1 << 20, output_bytes=1 << 16)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_reading_and_writing_tell_the_hash_of_the_whole_file(files: Files) -> None:
    assert files.write("f", "one\ntwo\n").sha256 == sha256("one\ntwo\n")
    assert files.read("f", 1, 1).sha256 == sha256("one\ntwo\n")
    assert files.edit("f", "two", "2").sha256 == sha256("one\n2\n")


def test_a_file_that_is_another_by_now_is_left_alone(workspace: Path, files: Files) -> None:
    seen = files.write("f", "mine").sha256
    (workspace / "f").write_text("theirs", encoding="ascii")
    for tool in ("write", "edit"):
        with pytest.raises(ConflictError, match="expected_sha256") as caught:
            files.write("f", "new", seen) if tool == "write" else files.edit("f", "theirs", "new", seen)
        assert caught.value.found.model_dump() == {
            "path": "f",
            "size": 6,
            "sha256": sha256("theirs"),
            "conflict": True,
            "code": "conflict",
        }
    assert (workspace / "f").read_text(encoding="ascii") == "theirs"
    assert files.write("f", "new", sha256("theirs")).size == 3


def test_a_file_may_have_to_be_new_or_to_be_there(workspace: Path, files: Files) -> None:
    files.write("f", "x", ABSENT)
    with pytest.raises(ConflictError, match="there already"):
        files.write("f", "y", ABSENT)
    with pytest.raises(ConflictError, match="not there") as caught:
        files.write("g/h", "y", sha256("x"))
    assert caught.value.found.sha256 == ABSENT
    assert {p.name for p in workspace.iterdir()} == {"f"}


def test_edits_of_one_file_at_once_are_all_kept(workspace: Path, files: Files) -> None:
    """Reading, changing and writing back in two threads loses one of two edits; links are other names of one file."""
    count = 40
    files.write("f", "".join(f"<{n}>\n" for n in range(count)))
    (workspace / "link").symlink_to("f")
    order = random.Random(1).sample(range(count), count)  # noqa: S311 repeatable is what it must be
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: files.edit("link" if n % 3 == 0 else "./f", f"<{n}>", f"[{n}]"), order))
    assert (workspace / "f").read_text(encoding="ascii") == "".join(f"[{n}]\n" for n in range(count))
    assert (workspace / "link").is_symlink()


def test_of_many_writers_that_saw_the_same_file_one_wins(files: Files) -> None:
    seen = files.write("f", "start").sha256
    start = threading.Barrier(8)

    def write(number: int) -> int:
        start.wait()
        try:
            files.write("f", f"by {number}", seen)
        except ConflictError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(8))) == 1


def test_who_reads_during_a_write_meets_the_old_or_the_new(workspace: Path, files: Files) -> None:
    """Writing in place shows a file that is neither."""
    old, new = "a" * 200_000, "b" * 150_000
    files.write("f", old)
    met: set[str] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            met.add((workspace / "f").read_text(encoding="ascii"))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(60):
            files.write("f", new if turn % 2 == 0 else old)
    finally:
        stop.set()
        reader.join()
    assert met <= {old, new}


def test_a_crash_or_a_full_disk_in_the_middle_leaves_the_old_file(
    workspace: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write("f", "old")
    real = os.write

    def write(handle: int, raw: bytes) -> int:
        if len(raw) > 3:
            return real(handle, bytes(raw)[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(FileError, match="no space left on device; it is as it was"):
        files.write("f", "newer")
    monkeypatch.undo()
    assert (workspace / "f").read_text(encoding="ascii") == "old"
    assert [p.name for p in workspace.iterdir()] == ["f"]


def test_a_files_mode_is_kept_and_what_may_not_be_written_is_not_replaced(workspace: Path, files: Files) -> None:
    files.write("run", "x")
    (workspace / "run").chmod(0o750)
    files.edit("run", "x", "y")
    assert stat.S_IMODE((workspace / "run").stat().st_mode) == 0o750
    (workspace / "loop").symlink_to("loop")
    with pytest.raises(FileError):
        files.write("loop", "x")
    assert (workspace / "loop").is_symlink()


def test_locks_of_files_nobody_uses_are_forgotten(files: Files) -> None:
    for number in range(20):
        files.write(f"f{number}", "x")
    assert not files._locks._locks
