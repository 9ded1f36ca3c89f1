"""Backups: made, kept, verified, refused when damaged, and put back. Real files throughout."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import aiohttp
import pytest
from typer.testing import CliRunner, Result

from loopd.api.schema import AuditVerdict, BackupList, BackupView
from loopd.app import make_directories
from loopd.audit import Record, open_trail
from loopd.backup import BackupDamagedError, BackupError, BackupMissingError, Manifest, read_manifest, verify_backup
from loopd.backup_schedule import Backups
from loopd.backups import BackupBusyError, Shelf, Stored, open_shelf, parse_name, sort_newest
from loopd.cli.exits import ExitCode
from loopd.cli.main import app
from loopd.config import Settings
from loopd.ledger import Ledger
from loopd.lock import sole_owner
from loopd.registry import Registry
from loopd.restore import LoopdRunsError, restore_backup
from loopd.state import Database, StateError, migrations, open_database
from loopd.units import Layout, layout_of
from running_loopd import running, settings_at
from samples import make_release

A, B = make_release("alpha"), make_release("beta")


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="lb"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("LOOPBOX_HOME", str(folder / "home"))
    return settings_at(folder, backup={"every_s": 86400, "keep": 3})


@pytest.fixture
def layout(settings: Settings) -> Layout:
    made = layout_of(settings)
    make_directories(made)
    return made


@pytest.fixture
def shelf(settings: Settings) -> Shelf:
    return open_shelf(settings)


async def fill(database: Database) -> None:
    """Two releases, the second serves."""
    registry, ledger = Registry(database), Ledger(database)
    for release in (A, B):
        if await registry.add(release, source=f"{release.name}.gguf"):
            await registry.promote(release.id)
            await ledger.append("rollout.promoted", release.short, "test")
    await registry.unroute(A.id)


@pytest.fixture
async def state(layout: Layout) -> AsyncIterator[Database]:
    async with open_database(layout.state) as database:
        await fill(database)
        yield database


async def champion(layout: Layout) -> str | None:
    async with open_database(layout.state) as database:
        assert await Ledger(database).verify() is None
        return (await Registry(database).serving()).champion


def verify(path: Path, into: Path) -> Manifest:
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    return verify_backup(path, into)


async def test_a_backup_made_under_writes_is_whole_and_tells_what_it_holds(
    state: Database, shelf: Shelf, settings: Settings, tmp_path: Path
) -> None:
    """The copy is online: loopd goes on writing while it is made."""
    (settings.home / "loopbox.toml").write_text("num_ctx = 4096\n")
    (settings.home / "control.token").write_text("secret" * 10)
    ledger = Ledger(state)
    writing = asyncio.create_task(write_on(ledger))
    stored, manifest = await asyncio.to_thread(shelf.make, "command")
    writing.cancel()
    assert stored.path.stat().st_mode & 0o777 == 0o600
    assert shelf.folder.stat().st_mode & 0o777 == 0o700
    assert verify(stored.path, tmp_path / "v") == manifest == read_manifest(stored.path)
    assert (manifest.releases, manifest.champion) == (2, B.id)
    assert manifest.ledger_length >= 2
    assert [member.name for member in manifest.members] == ["state.db", "releases.json", "loopbox.toml"]
    assert [release["id"] for release in json.loads((tmp_path / "v" / "releases.json").read_text())] == [A.id, B.id]
    assert b"secretsecret" not in stored.path.read_bytes()
    assert [path.name for path in shelf.folder.iterdir()] == [stored.name]


async def write_on(ledger: Ledger) -> None:
    while True:
        await ledger.append("test.happened", "x", "y")


async def test_a_backup_flipped_cut_or_forged_anywhere_is_found_damaged(
    state: Database, shelf: Shelf, tmp_path: Path
) -> None:
    stored, _ = await asyncio.to_thread(shelf.make, "command")
    good = stored.path.read_bytes()
    with tarfile.open(stored.path) as tar:
        used = [(m.offset_data, m.offset_data + m.size) for m in tar.getmembers()]
    dice = random.Random(7)  # noqa: S311 no secret
    places = [dice.randrange(*span) for span in used for _ in range(8)]
    broken = tmp_path / stored.name
    for at in places:
        broken.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        with pytest.raises(BackupDamagedError):
            verify(broken, tmp_path / "v")
    for length in (0, 100, 512, 1024, used[1][0], used[-1][1] - 1):
        broken.write_bytes(good[:length])
        with pytest.raises(BackupDamagedError):
            verify(broken, tmp_path / "v")


async def test_a_ledger_forged_together_with_its_digests_is_found_by_its_chain(
    state: Database, shelf: Shelf, tmp_path: Path
) -> None:
    stored, manifest = await asyncio.to_thread(shelf.make, "command")
    forged = tmp_path / stored.name
    repack(stored.path, forged, manifest, "UPDATE ledger SET cause = 'nothing happened' WHERE seq = 1")
    with pytest.raises(BackupDamagedError, match="chain"):
        verify(forged, tmp_path / "v")
    repack(stored.path, forged, manifest, "DELETE FROM ledger WHERE seq = 2")
    with pytest.raises(BackupDamagedError, match="another state"):
        verify(forged, tmp_path / "v")
    repack(stored.path, forged, manifest, "PRAGMA user_version = 9999")
    with pytest.raises(BackupDamagedError, match="older than the state"):
        verify(forged, tmp_path / "v")


def repack(source: Path, target: Path, manifest: Manifest, sql: str) -> None:
    """Write a backup with a changed state whose digests fit."""
    import hashlib  # noqa: PLC0415 for the forger alone

    with tempfile.TemporaryDirectory() as name, tarfile.open(source) as tar:
        tar.extractall(name, filter="data")
        with sqlite3.connect(Path(name, "state.db"), isolation_level=None) as connection:
            connection.execute(sql)
        connection.close()
        content = Path(name, "state.db").read_bytes()
        first = manifest.members[0].model_copy(
            update={"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        )
        lie = manifest.model_copy(update={"members": (first, *manifest.members[1:])})
        with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as out:
            bodies = {"manifest.json": lie.model_dump_json().encode(), "state.db": content}
            bodies["releases.json"] = Path(name, "releases.json").read_bytes()
            for member, body in bodies.items():
                info = tarfile.TarInfo(member)
                info.size = len(body)
                out.addfile(info, io.BytesIO(body))


def tar_of(path: Path, *headers: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as out:
        for info, body in headers:
            info.size = len(body)
            out.addfile(info, io.BytesIO(body))
    return path


def test_files_that_are_no_backups_are_refused_and_nothing_is_unpacked_outside(tmp_path: Path) -> None:
    link = tarfile.TarInfo("manifest.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    cases = [
        tar_of(tmp_path / "empty.tar"),
        tar_of(tmp_path / "other.tar", (tarfile.TarInfo("../../evil"), b"x")),
        tar_of(tmp_path / "link.tar", (link, b"")),
        tar_of(tmp_path / "huge.tar", (tarfile.TarInfo("manifest.json"), b" " * 70000)),
        tar_of(tmp_path / "text.tar", (tarfile.TarInfo("manifest.json"), b"not json")),
    ]
    garbage = tmp_path / "garbage.tar"
    garbage.write_bytes(random.Random(3).randbytes(5000))  # noqa: S311 no secret
    for case in [*cases, garbage]:
        with pytest.raises(BackupDamagedError):
            verify(case, tmp_path / "v")
        assert list((tmp_path / "v").iterdir()) == []
    with pytest.raises(BackupMissingError):
        verify(tmp_path / "absent.tar", tmp_path / "v")


async def test_the_newest_of_each_reason_stay_and_the_rest_goes(state: Database, shelf: Shelf) -> None:
    made = [(await asyncio.to_thread(shelf.make, "command"))[0].name for _ in range(5)]
    upgrade, _ = await asyncio.to_thread(shelf.make, "upgrade")
    assert [stored.name for stored in shelf.stored()] == [upgrade.name, *reversed(made[2:])]


def test_backups_of_a_clock_that_ran_ahead_are_worth_least() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    ages = {"future": -400, "new": 1, "old": 9}
    found = [Stored(path=Path(k), at=now - timedelta(days=v), reason="scheduled") for k, v in ages.items()]
    assert [stored.name for stored in sort_newest(found, now)] == ["new", "old", "future"]
    assert parse_name(Path("loopbox-99999999T999999999999Z-command.tar")) is None
    assert parse_name(Path("loopbox-20260301T000000000000Z-command.tar.part")) is None


async def test_a_second_backup_at_the_same_time_is_a_conflict(state: Database, shelf: Shelf) -> None:
    with shelf._busy, pytest.raises(BackupBusyError):
        shelf.make("command")
    shelf.make("command")


MAKE = """
import sys, tarfile
from pathlib import Path
from loopd import backup
from loopd.backups import open_shelf
from loopd.config import load_settings
real = backup.{name}
def stop(*args, **kwargs):
    result = real(*args, **kwargs) if {after} else None
    print("here", flush=True)
    sys.stdin.read()
    return result
backup.{name} = stop
open_shelf(load_settings()).make("command")
"""


@pytest.mark.parametrize(
    ("name", "after"),
    [("copy_state", True), ("tell_state", True), ("_pack", False), ("_pack", True), ("sync_folder", False)],
)
async def test_killed_at_any_moment_there_is_a_whole_backup_or_none(
    state: Database, shelf: Shelf, name: str, after: bool, tmp_path: Path
) -> None:
    for _ in range(2):
        with subprocess.Popen(  # noqa: ASYNC220 starting it does not wait
            [sys.executable, "-c", MAKE.format(name=name, after=after)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        ) as process:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == b"here\n"
            process.send_signal(signal.SIGKILL)
        for stored in shelf.stored():
            verify(stored.path, tmp_path / "v")
        assert len(shelf.stored()) == 0 or name == "sync_folder"
    # Two kills left no more than one did, and the next backup clears it away.
    stored, _ = await asyncio.to_thread(shelf.make, "command")
    assert {path.name for path in shelf.folder.iterdir()} == {stored.name for stored in shelf.stored()}
    verify(stored.path, tmp_path / "v")


RESTORE = """
import sys
from pathlib import Path
from loopd import restore
from loopd.backups import open_shelf
from loopd.config import config_path, load_settings
from loopd.units import layout_of
place = {place!s}
real = getattr(place, "{name}")
calls = 0
def stop(*args, **kwargs):
    global calls
    calls += 1
    if calls == {call}:
        print("here", flush=True)
        sys.stdin.read()
    return real(*args, **kwargs)
setattr(place, "{name}", stop)
settings = load_settings()
restore.restore_backup(open_shelf(settings).stored()[0].path, layout_of(settings), config_path())
print("done", flush=True)
"""


def first_word(lines: IO[bytes]) -> bytes:
    """Return the first line that is not of the log."""
    return next((line for line in lines if line in (b"here\n", b"done\n")), b"")


@pytest.mark.parametrize(
    ("place", "name", "call"),
    [
        ("restore", "verify_backup", 1),
        ("restore", "_adopt", 1),
        ("restore", "_swap", 1),
        ("Path", "hardlink_to", 1),
        ("Path", "unlink", 2),  # between the two files of the log
        ("Path", "replace", 1),
        ("restore", "sync_folder", 1),
    ],
)
async def test_a_restore_killed_at_any_moment_leaves_a_whole_state_and_can_be_done_again(
    layout: Layout, shelf: Shelf, place: str, name: str, call: int
) -> None:
    async with open_database(layout.state) as database:
        await fill(database)
        await asyncio.to_thread(shelf.make, "command")
        await Ledger(database).append("test.late", "x", "y")
    for _ in range(2):
        with subprocess.Popen(  # noqa: ASYNC220 starting it does not wait
            [sys.executable, "-c", RESTORE.format(place=place, name=name, call=call)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        ) as process:
            assert process.stdout is not None
            assert await asyncio.to_thread(first_word, process.stdout) == b"here\n"
            process.send_signal(signal.SIGKILL)
        assert await champion(layout) == B.id
        async with open_database(layout.state) as database:
            events = [entry.event for entry in await Ledger(database).read()]
        assert events[-1] == ("state.restored" if name == "sync_folder" else "test.late")
    await asyncio.to_thread(restore_backup, shelf.stored()[0].path, layout, layout.home / "loopbox.toml")
    assert await champion(layout) == B.id
    assert not (layout.home / ".restore").exists()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "tiny"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=False)
    if made.returncode != 0:
        pytest.skip("this user may not mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_on_a_full_disk_no_half_backup_stays_and_the_error_says_so(
    state: Database, shelf: Shelf, tiny_disk: Path
) -> None:
    await asyncio.to_thread(shelf.make, "command")
    full = Shelf(folder=tiny_disk / "backups", sources=shelf.sources, keep=3)
    (tiny_disk / "ballast").write_bytes(bytes(900 << 10))
    with pytest.raises(BackupError, match="no room") as caught:
        await asyncio.to_thread(full.make, "command")
    assert (caught.value.code, caught.value.status) == ("backup_no_space", 507)
    assert list(full.folder.iterdir()) == []


async def test_with_the_disk_full_the_last_good_backup_is_still_named(
    state: Database, shelf: Shelf, tiny_disk: Path
) -> None:
    small = Shelf(folder=tiny_disk / "backups", sources=shelf.sources, keep=3)
    stored, _ = await asyncio.to_thread(small.make, "command")
    with contextlib.suppress(OSError):
        (tiny_disk / "ballast").write_bytes(bytes(1 << 20))
    assert stored.name in await asyncio.to_thread(small.advice)
    assert [path.name for path in small.folder.iterdir()] == [stored.name]


async def test_the_schedule_counts_what_was_made_before_a_restart(state: Database, shelf: Shelf) -> None:
    first = datetime.fromisoformat((await Ledger(state).read(limit=1))[0].at)

    def backups_at(moment: datetime) -> Backups:
        return Backups(shelf=shelf, ledger=Ledger(state), every_s=86400, clock=lambda: moment)

    assert 0 < (await backups_at(first + timedelta(seconds=299)).due_s() or 0) <= 1
    assert (await backups_at(first + timedelta(seconds=301)).due_s() or 0) < 0
    stored, _ = await asyncio.to_thread(shelf.make, "scheduled")
    await asyncio.to_thread(shelf.make, "command")  # by hand: the clock goes on as before
    # As a loopd does that starts anew.
    assert await backups_at(stored.at + timedelta(hours=1)).due_s() == 23 * 3600
    assert (await backups_at(stored.at + timedelta(hours=25)).due_s() or 0) == -3600
    # The clock was set back before the backup: it does not put off the next one for a year.
    assert (await backups_at(stored.at - timedelta(days=365)).due_s() or 0) <= 0
    assert await Backups(shelf=shelf, ledger=Ledger(state), every_s=0).due_s() is None


async def test_the_schedule_makes_them_and_writes_them_down(state: Database, shelf: Shelf) -> None:
    class Enough(Exception):  # noqa: N818 no error
        pass

    async def sleep(_: float) -> None:
        raise Enough

    def backups(at: datetime) -> Backups:
        return Backups(shelf=shelf, ledger=Ledger(state), every_s=3600, sleep=sleep, clock=lambda: at)

    later = datetime.now(UTC) + timedelta(hours=1)
    with pytest.raises(Enough):
        await backups(later).run_forever()
    assert [stored.reason for stored in shelf.stored()] == ["scheduled"]
    last = (await Ledger(state).read())[-1]
    assert (last.event, last.subject) == ("backup.made", shelf.stored()[0].name)
    shutil.rmtree(shelf.folder)
    shelf.folder.write_text("in the way")
    with pytest.raises(Enough):
        await backups(later).run_forever()
    assert (await Ledger(state).read())[-1].event == "backup.failed"


async def test_before_a_schema_upgrade_the_old_state_is_kept_once(
    layout: Layout, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_database(layout.state, shelf) as database:
        await fill(database)
    old = migrations()[-1][0]
    broken = [*migrations(), (old + 1, "CREATE TABLE more (a TEXT) STRICT; INSERT INTO nowhere VALUES (1);")]
    before = layout.state.read_bytes()
    monkeypatch.setattr("loopd.state.migrations", lambda: broken)
    for _ in range(3):  # as systemd would try again and again
        with pytest.raises(StateError, match=r"newest good backup is loopbox-.*-upgrade\.tar"):
            async with open_database(layout.state, shelf):
                pass
        assert layout.state.read_bytes() == before
    monkeypatch.setattr("loopd.state.migrations", lambda: [*broken[:-1], (old + 1, "CREATE TABLE more (a TEXT);")])
    async with open_database(layout.state, shelf) as database:
        row = await database.fetch_one("PRAGMA user_version")
        assert row is not None
        assert row[0] == old + 1
    assert [(one.reason, read_manifest(one.path).state_schema) for one in shelf.stored()] == [("upgrade", old)]
    monkeypatch.undo()
    # The way back to the older loopd: it refuses the newer state and names the backup that it made itself.
    with pytest.raises(StateError, match=r"older than the state.*loopctl backup restore loopbox-.*-upgrade\.tar"):
        async with open_database(layout.state, shelf):
            pass
    await asyncio.to_thread(restore_backup, shelf.stored()[0].path, layout, layout.home / "loopbox.toml")
    assert await champion(layout) == B.id


async def test_a_backup_of_the_first_schema_is_verified_and_restored_into_the_newest(
    layout: Layout, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = migrations()
    monkeypatch.setattr("loopd.state.migrations", lambda: newest[:1])
    async with open_database(layout.state) as database:
        await Ledger(database).append("test.happened", "x", "y")
    stored, _ = await asyncio.to_thread(shelf.make, "command")
    monkeypatch.undo()
    assert verify(stored.path, tmp_path / "v").state_schema == 1
    await asyncio.to_thread(restore_backup, stored.path, layout, layout.home / "loopbox.toml")
    async with open_database(layout.state) as database:
        row = await database.fetch_one("PRAGMA user_version")
        assert row is not None
        assert row[0] == newest[-1][0]
        assert [entry.event for entry in await Ledger(database).read()] == ["test.happened", "state.restored"]
        assert await Ledger(database).verify() is None


async def test_no_upgrade_without_a_backup(layout: Layout, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_database(layout.state, shelf):
        pass
    shelf.folder.write_text("in the way")
    newer = [*migrations(), (migrations()[-1][0] + 1, "CREATE TABLE more (a TEXT);")]
    monkeypatch.setattr("loopd.state.migrations", lambda: newer)
    before = layout.state.read_bytes()
    with pytest.raises(StateError):
        async with open_database(layout.state, shelf):
            pass
    assert layout.state.read_bytes() == before


async def test_restore_refuses_while_loopd_runs_and_a_damaged_backup_and_changes_nothing(
    layout: Layout, state: Database, shelf: Shelf
) -> None:
    stored, _ = await asyncio.to_thread(shelf.make, "command")
    before = layout.state.read_bytes()
    with sole_owner(layout), pytest.raises(LoopdRunsError, match="stop it"):
        await asyncio.to_thread(restore_backup, stored.path, layout, layout.home / "loopbox.toml")
    stored.path.write_bytes(stored.path.read_bytes()[:3000])
    with pytest.raises(BackupDamagedError):
        await asyncio.to_thread(restore_backup, stored.path, layout, layout.home / "loopbox.toml")
    assert layout.state.read_bytes() == before
    assert not (layout.home / ".restore").exists()


async def test_restore_on_a_new_host_tells_what_is_not_there(
    layout: Layout, state: Database, shelf: Shelf, settings: Settings, folder: Path
) -> None:
    (settings.home / "loopbox.toml").write_text("num_ctx = 4096\n")
    stored, _ = await asyncio.to_thread(shelf.make, "command")
    other = layout_of(settings.model_copy(update={"home": folder / "other"}))
    other.blobs.mkdir(parents=True)
    other.blob(A.gguf_sha256).write_bytes(bytes(A.size_bytes))
    told = await asyncio.to_thread(restore_backup, stored.path, other, other.home / "loopbox.toml")
    assert [(one.name, one.champion) for one in told.missing] == [("beta", True)]
    assert (told.aside, told.token, told.left) == (None, False, ())
    assert (other.home / "loopbox.toml").read_text() == "num_ctx = 4096\n"
    assert await champion(other) == B.id


async def test_restore_leaves_other_settings_unless_told_and_keeps_both_then(
    layout: Layout, state: Database, shelf: Shelf
) -> None:
    own = layout.home / "loopbox.toml"
    own.write_text("num_ctx = 4096\n")
    stored, _ = await asyncio.to_thread(shelf.make, "command")
    own.write_text("num_ctx = 512\n")
    told = await asyncio.to_thread(restore_backup, stored.path, layout, own)
    assert (told.left, own.read_text()) == ((str(own),), "num_ctx = 512\n")
    told = await asyncio.to_thread(restore_backup, stored.path, layout, own, replace_settings=True)
    assert (told.put, own.read_text()) == ((str(own),), "num_ctx = 4096\n")
    assert [path.read_text() for path in layout.home.glob("loopbox.toml.before-*")] == ["num_ctx = 512\n"]


async def test_what_a_killed_loopd_had_written_is_in_the_state_put_aside(
    layout: Layout, shelf: Shelf, folder: Path
) -> None:
    """The old write-ahead log goes with the old file: beside the new one it would damage it."""
    async with open_database(layout.state) as database:
        await fill(database)
        stored, _ = await asyncio.to_thread(shelf.make, "command")
        await Ledger(database).append("test.late", "x", "y")
        copies = [layout.state.with_name(f"state.db{suffix}") for suffix in ("", "-wal")]
        for path in copies:
            shutil.copyfile(path, folder / path.name)
    for path in copies:
        shutil.copyfile(folder / path.name, path)  # as kill -9 leaves them
    told = await asyncio.to_thread(restore_backup, stored.path, layout, layout.home / "loopbox.toml")
    assert told.aside is not None
    async with open_database(told.aside) as database:
        assert (await Ledger(database).read())[-1].event == "test.late"
    async with open_database(layout.state) as database:
        assert [entry.event for entry in await Ledger(database).read()][-1] == "state.restored"
        assert await Ledger(database).verify() is None


async def test_the_drill_lost_state_refused_start_restore_same_champion(settings: Settings) -> None:
    """What an operator does at three in the morning, with a whole loopd before and after."""
    layout = layout_of(settings)
    make_directories(layout)
    async with open_database(layout.state) as database:
        await fill(database)
    async with running(settings), api(settings) as session:
        async with session.post("http://loopd/v1/backups") as response:
            assert response.status == 201
            made = await response.json()
        async with session.get("http://loopd/v1/backups") as response:
            assert [one["name"] for one in (await response.json())["backups"]] == [made["name"]]
        async with session.get("http://loopd/v1/releases") as response:
            roles = {one["name"]: one["role"] for one in (await response.json())["releases"]}
    assert roles == {"alpha": "previous", "beta": "champion"}
    for destroy in (lambda: layout.state.write_bytes(b""), layout.state.unlink):
        destroy()
        with pytest.raises(StateError, match=f"loopctl backup restore {made['name']}"):
            async with running(settings):
                pass
        told = await asyncio.to_thread(
            restore_backup, open_shelf(settings).find(made["name"]), layout, layout.home / "loopbox.toml"
        )
        assert [one.name for one in told.missing] == ["beta", "alpha"]
        async with running(settings), api(settings) as session:
            async with session.get("http://loopd/v1/releases") as response:
                again = {one["name"]: one["role"] for one in (await response.json())["releases"]}
            assert again == roles
            async with session.get("http://loopd/v1/events?limit=500") as response:
                assert "state.restored" in [event["event"] for event in (await response.json())["events"]]


async def test_the_audit_trail_comes_back_with_the_state_it_belongs_to(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost disk, then also a trail that a new loopd began: `loopctl audit verify` finds nothing after a restore."""
    monkeypatch.setenv("LOOPBOX_RUN_DIR", str(settings.run_dir))
    layout = layout_of(settings)
    make_directories(layout)
    async with open_database(layout.state) as database, open_trail(layout.audit, keep_days=30, most=1000) as trail:
        await fill(database)
        await trail.write([Record(event="tool.called", key=f"call-{number}") for number in range(20)])
        assert await trail.anchor(Ledger(database)) > 20
    async with running(settings), api(settings) as session, session.post("http://loopd/v1/backups") as response:
        backup = open_shelf(settings).find((await response.json())["name"])
        assert [member.name for member in read_manifest(backup).members] == ["state.db", "releases.json", "audit.db"]

    async def audited() -> AuditVerdict:
        """Restore, start, and ask as a person would."""
        await asyncio.to_thread(restore_backup, backup, layout, layout.home / "loopbox.toml")
        async with running(settings):
            told = await asyncio.to_thread(CliRunner().invoke, app, ["audit", "verify", "--json"])
            return AuditVerdict.model_validate_json(told.stdout[told.stdout.index("{\n") :])  # behind loopd's own log

    def lose(path: Path) -> None:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    lose(layout.state)
    lose(layout.audit)
    first = await audited()
    assert first.ok
    assert first.entries > 20
    assert layout.audit.stat().st_mode & 0o777 == 0o600
    again = await audited()  # the trail that is there has all of the backup's, and goes on: it stays
    assert again.ok
    assert again.entries > first.entries
    assert not list(layout.home.glob("audit.db.before-*"))
    lose(layout.audit)
    async with open_trail(layout.audit, keep_days=30, most=1000) as trail:
        await trail.write([Record(event="tool.called", subject="another")])
    assert (await audited()).ok
    [aside] = layout.home.glob("audit.db.before-*")
    async with open_trail(aside, keep_days=30, most=1000) as trail:
        assert "another" in [entry.subject for entry in await trail.read()]


@pytest.mark.parametrize("harm", ["not a database" * 400, ""])
async def test_a_damaged_audit_trail_keeps_nobody_from_a_backup(
    layout: Layout, state: Database, shelf: Shelf, tmp_path: Path, harm: str
) -> None:
    layout.audit.write_text(harm)
    stored, manifest = await asyncio.to_thread(shelf.make, "command")
    assert verify(stored.path, tmp_path / "v") == manifest
    assert manifest.releases == 2
    assert ("audit.db" in [member.name for member in manifest.members]) is (harm == "")


async def test_what_is_kept_before_an_upgrade_holds_no_trail(layout: Layout, state: Database, shelf: Shelf) -> None:
    """An older loopd, which reads it, need not know of the file."""
    async with open_trail(layout.audit, keep_days=30, most=1000):
        _, manifest = await asyncio.to_thread(shelf.make, "upgrade")
    assert "audit.db" not in [member.name for member in manifest.members]


async def test_the_commands_work_without_loopd_and_say_what_they_did(
    layout: Layout, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOPBOX_RUN_DIR", str(settings.run_dir))
    monkeypatch.setenv("LOOPBOX_CONTROL_PORT", str(settings.control_port))

    def ctl(*words: str) -> Result:
        return CliRunner().invoke(app, ["backup", *words], prog_name="loopctl")

    assert (await asyncio.to_thread(ctl, "verify")).exit_code == ExitCode.NOT_FOUND
    async with open_database(layout.state) as database:
        await fill(database)
    made = await asyncio.to_thread(ctl, "create", "--json")
    name = BackupView.model_validate_json(made.stdout).name
    listed = BackupList.model_validate_json((await asyncio.to_thread(ctl, "list", "--json")).stdout)
    assert [view.name for view in listed.backups] == [name]
    assert name in (await asyncio.to_thread(ctl, "list")).stdout
    good = await asyncio.to_thread(ctl, "verify", name, "--json")
    assert (good.exit_code, json.loads(good.stdout)["champion"]) == (0, B.id)
    with sole_owner(layout):
        refused = await asyncio.to_thread(ctl, "restore", name)
    assert (refused.exit_code, "stop it" in refused.stderr) == (ExitCode.CONFLICT, True)
    told = await asyncio.to_thread(ctl, "restore")
    assert told.exit_code == 0
    for words in ("state before is", "no control.token", "champion beta", "not on this host", "make up"):
        assert words in told.stdout
    damaged = layout.home / "backups" / name
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])  # an archive ends in padding, which nobody misses
    assert (await asyncio.to_thread(ctl, "verify", str(damaged))).exit_code == ExitCode.FAILED


def api(settings: Settings) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(settings.run_dir / "control.sock")))
