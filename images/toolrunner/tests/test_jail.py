"""The workspace's border, and the file tools inside it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from loopbox_toolrunner.files import MAX_ENTRIES, Files
from loopbox_toolrunner.jail import FileError, Jail

LIMIT = 4096


@pytest.fixture
def files(workspace: Path) -> Files:
    return Files(Jail(workspace), max_read_bytes=LIMIT, max_write_bytes=LIMIT, output_bytes=1024)


parts = st.sampled_from(["..", ".", "", "a", "in", "out", "loop", "up", "file", "/", "~", "etc", "\n", "é", "..."])


@given(st.lists(parts, min_size=1, max_size=8).map("/".join))
@example("out/secret")
@example("in/../../secret")
@example("up/secret")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_path_reads_or_writes_outside(workspace: Path, files: Files, path: str) -> None:
    """Dots, absolute paths and links, in any mixture, end inside or in an error."""
    secret = workspace.parent / "secret"
    secret.write_text("hidden", encoding="ascii")
    (workspace / "a").mkdir(exist_ok=True)
    (workspace / "file").write_text("inside", encoding="ascii")
    for name, target in (("in", "a"), ("out", str(workspace.parent)), ("up", ".."), ("loop", "loop")):
        if not (workspace / name).is_symlink():
            (workspace / name).symlink_to(target)
    before = {entry.name for entry in workspace.parent.iterdir()}
    with contextlib.suppress(FileError):
        assert "hidden" not in files.read(path, 0, 10).content
    with contextlib.suppress(FileError):
        files.write(path, "written")
    assert secret.read_text(encoding="ascii") == "hidden"
    assert {entry.name for entry in workspace.parent.iterdir()} == before


def test_a_link_inside_the_workspace_is_followed(workspace: Path, files: Files) -> None:
    (workspace / "real").write_text("yes\n", encoding="ascii")
    (workspace / "link").symlink_to("real")
    assert files.read("link", 0, 1).content == "yes\n"
    files.write("link", "no\n")
    assert (workspace / "real").read_text(encoding="ascii") == "no\n"
    assert (workspace / "link").is_symlink()


def test_a_new_file_is_not_made_through_a_dangling_link(workspace: Path, files: Files) -> None:
    """realpath of a dangling link is its target, which must be inside as well."""
    (workspace / "link").symlink_to(workspace.parent / "fresh")
    with pytest.raises(FileError, match="outside"):
        files.write("link", "x")
    assert not (workspace.parent / "fresh").exists()


def test_a_link_swapped_in_after_the_look_is_found_out(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command can swap a directory for a link between the check and the opening."""
    (workspace.parent / "secret").write_text("hidden", encoding="ascii")
    (workspace / "out").symlink_to(workspace.parent)
    jail = Jail(workspace)
    monkeypatch.setattr(Jail, "resolve", lambda self, path: self.root / path)
    with pytest.raises(FileError, match="outside"), jail.open("out/secret", os.O_RDONLY):
        pass


@pytest.mark.parametrize("kind", ["fifo", "device", "directory"])
def test_what_is_no_regular_file_is_refused_without_waiting(workspace: Path, files: Files, kind: str) -> None:
    """Opening a pipe nobody writes to would hold a thread for ever."""
    path = workspace / "special"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        try:
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("only root makes devices")
    with pytest.raises(FileError):
        files.read("special", 0, 1)
    with pytest.raises(FileError):
        files.write("special", "x")


def test_reading_gives_the_asked_lines_and_says_when_there_are_more(workspace: Path, files: Files) -> None:
    (workspace / "f").write_text("".join(f"{i}\n" for i in range(10)), encoding="ascii")
    middle = files.read("f", 3, 2)
    assert (middle.content, middle.total_lines, middle.truncated) == ("3\n4\n", 10, True)
    whole = files.read("f", 0, 100)
    assert not whole.truncated
    assert files.read("f", 100, 1).content == ""


def test_a_line_longer_than_the_output_limit_is_cut_at_a_character(workspace: Path, files: Files) -> None:
    (workspace / "f").write_text("é" * 1500, encoding="utf-8")
    found = files.read("f", 0, 10)
    assert found.content == "é" * 512
    assert found.truncated


def test_big_binary_and_odd_files_are_refused_with_what_to_do_instead(workspace: Path, files: Files) -> None:
    (workspace / "big").write_bytes(b"x" * (LIMIT + 1))
    (workspace / "binary").write_bytes(b"\x7fELF\0\0")
    (workspace / "latin").write_bytes(b"caf\xe9")
    for name in ("big", "binary", "latin"):
        with pytest.raises(FileError, match="use bash"):
            files.read(name, 0, 1)
    with pytest.raises(FileError, match="no such file"):
        files.read("absent", 0, 1)
    with pytest.raises(FileError, match="limit"):
        files.write("f", "x" * (LIMIT + 1))
    assert not (workspace / "f").exists()


def test_writing_makes_directories_and_shortens_files(workspace: Path, files: Files) -> None:
    files.write("a/b/c.txt", "long content")
    done = files.write("a/b/c.txt", "short")
    assert (done.path, done.size) == ("a/b/c.txt", 5)
    assert (workspace / "a/b/c.txt").read_text(encoding="ascii") == "short"


def test_an_edit_needs_its_text_exactly_once(workspace: Path, files: Files) -> None:
    """An edit of the wrong place is worse than none."""
    (workspace / "f").write_text("one two two", encoding="ascii")
    for old, words in (("three", "not in"), ("two", "2 times"), ("", "empty")):
        with pytest.raises(FileError, match=words):
            files.edit("f", old, "x")
    assert (workspace / "f").read_text(encoding="ascii") == "one two two"
    files.edit("f", "one", "1")
    assert (workspace / "f").read_text(encoding="ascii") == "1 two two"


def test_a_listing_names_kinds_and_stops_at_its_limit(workspace: Path, files: Files) -> None:
    (workspace / "d").mkdir()
    (workspace / "l").symlink_to("/etc/passwd")
    Path(os.fsdecode(os.fsencode(workspace) + b"/\xff")).touch()
    kinds = {entry.path: entry.kind for entry in files.list(".").entries}
    assert kinds == {"d": "directory", "l": "link", "�": "file"}
    for number in range(MAX_ENTRIES):
        (workspace / f"n{number}").touch()
    listing = files.list(".")
    assert len(listing.entries) == MAX_ENTRIES
    assert listing.truncated
    with pytest.raises(FileError):
        files.list("l")
