"""Backups: made beside running work, verified, rotated, and put back (the drill); on both databases."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, func, select

from loopbox_agent import store_backup, store_dump
from loopbox_agent.database import Database, open_database
from loopbox_agent.database_errors import DatabaseLockedError
from loopbox_agent.group_commit import together
from loopbox_agent.memory import Memories
from loopbox_agent.run_log import RunEvent, RunLog
from loopbox_agent.store_backup import (
    Backup,
    BackupError,
    back_up,
    keep_backing_up,
    list_backups,
    restore_sqlite,
    to_remove,
)
from loopbox_agent.store_dump import DumpError, check_dump, dump, load
from loopbox_agent.tables import metadata, runs
from loopbox_agent.threads import Threads

USER, OTHER = "ada@example.org", "bob"
Fill = Callable[[Database, str, str], Awaitable[None]]


async def everything(database: Database) -> dict[str, list[str]]:
    def unit(connection: Connection) -> dict[str, list[str]]:
        return {
            table.name: sorted(repr(tuple(row)) for row in connection.execute(select(table)))
            for table in metadata.tables.values()
        }

    return await database.read(unit)


async def works(database: Database) -> bool:
    """Whether what was put back is searched and written to as before."""
    memories = Memories(database)
    found = await memories.recall(USER, "marmalade")
    await memories.remember(USER, "a new memory")
    thread = (await Threads(database).recent(USER))[0]
    history = await Threads(database).history(thread.id)
    return len(found) == 1 and len(history) == 2


async def test_drill_a_backup_put_back_is_the_state_of_its_moment(url: str, tmp_path: Path, fill: Fill) -> None:
    async with open_database(url) as database:
        await fill(database, USER, "marmalade")
        await fill(database, OTHER, "turnip")
        state = await everything(database)
        backup = await back_up(database, tmp_path / "backups")
        await fill(database, USER, "later")
        later = await everything(database)
    assert backup.path.stat().st_mode & 0o777 == 0o600
    if url.startswith("sqlite"):
        aside = await restore_sqlite(backup.path, tmp_path / "agent.db")
        assert aside is not None
        async with open_database(f"sqlite+aiosqlite:///{aside}") as database:
            assert await everything(database) == later
    async with open_database(url) as database:
        if database.dialect == "postgresql":
            assert await load(database, backup.path) > 20
        assert await everything(database) == state
        assert await works(database)


async def test_a_state_moves_from_one_database_to_the_other_and_back(
    tmp_path: Path, fill: Fill, postgres: object
) -> None:
    server_url: str = await postgres.emptied()  # type: ignore[attr-defined]  # conftest's own class
    async with (
        open_database(f"sqlite+aiosqlite:///{tmp_path}/one.db") as one,
        open_database(server_url) as two,
        open_database(f"sqlite+aiosqlite:///{tmp_path}/three.db") as three,
    ):
        await fill(one, USER, "marmalade")
        state = await everything(one)
        rows = await dump(one, tmp_path / "one.jsonl.gz")
        assert await load(two, tmp_path / "one.jsonl.gz") == rows == check_dump(tmp_path / "one.jsonl.gz")
        assert await everything(two) == state
        await dump(two, tmp_path / "two.jsonl.gz")
        await load(three, tmp_path / "two.jsonl.gz")
        assert await everything(three) == state
        assert await works(two)
        assert await works(three)


async def test_a_backup_beside_writers_is_one_moment(url: str, tmp_path: Path) -> None:
    """Each run of the backup has all the events that were written with it, and no write failed."""
    async with open_database(url) as database:
        log = RunLog(database)
        stop = asyncio.Event()
        written = 0

        async def write(name: str) -> None:
            nonlocal written
            while not stop.is_set():
                written += 1
                run = f"run_{name}{written}"
                events = [RunEvent(seq, "a", "x" * 100) for seq in range(1, 4)]
                await database.write(together(log.starting(run, USER, {}), log.appending(run, events)))

        writers = [asyncio.create_task(write(name)) for name in "abc"]
        while written < 50:
            await asyncio.sleep(0)
        backup = await back_up(database, tmp_path / "backups")
        stop.set()
        await asyncio.gather(*writers)
    if url.startswith("sqlite"):
        await restore_sqlite(backup.path, tmp_path / "agent.db")
    async with open_database(url) as database:
        if database.dialect == "postgresql":
            await load(database, backup.path)
        counts = await database.read(
            lambda c: [
                c.execute(select(func.count()).select_from(table)).scalar_one()
                for table in (runs, metadata.tables["run_events"])
            ]
        )
        assert counts[1] == 3 * counts[0] > 0


async def test_old_backups_are_rotated_out(url: str, tmp_path: Path) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    (tmp_path / "backups").mkdir()
    (tmp_path / "backups" / "agent-notes.txt").write_text("a person's")
    async with open_database(url) as database:
        made = [
            await back_up(database, tmp_path / "backups", keep=2, clock=lambda day=day: start + day * 86_400)  # type: ignore[misc]
            for day in range(4)
        ]
    assert list_backups(tmp_path / "backups") == [made[3], made[2]]
    assert sum(1 for _ in (tmp_path / "backups").iterdir()) == 3
    assert list_backups(tmp_path / "nowhere") == []


@given(st.integers(0, 20), st.integers(-2, 20))
def test_rotation_keeps_the_newest_and_one_always(count: int, keep: int) -> None:
    newest = datetime(2026, 1, 1, tzinfo=UTC)
    backups = [Backup(Path(str(n)), newest - timedelta(days=n), 1) for n in range(count)]
    assert [*backups[: max(1, keep)], *to_remove(backups, keep)] == backups


async def test_a_backup_that_fails_leaves_no_half_and_the_older_ones(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    async with open_database(url) as database:
        first = await back_up(database, folder)

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with pytest.MonkeyPatch.context() as patch, pytest.raises(BackupError, match="Older ones were kept"):
            patch.setattr(store_backup, "publish", fail)
            patch.setattr(store_dump, "publish", fail)
            await back_up(database, folder)
        assert [path.name for path in folder.iterdir()] == [first.path.name]


async def test_backups_are_made_when_due(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    async with open_database(url) as database:
        task = asyncio.create_task(keep_backing_up(database, folder, every_s=3600))
        async with asyncio.timeout(20):
            while not list_backups(folder):
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})
        assert len(list_backups(folder)) == 1


@pytest.mark.parametrize("harm", ["cut", "flipped", "line gone", "no gzip", "newer", "empty", "other table"])
async def test_a_harmed_dump_is_refused_and_nothing_changed(url: str, tmp_path: Path, fill: Fill, harm: str) -> None:
    path = tmp_path / "dump.jsonl.gz"
    async with open_database(url) as database:
        await fill(database, USER, "marmalade")
        state = await everything(database)
        await dump(database, path)
        raw = path.read_bytes()
        lines = gzip.decompress(raw).splitlines(keepends=True)
        head = json.loads(lines[0])
        changed = {
            "cut": raw[: len(raw) // 2],
            "flipped": gzip.compress(gzip.decompress(raw).replace(b"marmalade", b"marmelade", 1)),
            "line gone": gzip.compress(b"".join(lines[:3] + lines[4:])),
            "no gzip": b"nothing",
            "newer": gzip.compress(json.dumps({**head, "schema": 99}).encode() + b"\n" + b"".join(lines[1:])),
            "empty": b"",
            "other table": gzip.compress(lines[0] + b'{"table": "pg_user", "row": {}}\n'),
        }
        path.write_bytes(changed[harm])
        with pytest.raises(DumpError, match="left as it is"):
            await load(database, path)
        assert await everything(database) == state


async def test_a_file_is_not_put_in_the_place_of_one_in_use(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    async with open_database(f"sqlite+aiosqlite:///{path}") as database:
        backup = await back_up(database, tmp_path / "backups")
        with pytest.raises(DatabaseLockedError):
            await restore_sqlite(backup.path, path)
    before = path.read_bytes()
    for content in (b"", b"nonsense" * 1000, backup.path.read_bytes()[:-5000]):
        (tmp_path / "bad.db").write_bytes(content)
        with pytest.raises(DumpError):
            await restore_sqlite(tmp_path / "bad.db", path)
    assert path.read_bytes() == before


async def test_a_lost_file_comes_back_from_its_backup(tmp_path: Path, fill: Fill) -> None:
    path = tmp_path / "agent.db"
    async with open_database(f"sqlite+aiosqlite:///{path}") as database:
        await fill(database, USER, "marmalade")
        backup = await back_up(database, tmp_path / "backups")
    path.unlink()
    assert await restore_sqlite(backup.path, path) is None
    async with open_database(f"sqlite+aiosqlite:///{path}") as database:
        assert await works(database)
