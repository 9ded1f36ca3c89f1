"""Export and erasure of everything about one user; on both databases."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, select

from loopbox_agent.database import Database, open_database
from loopbox_agent.personal_data import ERASED, IMPERSONAL, NAMED_BESIDE, erase, export
from loopbox_agent.quarantine import Finding, Quarantine
from loopbox_agent.records import InvalidRecordError
from loopbox_agent.run_log import RunEvent, RunLog
from loopbox_agent.table_pages import belonging_to
from loopbox_agent.tables import metadata

USER, OTHER = "ada@example.org", "bob"
MARK = "marmalade"  # in every text that `fill` writes for a user
Fill = Callable[[Database, str, str], Awaitable[None]]


async def exported(database: Database, user: str) -> list[tuple[str, dict[str, object]]]:
    lines = [json.loads(line) async for line in export(database, user)]
    return [(line["table"], line["row"]) for line in lines]


async def everything(database: Database) -> dict[str, list[str]]:
    def unit(connection: Connection) -> dict[str, list[str]]:
        return {
            table.name: [repr(tuple(row)) for row in connection.execute(select(table))]
            for table in metadata.tables.values()
        }

    return await database.read(unit)


def test_every_table_is_a_users_or_known_to_be_nobodys() -> None:
    """A new table has user_id, or a foreign key towards one that has, or is named in IMPERSONAL with care."""
    for table in metadata.tables.values():
        personal = belonging_to(table, USER) is not None
        assert personal != (table.name in IMPERSONAL), table.name


def test_columns_that_name_a_person_are_known() -> None:
    named = {
        (table.name, column.name)
        for table in metadata.tables.values()
        for column in table.columns
        if column.name.endswith("_by") and column.name != "leased_by"
    }
    assert named == set(NAMED_BESIDE.items())


async def test_an_export_holds_every_table_and_nothing_of_others(database: Database, fill: Fill) -> None:
    await fill(database, USER, MARK)
    await fill(database, OTHER, "turnip")
    rows = await exported(database, USER)
    assert {table for table, _ in rows} == set(metadata.tables) - IMPERSONAL, "fill has to fill every table"
    text = json.dumps(rows)
    assert MARK in text
    assert "turnip" not in text
    assert OTHER not in text
    assert await exported(database, "nobody") == []
    with pytest.raises(InvalidRecordError):
        await exported(database, "no such name!")


async def test_an_export_of_many_rows_is_whole_and_in_order(database: Database, run_log: RunLog) -> None:
    await run_log.start("run_1", USER, {})
    await run_log.append("run_1", [RunEvent(seq, "a", seq) for seq in range(1, 1702)])
    seqs = [row["seq"] for table, row in await exported(database, USER) if table == "run_events"]
    assert seqs == list(range(1, 1702))


async def test_erasure_leaves_nothing_of_a_user_and_all_of_others(database: Database, fill: Fill) -> None:
    await fill(database, OTHER, "turnip")
    before = await everything(database)
    await fill(database, USER, MARK)
    counted: dict[str, int] = {}
    for table, _ in await exported(database, USER):
        counted[table] = counted.get(table, 0) + 1
    assert await erase(database, USER) == counted
    assert await everything(database) == before
    assert await erase(database, USER) == {}


async def test_who_decided_is_named_in_an_export_and_erased(database: Database) -> None:
    quarantine = Quarantine(database)
    held = await quarantine.add(Finding(run_id="run_1", user=OTHER, kind="input", score=95, findings=[], text=MARK))
    await quarantine.release(held, USER)
    assert await exported(database, USER) == [("quarantine", {"id": held, "decided_by": USER})]
    await erase(database, USER)
    kept = await quarantine.get(held)
    assert (kept.decided_by, kept.text, kept.state) == (ERASED, MARK, "released")


async def test_erasure_leaves_no_trace_in_the_files(tmp_path: Path, fill: Fill) -> None:
    """Nor in the search index or the log, where SQLite leaves deleted text until it needs the room."""
    async with open_database(f"sqlite+aiosqlite:///{tmp_path}/agent.db") as database:
        await fill(database, USER, MARK)
        assert MARK in "".join(path.read_bytes().decode("latin-1") for path in tmp_path.iterdir())
        await erase(database, USER)
        for path in tmp_path.iterdir():
            raw = path.read_bytes().decode("latin-1").lower()
            assert MARK not in raw, path
            assert USER not in raw, path
