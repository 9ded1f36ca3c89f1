"""The model directory: what comes in whole becomes a release, what is broken is moved aside with its reason."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from intake_bench import Bench, make_bench

from loopd.blobs import Look
from loopd.state import Database
from loopd.watch import is_temporary
from tiny_gguf import make_tiny_gguf


@pytest.fixture
def bench(tmp_path: Path, database: Database) -> Bench:
    return make_bench(tmp_path / "home", database)


async def test_a_whole_model_becomes_a_release_and_asks_for_its_rollout(bench: Bench) -> None:
    make_tiny_gguf(bench.layout.incoming / "one.gguf", seed=1)
    await bench.settle()
    (listed,) = await bench.registry.releases()
    assert (listed.release.name, listed.source, listed.release.architecture) == ("one", "one.gguf", "llama")
    assert list(bench.layout.incoming.iterdir()) == []
    blob = bench.layout.blob(listed.release.gguf_sha256)
    assert blob.stat().st_mode & 0o777 == 0o444
    assert (await bench.rollouts.newest())[0].candidate == listed.release.id


async def test_a_half_copied_model_waits_until_it_is_whole(bench: Bench, tmp_path: Path) -> None:
    whole = make_tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    target = bench.layout.incoming / "slow.gguf"
    target.write_bytes(whole[: len(whole) // 2])
    await bench.settle(30)
    assert await bench.names() == set()
    assert bench.rejected() == {}
    target.write_bytes(whole)
    await bench.settle()
    assert await bench.names() == {"slow"}


async def test_a_copy_that_never_ends_is_refused_at_last(bench: Bench, tmp_path: Path) -> None:
    whole = make_tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    (bench.layout.incoming / "stuck.gguf").write_bytes(whole[:1000])
    await bench.settle()
    await bench.settle(61)
    assert bench.rejected() == {"stuck.gguf": "truncated"}


async def test_a_file_that_still_changes_is_not_looked_into(bench: Bench) -> None:
    target = bench.layout.incoming / "growing.gguf"
    for size in range(1, 6):
        target.write_bytes(b"x" * size)
        await bench.watcher.look()
        bench.clock.now += 0.5
    assert bench.rejected() == {}


def garbage(path: Path) -> None:
    path.write_bytes(b"not a model at all" * 100)


def link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(11 << 20)


@pytest.mark.parametrize(
    ("make", "name", "code"),
    [
        (garbage, "bad.gguf", "bad_magic"),
        (garbage, "notes.txt", "not_gguf"),
        (link, "link.gguf", "not_a_file"),
        (pipe, "pipe.gguf", "not_a_file"),
        (folder, "folder.gguf", "not_a_file"),
        (huge, "huge.gguf", "too_large"),
    ],
)
async def test_what_cannot_be_served_is_moved_aside_with_its_reason(
    bench: Bench, make: Callable[[Path], None], name: str, code: str
) -> None:
    make(bench.layout.incoming / name)
    await bench.settle()
    assert bench.rejected() == {name: code}
    assert list(bench.layout.incoming.iterdir()) == []
    entry = await bench.ledger.last(name, "candidate.rejected")
    assert entry is not None
    assert entry.detail["code"] == code


async def test_the_same_name_refused_twice_keeps_both(bench: Bench) -> None:
    for _ in range(2):
        garbage(bench.layout.incoming / "bad.gguf")
        await bench.settle()
    assert len(list(bench.layout.rejected.glob("bad.gguf*.reason.json"))) == 2


async def test_the_same_bytes_twice_are_one_release_and_one_blob(bench: Bench) -> None:
    for name in ("one.gguf", "two.gguf"):
        make_tiny_gguf(bench.layout.incoming / name, seed=1)
        await bench.settle()
    assert len(await bench.registry.releases()) == 1
    assert len(list(bench.layout.blobs.iterdir())) == 1
    assert list(bench.layout.incoming.iterdir()) == []


async def test_the_same_name_with_new_bytes_is_another_release(bench: Bench) -> None:
    for seed in (1, 2):
        make_tiny_gguf(bench.layout.incoming / "model.gguf", seed=seed)
        await bench.settle()
    assert len(await bench.registry.releases()) == 2


async def test_a_kill_between_blob_and_release_is_made_good(bench: Bench) -> None:
    """The incoming name goes last, so the file is seen again and ends in the same release."""
    path = make_tiny_gguf(bench.layout.incoming / "one.gguf", seed=1)
    bench.intake.blobs.take(path, Look.of(path.stat()), lambda _: None)
    # The link and the seal show on the name, too: it is the same file.
    assert path.stat().st_nlink == 2
    await bench.settle()
    assert await bench.names() == {"one"}
    assert list(bench.layout.incoming.iterdir()) == []


async def test_a_fault_that_is_not_the_files_leaves_it_where_it_is(bench: Bench) -> None:
    async def down() -> str:
        raise OSError("the disk is sulking")

    whole = bench.intake.engine_image
    bench.changed(engine_image=down)
    make_tiny_gguf(bench.layout.incoming / "one.gguf")
    await bench.settle()
    assert bench.rejected() == {}
    await bench.settle(1000)
    assert bench.rejected() == {}
    waits = [entry for entry in await bench.ledger.read() if entry.event == "candidate.waits"]
    assert [entry.cause for entry in waits] == ["the disk is sulking"]
    bench.changed(engine_image=whole)
    await bench.settle(10)
    assert await bench.names() == {"one"}


@pytest.mark.parametrize("name", [".model.gguf.Xy12ab", "a.gguf.part", "a.gguf.tmp", "a.gguf~", ".hidden.gguf"])
async def test_names_of_copies_under_way_are_left_alone(bench: Bench, name: str) -> None:
    assert is_temporary(name)
    garbage(bench.layout.incoming / name)
    await bench.settle(1000)
    assert (bench.layout.incoming / name).exists()


async def test_a_dropped_file_rings_the_bell(bench: Bench) -> None:
    """Real inotify: no look is due for seconds, yet the file is served at once."""
    bench.watcher.settle_s = 0.05
    bench.watcher.clock = time.monotonic
    watching = asyncio.create_task(bench.watcher.run_forever())
    try:
        async with asyncio.timeout(10):
            temporary = bench.layout.incoming / ".one"
            make_tiny_gguf(temporary)
            temporary.rename(bench.layout.incoming / "one.gguf")
            await bench.rollouts.changed.wait()
        assert await bench.names() == {"one"}
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
