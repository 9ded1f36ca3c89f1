"""Workspaces as tars: what goes round, and what evil archives must not do."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import socket
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopbox_toolrunner import import_child
from loopbox_toolrunner.export import Bounds, ExportError, pack, plan_export

MIB = 1 << 20
BOUNDS = Bounds(most_bytes=8 * MIB, most_files=200, seconds=20)
LIMITS = import_child.Bounds(most_bytes=8 * MIB, most_files=200, seconds=20)

Tree = dict[str, bytes | str | None]  #: content of a file, target of a link, None for a directory


def exported(root: Path, *, outputs: bool = True) -> bytes:
    return b"".join(pack(root, plan_export(root, BOUNDS, outputs=outputs), BOUNDS))


def imported(root: Path, tar: bytes) -> dict[str, object]:
    return import_child.run(str(root), io.BytesIO(tar), LIMITS, say=lambda _: None)


def seen(root: Path) -> Tree:
    """Everything in a directory, nothing of it followed."""
    found: Tree = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder) / name
            key = path.relative_to(root).as_posix()
            if path.is_symlink():
                found[key] = str(path.readlink())
            else:
                found[key] = None if path.is_dir() else path.read_bytes()
    return found


def evil(*members: tuple[str, bytes, str | bytes], mode: int = 0o644) -> bytes:
    """A tar of (name, type, target or content)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, what in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, mode
            if isinstance(what, bytes):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
            else:
                info.linkname = what
                tar.addfile(info)
    return out.getvalue()


REG, DIR, SYM, LNK, CHR, FIFO = (
    tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE
)  # fmt: skip


@pytest.fixture
def place(workspace: Path) -> Iterator[Path]:
    """A workspace with content; whatever happens, what lies beside it stays."""
    (workspace.parent / "secret").write_text("hidden", encoding="ascii")
    (workspace / "mine").write_text("kept", encoding="ascii")
    yield workspace
    assert (workspace.parent / "secret").read_text(encoding="ascii") == "hidden"
    assert {p.name for p in workspace.parent.iterdir()} == {"secret", "workspace"}


def inner(root: Path, name: str) -> bool:
    """Whether a link leads somewhere inside, be it there or not."""
    try:
        (root / name).stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
    return f"{os.path.realpath(root / name)}/".startswith(f"{root}/")


names = st.sampled_from(["a", "b", "é", "x y", "-", "\n", "ab" * 60, ".hidden", ".outputs"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
targets = st.lists(st.sampled_from(["a", "b", "..", ".", "é", "ROOT", "OUT"]), min_size=1, max_size=4).map("/".join)


def plant(root: Path, tree: dict[str, bytes | str | None]) -> None:
    for name, what in tree.items():
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if what is None:
                path.mkdir(exist_ok=True)
            elif isinstance(what, bytes):
                path.write_bytes(what)
            else:
                path.symlink_to(what.replace("ROOT", str(root)).replace("OUT", str(root.parent)))
        except OSError:
            continue


@given(st.dictionaries(paths, st.none() | st.binary(max_size=1500) | targets, max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_exported_is_imported_the_same(tree: dict[str, bytes | str | None]) -> None:
    """Files and directories whole; links where they led, and none that leaves."""
    with tempfile.TemporaryDirectory() as made:
        one, two = Path(made).resolve() / "one", Path(made).resolve() / "two" / "workspace"
        one.mkdir()
        two.mkdir(parents=True)
        (two / "old").write_bytes(b"x")
        plant(one, tree)
        tar = exported(one)
        assert tar == exported(one)
        answer = imported(two, tar)
        assert "error" not in answer, answer
        was, now = seen(one), seen(two)
        assert {k for k, v in was.items() if isinstance(v, str) and inner(one, k)} == {
            k for k, v in now.items() if isinstance(v, str)
        }
        assert {k: v for k, v in now.items() if not isinstance(v, str)} == {
            k: v for k, v in was.items() if not isinstance(v, str)
        }
        for name, target in now.items():
            if isinstance(target, str):
                there = os.path.realpath(two / name)
                assert there == str(two) or there.startswith(f"{two}/")
                assert os.path.relpath(there, two) == os.path.relpath(os.path.realpath(one / name), one)


@pytest.mark.parametrize(
    ("target", "made"),
    [
        ("d/f", "d/f"),
        ("d/../d/f", "d/../d/f"),
        ("../workspace/d/f", "d/f"),  # out, and back by a name that another place has not
        ("d/../../workspace/d/f", "d/f"),
        ("{root}/d/f", "d/f"),
        ("through/f", "d/f"),
        ("gone/workspace/d/f", "d/f"),  # by way of a link that is left out itself
        ("none/../x", "none/../x"),
    ],
)
def test_a_link_leads_to_the_same_in_another_place(workspace: Path, tmp_path: Path, target: str, made: str) -> None:
    (workspace / "d").mkdir()
    (workspace / "d" / "f").write_bytes(b"x")
    (workspace / "through").symlink_to("d")
    (workspace / "gone").symlink_to("..")
    (workspace / "l").symlink_to(target.format(root=workspace))
    other = tmp_path / "deep" / "er" / "other"
    other.mkdir(parents=True)
    assert "error" not in imported(other, exported(workspace))
    assert str((other / "l").readlink()) == made
    assert "gone" not in seen(other)


def test_names_that_are_no_utf8_go_round(workspace: Path, tmp_path: Path) -> None:
    (workspace / os.fsdecode(b"\xff\xfe")).write_bytes(b"odd")
    other = tmp_path / "other"
    other.mkdir()
    assert imported(other, exported(workspace)) == {"entries": 1, "bytes": 3}
    assert seen(other) == seen(workspace)


def test_modes_and_times_go_round_without_setuid(workspace: Path, tmp_path: Path) -> None:
    file = workspace / "tool"
    file.write_bytes(b"x")
    file.chmod(0o6755)
    os.utime(file, (7, 7))
    tar = exported(workspace)
    other = tmp_path / "other"
    other.mkdir()
    assert "error" not in imported(other, tar)
    assert ((other / "tool").stat().st_mode & 0o7777, (other / "tool").stat().st_mtime) == (0o755, 7)
    assert "error" not in imported(other, evil(("s", REG, b"x"), mode=0o7777))
    assert (other / "s").stat().st_mode & 0o7777 == 0o777


def test_sockets_pipes_and_outer_links_are_left_out(place: Path) -> None:
    os.mkfifo(place / "pipe")
    (place / "out").symlink_to("../secret")
    (place / "chain").symlink_to("out")
    (place / "circle").symlink_to("circle/..")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(place / "s"))
    (place / ".outputs").mkdir()
    (place / ".outputs" / "1.out.txt").write_bytes(b"long")
    with tarfile.open(fileobj=io.BytesIO(exported(place))) as tar:
        assert tar.getnames() == [".outputs", ".outputs/1.out.txt", "mine"]
    with tarfile.open(fileobj=io.BytesIO(exported(place, outputs=False))) as tar:
        assert tar.getnames() == ["mine"]


def test_an_export_beyond_its_bounds_is_refused_before_the_first_byte(place: Path) -> None:
    (place / "big").write_bytes(bytes(9 * MIB))
    with pytest.raises(ExportError, match="8 MiB"):
        plan_export(place, BOUNDS)
    (place / "big").unlink()
    for number in range(200):
        (place / f"n{number}").touch()
    with pytest.raises(ExportError, match="200 entries"):
        plan_export(place, BOUNDS)


def test_a_file_that_changes_under_an_export_does_not_shift_the_rest(place: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (place / name).write_bytes(name.encode() * 3000)
    items = plan_export(place, BOUNDS)
    (place / "a").write_bytes(b"a")
    (place / "b").write_bytes(b"b" * 5000)
    (place / "c").unlink()
    os.mkfifo(place / "c")
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(place, items, BOUNDS)))) as tar:
        assert {m.name: m.size for m in tar} == {"a": 1, "b": 3000, "d": 3000, "mine": 4}


EVIL: dict[str, Callable[[], bytes]] = {
    "absolute": lambda: evil(("/tmp/x", REG, b"x")),
    "dots": lambda: evil(("a/../../x", REG, b"x")),
    "link out": lambda: evil(("l", SYM, "../secret")),
    "absolute link": lambda: evil(("l", SYM, "/etc/passwd")),
    "write through a link": lambda: evil(("l", SYM, ".."), ("l/secret", REG, b"x")),
    "chain": lambda: evil(("d/d/d", SYM, "../.."), ("e", SYM, "d/d/d/../../secret")),
    "link twice": lambda: evil(("l", SYM, "a"), ("l", SYM, "..")),
    "late chain": lambda: evil(("e", SYM, "l/../x"), ("l", SYM, ".")),
    "hard link": lambda: evil(("l", LNK, "mine")),
    "hard link out": lambda: evil(("l", LNK, "../secret")),
    "device": lambda: evil(("null", CHR, "")),
    "pipe": lambda: evil(("pipe", FIFO, "")),
    "ours": lambda: evil((".toolrunner-x/a", REG, b"x")),
    "file as directory": lambda: evil(("a", REG, b"x"), ("a/b", REG, b"x")),
    "directory as file": lambda: evil(("a/b", REG, b"x"), ("a", REG, b"x")),
    "too many": lambda: evil(*((f"n{n}", REG, b"") for n in range(201))),
    "too big": lambda: evil(("a", REG, bytes(9 * MIB))),
    "too deep": lambda: evil(("/".join("a" * 200), REG, b"x")),
    "long part": lambda: evil(("a" * 300, REG, b"x")),
    "cut": lambda: evil(("a", REG, bytes(5000)))[:3000],
    "no tar": lambda: b"hello" * 1000,
    "zip": lambda: b"PK\x03\x04" + bytes(2000),
    "compressed": lambda: b"\x1f\x8b\x08" + bytes(2000),
    "huge claim": lambda: _huge(),
    "headers of headers": lambda: _headers(),
}  # fmt: skip


def _huge() -> bytes:
    info = tarfile.TarInfo("a")
    info.size = 1 << 40
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def _headers() -> bytes:
    """Thousands of headers, each about the next: a library that goes down one call for each overflows."""
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.XHDTYPE, 0
    return info.tobuf(tarfile.USTAR_FORMAT) * 5000


@pytest.mark.parametrize("name", EVIL)
def test_an_evil_archive_is_refused_and_changes_nothing(place: Path, name: str) -> None:
    answer = imported(place, EVIL[name]())
    assert "The workspace is as it was" in str(answer.get("error")), answer
    assert seen(place) == {"mine": b"kept"}


def test_an_empty_archive_empties_the_workspace(place: Path) -> None:
    assert imported(place, evil()) == {"entries": 0, "bytes": 0}
    assert seen(place) == {}


@given(seed=st.integers(0, 1 << 32), flips=st.integers(1, 12), cut=st.integers(0, 9000))
@settings(max_examples=150)
def test_a_mangled_archive_is_refused_or_taken_but_never_breaks_out(seed: int, flips: int, cut: int) -> None:
    made = Path(tempfile.mkdtemp()).resolve()
    try:
        root = made / "workspace"
        root.mkdir()
        (root / "mine").write_bytes(b"kept")
        (made / "secret").write_bytes(b"hidden")
        whole = evil(
            ("d", DIR, ""), ("d/f", REG, b"x" * 700), ("l", SYM, "d/f"), ("é" * 70, REG, b"y"), ("d/m", SYM, ".")
        )
        mangled = bytearray(whole[: len(whole) - cut] if cut < len(whole) else whole)
        chance = random.Random(seed)  # noqa: S311 repeatable is what it must be
        for _ in range(flips):
            mangled[chance.randrange(len(mangled))] = chance.randrange(256)
        answer = imported(root, bytes(mangled))
        if "error" in answer:
            assert seen(root) == {"mine": b"kept"}
        else:
            for name, target in seen(root).items():
                if isinstance(target, str):
                    assert os.path.realpath(root / name).startswith(str(root))
        assert {p.name for p in made.iterdir()} == {"workspace", "secret"}
        assert (made / "secret").read_bytes() == b"hidden"
    finally:
        shutil.rmtree(made)


def test_a_swap_that_fails_is_undone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full or broken disk in the middle must not leave half of each."""
    (place / "other").write_bytes(b"x")
    before = seen(place)
    real, count = os.rename, 0

    def rename(source: str, target: str) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(5, "broken")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    assert "broken" in str(imported(place, evil(("new", REG, b"x"), ("too", REG, b"x")))["error"])
    assert seen(place) == before
