from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from loopd.app import make_directories
from loopd.backups import open_shelf
from loopd.endure import endure
from loopd.images import save_images
from loopd.ledger import Ledger
from loopd.registry import Registry
from loopd.state import Database, StateError, StateFullError, migrations, open_database
from loopd.units import layout_of
from running_loopd import IMAGES, running, settings_at
from samples import make_release


async def test_a_new_state_has_the_newest_schema_and_survives_reopening(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    for _ in range(2):
        async with open_database(path) as database:
            row = await database.fetch_one("PRAGMA user_version")
            assert row is not None
            assert row[0] == migrations()[-1][0]


def test_migrations_are_numbered_from_one_without_a_gap() -> None:
    assert [number for number, _ in migrations()] == list(range(1, len(migrations()) + 1))


async def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError):
        async with database.transaction():
            await database.execute("INSERT INTO restarts (unit, at, cause) VALUES ('a', 'b', 'c')")
            raise RuntimeError
    assert await database.fetch_all("SELECT * FROM restarts") == []


async def make_state(path: Path, entries: int = 200) -> bytes:
    """Return the bytes of a state of several pages, with nothing left in its log."""
    async with open_database(path) as database:
        ledger = Ledger(database)
        async with database.transaction():
            for number in range(entries):
                await ledger.append("test.happened", f"thing-{number}", "because " * 20)
    assert not path.with_name(f"{path.name}-wal").exists()
    return path.read_bytes()


@pytest.mark.parametrize("length", ["0", "1", "100", "4096", "size // 2", "size - 4096", "size - 1"])
async def test_a_truncated_state_is_refused_and_left_as_it_is(tmp_path: Path, length: str) -> None:
    path = tmp_path / "state.db"
    whole = await make_state(path)
    cut = whole[: eval(length, {"size": len(whole)})]  # noqa: S307 the lengths above
    path.write_bytes(cut)
    with pytest.raises(StateError, match="left as it is"):
        async with open_database(path):
            pass
    assert path.read_bytes() == cut


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"this is no database" * 1000,
        lambda whole: whole[:4096] + random.Random(1).randbytes(len(whole) - 4096),  # noqa: S311 no secret
        lambda whole: bytes(len(whole)),
        lambda whole: whole[:8192] + bytes(4096) + whole[12288:],
    ],
    ids=["text", "noise", "zeros", "one page of zeros"],
)
async def test_garbage_is_refused_and_left_as_it_is(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "state.db"
    spoilt = spoil(await make_state(path))
    path.write_bytes(spoilt)
    with pytest.raises(StateError, match="left as it is"):
        async with open_database(path):
            pass
    assert path.read_bytes() == spoilt


async def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a TEXT)")
        connection.commit()
    with pytest.raises(StateError, match="not loopd's"):
        async with open_database(path):
            pass


async def test_a_migration_that_fails_in_the_middle_leaves_the_old_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before it worked, and still nothing of either is kept."""
    path = tmp_path / "state.db"
    before = await make_state(path)
    newest = migrations()[-1][0]
    steps = [
        *migrations(),
        (
            newest + 1,
            "ALTER TABLE restarts ADD COLUMN more TEXT; INSERT INTO restarts (unit, at, cause) VALUES (1,2,3);",
        ),
        (newest + 2, "CREATE TABLE other (a TEXT); SELECT * FROM nowhere;"),
    ]
    monkeypatch.setattr("loopd.state.migrations", lambda: steps)
    with pytest.raises(StateError, match="nowhere"):
        async with open_database(path):
            pass
    assert path.read_bytes() == before
    monkeypatch.undo()
    async with open_database(path) as database:
        assert len(await Ledger(database).read()) == 200


async def test_killed_while_it_is_made_the_next_start_makes_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.with_name(".state.db.new").write_bytes(b"half of it")
    async with open_database(path) as database:
        assert await database.fetch_all("SELECT * FROM ledger") == []
    assert [one.name for one in tmp_path.iterdir()] == ["state.db"]


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=False)
    if made.returncode != 0:
        pytest.skip("this user may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    with mounted(tmp_path / "tiny", "size=2m"):
        yield tmp_path / "tiny"


def fill_up(place: Path) -> Path:
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


async def test_a_read_only_directory_is_refused(tiny_disk: Path) -> None:
    path = tiny_disk / "state.db"
    before = await make_state(path)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)  # noqa: ASYNC221 takes no time
    with pytest.raises(StateError, match="left as it is"):
        async with open_database(path):
            pass
    assert path.read_bytes() == before


async def test_a_full_disk_is_refused_at_the_start(tiny_disk: Path) -> None:
    path = tiny_disk / "state.db"
    before = await make_state(path)
    fill_up(tiny_disk)
    with pytest.raises(StateError, match="left as it is"):
        async with open_database(path):
            pass
    assert path.read_bytes() == before
    with pytest.raises(StateError, match="disk is full"):
        async with open_database(tiny_disk / "new.db"):
            pass
    assert not (tiny_disk / "new.db").exists()


async def test_a_disk_that_fills_up_refuses_changes_and_takes_them_again_when_there_is_room(tiny_disk: Path) -> None:
    async with open_database(tiny_disk / "state.db") as database:
        ledger = Ledger(database)
        await ledger.append("test.happened", "before", "x")
        ballast = fill_up(tiny_disk)
        with pytest.raises(StateFullError) as caught:
            for _ in range(1000):
                await ledger.append("test.happened", "x", "y" * 2000)
        assert (caught.value.code, caught.value.status) == ("state_full", 507)
        assert "disk" in database.trouble
        assert await ledger.verify() is None  # what is there is readable and whole
        ballast.unlink()
        kept = await ledger.newest()
        await ledger.append("test.happened", "after", "x")
        assert (await ledger.newest(), database.trouble) == (kept + 1, "")
        assert await ledger.verify() is None


async def test_work_goes_on_when_the_state_can_be_written_again() -> None:
    tries = 0

    async def work() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise StateFullError("full")

    await endure("work", work, again_s=0)
    assert tries == 3


async def test_any_other_error_ends_the_work() -> None:
    async def work() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await endure("work", work, again_s=0)


async def test_with_a_full_disk_loopd_lives_answers_507_and_says_why() -> None:
    """The gateway and the engine need no state.db: only what would change it is refused."""
    folder = Path(tempfile.mkdtemp(prefix="lb"))
    with mounted(folder / "home", "size=4m"):
        settings = settings_at(folder)
        async with open_database(settings.home / "state.db") as database:
            await Registry(database).add(make_release("alpha"), source="alpha.gguf")
        async with (
            running(settings) as engine,
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(settings.run_dir / "control.sock"))) as session,
        ):
            before = {unit: instance.id for unit, instance in engine.instances.items()}
            ballast = fill_up(folder / "home")
            async with asyncio.timeout(20):
                # The log of the state may still have room for a change or two.
                for method in itertools.cycle(("PUT", "DELETE")):
                    async with session.request(method, "http://loopd/v1/releases/alpha/pin") as response:
                        if response.status == 507:
                            assert (await response.json())["error"]["code"] == "state_full"
                            break
            async with session.post("http://loopd/v1/backups") as response:
                assert response.status == 507
                assert (await response.json())["error"]["code"] == "backup_no_space"
            for path in ("/v1/status", "/v1/releases", "/v1/events", "/healthz"):
                async with session.get(f"http://loopd{path}") as response:
                    assert response.status == 200
            async with session.get("http://loopd/v1/status") as response:
                assert "disk" in (await response.json())["reason"]
            assert {unit: engine.instances[unit].id for unit in before} == before
            ballast.unlink()
            async with session.post("http://loopd/v1/backups") as response:
                assert response.status == 201
    shutil.rmtree(folder)


async def test_the_process_exits_71_and_its_last_words_name_the_backup() -> None:
    folder = Path(tempfile.mkdtemp(prefix="lb"))
    settings = settings_at(folder)
    make_directories(layout_of(settings))
    await make_state(settings.home / "state.db")
    stored, _ = await asyncio.to_thread(open_shelf(settings).make, "command")
    (settings.home / "state.db").write_bytes(b"gone")
    save_images(settings.home, IMAGES)
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", "from loopd.app import main; main()"],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "LOOPBOX_HOME": str(settings.home),
            "LOOPBOX_RUN_DIR": str(settings.run_dir),
            "LOOPBOX_CONTROL_PORT": str(settings.control_port),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 71
    assert f"loopctl backup restore {stored.name}" in ended.stderr
    assert (settings.home / "state.db").read_bytes() == b"gone"
    shutil.rmtree(folder)


async def test_a_state_of_a_newer_loopd_is_refused(tmp_path: Path) -> None:
    """Guards against a downgrade that would write rows the newer schema does not expect."""
    path = tmp_path / "state.db"
    async with open_database(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9999")
    connection.close()
    with pytest.raises(StateError, match="older than the state"):
        async with open_database(path):
            pass


async def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no-such-folder"):
        async with open_database(tmp_path / "no-such-folder" / "state.db"):
            pass
