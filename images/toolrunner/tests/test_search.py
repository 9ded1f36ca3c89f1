"""Looking through files: what is found, and what cannot hold a call for ever."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox_toolrunner.arguments import FindFiles, SearchFiles
from loopbox_toolrunner.jail import FileError, Jail
from loopbox_toolrunner.launcher import Launcher
from loopbox_toolrunner.runner import Runner
from loopbox_toolrunner.search import Search
from loopbox_toolrunner.search_child import translate
from loopbox_toolrunner.settings import Settings


@pytest.fixture
async def search(workspace: Path) -> AsyncIterator[Search]:
    runner = Runner(Settings.model_validate({"workspace": workspace, "grace_s": 0.1}), Launcher(), lambda _why: None)
    yield Search(Jail(workspace), runner, 2)
    await runner.close()


def plant(workspace: Path, **files: str | bytes) -> None:
    for name, content in files.items():
        path = workspace / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


async def test_lines_are_found_as_read_file_counts_them(workspace: Path, search: Search) -> None:
    plant(workspace, a_py="import os\nx = os.path\n", src__b_py="# os\n", src__c_txt="os\n", bin=b"os\0")
    found = await search.lines(SearchFiles(pattern=r"\bos\.\w+"))
    assert [(m.path, m.line, m.text) for m in found.matches] == [("a.py", 1, "x = os.path")]
    found = await search.lines(SearchFiles(pattern="OS", files="*.py", ignore_case=True, literal=True))
    assert [(m.path, m.line) for m in found.matches] == [("a.py", 0), ("a.py", 1), ("src/b.py", 0)]
    assert (found.truncated, found.timed_out, found.searched) == (False, False, 2)
    found = await search.lines(SearchFiles(pattern="os", path="src", files="*.txt"))
    assert [m.path for m in found.matches] == ["src/c.txt"]
    found = await search.lines(SearchFiles(pattern="os", path="src/c.txt"))
    assert [m.path for m in found.matches] == ["src/c.txt"]
    assert (await search.lines(SearchFiles(pattern="os"))).skipped == 1


async def test_literal_text_is_no_expression(workspace: Path, search: Search) -> None:
    plant(workspace, f="a.c\nabc\n")
    found = await search.lines(SearchFiles(pattern="a.c", literal=True))
    assert [m.line for m in found.matches] == [0]
    with pytest.raises(FileError, match="cannot be used"):
        await search.lines(SearchFiles(pattern="a("))


async def test_an_expression_that_never_ends_is_ended_and_says_so(workspace: Path, search: Search) -> None:
    """Nothing inside Python stops a regular expression."""
    plant(workspace, a="found\n", b="a" * 40 + "!")
    started = time.monotonic()
    found = await search.lines(SearchFiles(pattern="found|^(a+)+$"))
    assert time.monotonic() - started < 6
    assert found.timed_out
    assert found.truncated
    assert (await search.paths(FindFiles(pattern="*"))).paths == ["a", "b"]


async def test_results_are_bounded_in_number_and_size(workspace: Path, search: Search) -> None:
    plant(workspace, f="x\n" * 500, long="y" * 50_000 + "\n", many=("z" * 400 + "\n") * 900)
    found = await search.lines(SearchFiles(pattern="x", max_results=7))
    assert (len(found.matches), found.truncated) == (7, True)
    found = await search.lines(SearchFiles(pattern="y"))
    assert [len(m.text) for m in found.matches] == [300]
    found = await search.lines(SearchFiles(pattern="z", max_results=1000))
    assert found.truncated
    assert sum(len(m.text) for m in found.matches) < 64 << 10


async def test_nothing_outside_is_looked_at(workspace: Path, search: Search) -> None:
    (workspace.parent / "secret").write_text("hidden", encoding="ascii")
    (workspace / "file").symlink_to("../secret")
    (workspace / "folder").symlink_to("..")
    assert (await search.lines(SearchFiles(pattern="hidden"))).matches == []
    assert (await search.paths(FindFiles(pattern="secret"))).paths == []
    for path in ("..", "folder", "/etc", "file"):
        with pytest.raises(FileError, match="outside"):
            await search.lines(SearchFiles(pattern="hidden", path=path))
    with pytest.raises(FileError, match="not there"):
        await search.paths(FindFiles(pattern="*", path="none"))


async def test_names_are_found_in_order(workspace: Path, search: Search) -> None:
    plant(workspace, b_py="", a_py="", src__x__y_py="", src__z_js="", node_modules__m_py="")
    assert (await search.paths(FindFiles(pattern="*.py"))).paths == ["a.py", "b.py", "node.modules/m.py", "src/x/y.py"]
    assert (await search.paths(FindFiles(pattern="src/**/*.py"))).paths == ["src/x/y.py"]
    assert (await search.paths(FindFiles(pattern="src/*"))).paths == ["src/z.js"]
    assert (await search.paths(FindFiles(pattern="*.py", path="src/x"))).paths == ["src/x/y.py"]
    cut = await search.paths(FindFiles(pattern="*", max_results=2))
    assert (len(cut.paths), cut.truncated) == (2, True)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.py", ["a.py", "d/e/a.py"], ["a.pyc", "a.py/b"]),
        ("d/*.py", ["d/a.py"], ["a.py", "d/e/a.py", "x/d/a.py"]),
        ("d/**", ["d/a", "d/e/a"], ["da"]),
        ("**/t/*", ["t/a", "x/t/a"], ["t/x/a"]),
        ("d/**/a", ["d/a", "d/x/y/a"], ["d/xa"]),
        ("[!a]?", ["bc"], ["ac", "b", "b/c"]),
        ("[a-c]", ["b"], ["d"]),
        ("a]", ["a]"], ["a"]),
        ("[", ["["], ["a"]),
    ],
)
def test_a_path_pattern_means_what_shells_mean(pattern: str, yes: list[str], no: list[str]) -> None:
    found = translate(pattern)
    assert [path for path in yes + no if found.match(path)] == yes


@given(st.text("ab*?.[]!-", min_size=1, max_size=8), st.text("ab.-!", min_size=1, max_size=6))
def test_within_one_name_patterns_are_the_librarys(pattern: str, name: str) -> None:
    try:
        found = translate(pattern)
    except Exception as error:  # noqa: BLE001 told to the caller as a pattern that cannot be used
        assert type(error).__name__ == "error"  # noqa: PT017
        return
    if "**" not in pattern and "[" not in pattern:
        assert bool(found.match(name)) == fnmatch.fnmatchcase(name, pattern)
