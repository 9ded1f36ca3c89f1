"""How files come in: every way of copying ends in a whole release, a wait or a refusal, and never in half a model."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from intake_bench import Bench, make_bench

from loopd import blobs as blobs_module
from loopd.blobs import Look, is_sealed
from loopd.gguf_types import GgufError
from loopd.inspection import Inspected, check
from loopd.sidecar import Drop
from loopd.state import Database
from loopd.watch import Watcher, _Bell
from tiny_gguf import make_tiny_gguf


@pytest.fixture
def bench(tmp_path: Path, database: Database) -> Bench:
    return make_bench(tmp_path / "home", database)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return make_tiny_gguf(tmp_path / "whole.gguf", seed=3)


async def reasons(bench: Bench) -> list[object]:
    return [entry.detail["code"] for entry in await bench.ledger.read() if entry.event == "candidate.waits"]


async def test_a_rename_from_the_same_disk_is_linked_not_copied(bench: Bench, whole: Path) -> None:
    inode = whole.stat().st_ino
    whole.rename(bench.incoming / "one.gguf")
    await bench.settle()
    (blob,) = bench.layout.blobs.iterdir()
    assert blob.stat().st_ino == inode
    assert blob.stat().st_nlink == 1
    assert is_sealed(blob.stat(), blob.stat().st_size)


async def test_a_copy_that_pauses_longer_than_the_settle_time_is_waited_for(bench: Bench, whole: Path) -> None:
    """Its last byte is there and its size is right, but it is still open: who copies may go back and write."""
    with (bench.incoming / "one.gguf").open("wb") as copy:
        copy.write(whole.read_bytes())
        copy.flush()
        await bench.settle(1000)
        await bench.settle(1000)
        assert bench.rejected() == {}
        assert await bench.names() == set()
    assert await reasons(bench) == ["still_written"]
    assert bench.inspected == []
    await bench.watcher.look()
    assert await bench.names() == {"one"}


async def test_a_file_mapped_for_writing_is_waited_for(bench: Bench, whole: Path) -> None:
    """A mapping outlives its descriptor, and writes through it show no open file."""
    target = bench.incoming / "one.gguf"
    shutil.copy(whole, target)
    with target.open("r+b") as opened:
        mapped = mmap.mmap(opened.fileno(), 0)
    await bench.settle()
    assert await bench.names() == set()
    mapped.close()
    await bench.watcher.look()
    assert await bench.names() == {"one"}


async def test_a_file_system_that_cannot_tell_who_writes_has_its_files_copied(
    bench: Bench, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS refuses every lease that it holds no delegation for; such a file must not wait for ever."""

    def refuse(fd: int, what: int, value: int = 0) -> int:
        if what == fcntl.F_SETLEASE:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return 0

    monkeypatch.setattr("loopd.blobs.fcntl.fcntl", refuse)
    inode = whole.stat().st_ino
    whole.rename(bench.incoming / "one.gguf")
    await bench.settle()
    (blob,) = bench.layout.blobs.iterdir()
    assert blob.stat().st_ino != inode
    assert await bench.names() == {"one"}


async def test_rsyncs_temporary_name_is_passed_over_until_its_rename(bench: Bench, whole: Path) -> None:
    temporary = bench.incoming / ".one.gguf.Ab3xYz"
    shutil.copy(whole, temporary)
    await bench.settle(1000)
    assert bench.inspected == []
    temporary.rename(bench.incoming / "one.gguf")
    await bench.settle()
    assert await bench.names() == {"one"}


@pytest.mark.parametrize("where", ["end", "middle"])
async def test_a_sparse_copy_is_not_taken_for_a_whole_one(bench: Bench, whole: Path, where: str) -> None:
    """A tool that sets the size first and fills in later: the size is right, the bytes are not there."""
    data = whole.read_bytes()
    target = bench.incoming / "one.gguf"
    kept = data[:200_000] if where == "end" else data[:100_000]
    with target.open("wb") as file:
        file.write(kept)
        if where == "middle":
            file.seek(300_000)
            file.write(data[300_000:])
        file.truncate(len(data))
    await bench.settle()
    assert await reasons(bench) == ["truncated"]
    await bench.settle(61)
    assert bench.rejected() == {"one.gguf": "truncated"}
    assert bench.blobs() == set()


async def test_two_files_at_once_are_two_releases(bench: Bench) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        make_tiny_gguf(bench.incoming / f"{name}.gguf", seed=seed)
    await bench.settle()
    assert await bench.names() == {"one", "two"}
    assert len(bench.blobs()) == 2
    assert list(bench.incoming.iterdir()) == []


async def test_the_same_bytes_under_another_name_are_told_as_known(bench: Bench) -> None:
    for name in ("one", "two"):
        make_tiny_gguf(bench.incoming / f"{name}.gguf", seed=1)
        await bench.settle()
    told = [entry.detail["file"] for entry in await bench.ledger.read() if entry.event == "release.known"]
    assert told == ["two.gguf"]
    assert len(bench.blobs()) == 1


async def test_links_out_of_the_directory_are_refused_and_not_followed(bench: Bench, whole: Path) -> None:
    (bench.incoming / "one.gguf").symlink_to(whole)
    await bench.settle()
    assert bench.rejected() == {"one.gguf": "not_a_file"}
    assert bench.inspected == []
    assert whole.exists()
    assert bench.blobs() == set()


async def test_a_link_put_in_the_place_of_a_seen_file_is_not_followed(bench: Bench, whole: Path) -> None:
    """Between the look and the hash a name may come to mean another file."""
    target = bench.incoming / "one.gguf"
    shutil.copy(whole, target)
    look = Look.of(target.lstat())
    target.unlink()
    target.symlink_to(whole)
    with pytest.raises(OSError, match="symbolic links"):
        bench.intake.blobs.take(target, look, lambda _: None)


async def test_a_file_replaced_while_it_is_inspected_is_seen_again(bench: Bench, tmp_path: Path) -> None:
    """The bytes that were checked and the bytes that are kept are the same bytes."""
    target = make_tiny_gguf(bench.incoming / "one.gguf", seed=1)
    other = make_tiny_gguf(tmp_path / "other.gguf", seed=2)

    async def swap(path: Path) -> Inspected:
        summary = await check(path)
        other.rename(target)
        return summary

    bench.changed(inspect=swap)
    await bench.settle()
    assert await reasons(bench) == ["changed_while_read"]
    assert bench.blobs() == set()
    bench.changed(inspect=check)
    await bench.settle()
    assert await bench.names() == {"one"}


async def test_a_file_written_while_it_is_hashed_is_seen_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_tiny_gguf(bench.incoming / "one.gguf", seed=1)
    honest = blobs_module._hash

    def write_meanwhile(fd: int, *, copy_to: int | None = None) -> str:
        with target.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\7")
        return honest(fd, copy_to=copy_to)

    monkeypatch.setattr(blobs_module, "_hash", write_meanwhile)
    with pytest.raises(GgufError) as caught:
        await bench.intake.admit(Drop(target))
    assert (caught.value.code, caught.value.unfinished) == ("changed_while_read", True)
    assert bench.blobs() == set()


async def test_a_hard_linked_file_is_copied_so_its_other_name_changes_nothing(bench: Bench, whole: Path) -> None:
    """Its owner keeps a name of it, with its own mode and owner, and may write through that at any time."""
    mode, content = whole.stat().st_mode, whole.read_bytes()
    os.link(whole, bench.incoming / "one.gguf")
    await bench.settle()
    (listed,) = await bench.registry.releases()
    blob = bench.layout.blob(listed.release.gguf_sha256)
    assert blob.stat().st_ino != whole.stat().st_ino
    assert (whole.stat().st_mode, whole.stat().st_nlink) == (mode, 1)
    whole.write_bytes(b"other bytes")
    assert blob.read_bytes() == content
    bench.intake.blobs.ensure(listed.release.gguf_sha256, listed.release.size_bytes, whose="one")
    assert bench.blobs() == {blob.name}


async def test_bytes_that_change_after_they_were_kept_are_not_loaded(bench: Bench, whole: Path) -> None:
    whole.rename(bench.incoming / "one.gguf")
    await bench.settle()
    (listed,) = await bench.registry.releases()
    release = listed.release
    blob = bench.layout.blob(release.gguf_sha256)
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\7")
    with pytest.raises(blobs_module.BlobDamagedError, match="changed on disk"):
        bench.intake.blobs.ensure(release.gguf_sha256, release.size_bytes, whose=release.short)
    make_tiny_gguf(bench.incoming / "again.gguf", seed=3)
    await bench.settle()
    assert bench.intake.blobs.ensure(release.gguf_sha256, release.size_bytes, whose=release.short) == blob


async def test_a_restored_blob_is_hashed_once_and_sealed_again(
    bench: Bench, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup gives back the bytes and the time, but not the inode."""
    whole.rename(bench.incoming / "one.gguf")
    await bench.settle()
    (listed,) = await bench.registry.releases()
    sha256, size = listed.release.blobs[0]
    blob = bench.layout.blob(sha256)
    shutil.copy2(blob, blob.with_suffix(".copy"))
    blob.with_suffix(".copy").replace(blob)
    assert not is_sealed(blob.stat(), size)
    bench.intake.blobs.ensure(sha256, size, whose="one")
    monkeypatch.setattr(blobs_module, "_hash", lambda _: pytest.fail("a sealed file is not read again"))
    bench.intake.blobs.ensure(sha256, size, whose="one")


async def test_a_missing_blob_says_what_to_do(bench: Bench) -> None:
    with pytest.raises(blobs_module.BlobMissingError, match="models/incoming again"):
        bench.intake.blobs.ensure("a" * 64, 1, whose="one")


async def test_files_dropped_while_loopd_was_down_are_found_at_its_start(bench: Bench) -> None:
    make_tiny_gguf(bench.incoming / "one.gguf", seed=1)
    os.utime(bench.incoming / "one.gguf", (1, 1))
    bench.watcher.settle_s = 0.05
    await serve_until_asked(bench)
    assert await bench.names() == {"one"}


async def test_events_that_are_lost_are_made_up_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inotify's queue overflows when a thousand files come at once: no event at all must be enough."""
    monkeypatch.setattr(_Bell, "on_any_event", lambda *_: None)
    bench.watcher.settle_s = bench.watcher.look_s = 0.05
    await serve_until_asked(bench, lambda: make_tiny_gguf(bench.incoming / "one.gguf", seed=1))
    assert await bench.names() == {"one"}


async def test_a_host_without_inotify_left_looks_by_itself(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(self: object) -> None:
        raise OSError(errno.EMFILE, "inotify instance limit reached")

    monkeypatch.setattr("watchdog.observers.api.BaseObserver.start", taken)
    monkeypatch.setattr("loopd.watch.Observer.start", taken)
    bench.watcher.settle_s = bench.watcher.look_s = 0.05
    await serve_until_asked(bench, lambda: make_tiny_gguf(bench.incoming / "one.gguf", seed=1))
    assert await bench.names() == {"one"}


async def serve_until_asked(bench: Bench, drop: object = None) -> None:
    """Run the watcher as loopd does until a rollout is asked for."""
    watcher = Watcher(
        directory=bench.incoming,
        intake=bench.intake,
        settle_s=bench.watcher.settle_s,
        stale_s=60,
        look_s=bench.watcher.look_s,
    )
    watching = asyncio.create_task(watcher.run_forever())
    try:
        async with asyncio.timeout(20):
            await asyncio.sleep(0)
            if callable(drop):
                drop()
            await bench.rollouts.changed.wait()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_the_directory_itself_may_be_away_for_a_while(bench: Bench) -> None:
    """Guards loopd: an unmounted directory must not end its watcher."""
    moved = bench.incoming.rename(bench.incoming.with_name("away"))
    assert await bench.watcher.look() > 0
    moved.rename(bench.incoming)
    make_tiny_gguf(bench.incoming / "one.gguf")
    await bench.settle()
    assert await bench.names() == {"one"}


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB."""
    home = tmp_path / "small"
    home.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1536k", "none", str(home)], check=False)
    if done.returncode != 0:
        pytest.skip("no right to mount here")
    yield home
    subprocess.run(["umount", "-l", str(home)], check=True)


async def test_a_disk_that_fills_while_a_copy_is_kept_loses_nothing(
    tiny_disk: Path, database: Database, tmp_path: Path
) -> None:
    """ENOSPC in the middle of a write: the half copy goes, the file stays and comes in when there is room."""
    bench = make_bench(tiny_disk, database)
    target = make_tiny_gguf(bench.incoming / "one.gguf", seed=1)
    os.link(target, bench.incoming / ".other-name")  # so it must be copied
    filler = tiny_disk / "filler"
    free = shutil.disk_usage(tiny_disk).free
    filler.write_bytes(b"x" * (free - 100_000))
    await bench.settle()
    assert bench.rejected() == {}
    assert bench.blobs() == set()
    waits = [entry for entry in await bench.ledger.read() if entry.event == "candidate.waits"]
    assert "No space left" in waits[-1].cause
    filler.unlink()
    await bench.settle(6)
    assert await bench.names() == {"one"}


async def test_a_nearly_full_disk_takes_nothing_in_and_says_so_once(bench: Bench) -> None:
    bench.changed(free_bytes=1 << 60)
    make_tiny_gguf(bench.incoming / "one.gguf")
    for _ in range(5):
        await bench.settle(1000)
    waits = [entry for entry in await bench.ledger.read() if entry.event == "candidate.waits"]
    assert len(waits) == 1
    assert "loopctl releases gc" in waits[0].cause
    assert (bench.incoming / "one.gguf").exists()


async def test_a_refusal_on_a_full_disk_moves_the_file_and_tells_the_ledger(
    tiny_disk: Path, database: Database
) -> None:
    """No room for the note with the reason is no reason to look at the file again and again."""
    bench = make_bench(tiny_disk, database)
    (bench.incoming / "bad.gguf").write_bytes(b"not a model" * 10)
    with (tiny_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while filler.write(b"x" * 4096):
            pass
    await bench.settle()
    assert (bench.layout.rejected / "bad.gguf").exists()
    entry = await bench.ledger.last("bad.gguf", "candidate.rejected")
    assert entry is not None
    assert entry.detail["code"] == "bad_magic"


async def test_a_look_that_differs_in_anything_is_another_file(bench: Bench, whole: Path) -> None:
    look = Look.of(whole.stat())
    for other in (
        replace(look, size=look.size + 1),
        replace(look, mtime_ns=look.mtime_ns + 1),
        replace(look, inode=look.inode + 1),
        replace(look, links=2),
    ):
        with pytest.raises(GgufError) as caught:
            bench.intake.blobs.take(whole, other, lambda _: None)
        assert caught.value.code == "changed_while_read"
