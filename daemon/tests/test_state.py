from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from loopd.state import Database, StateError, migrations, open_database


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


async def test_a_damaged_state_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StateError, match="left as it is"):
        async with open_database(path):
            pass
    assert path.read_bytes() == b"this is no database" * 100


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
