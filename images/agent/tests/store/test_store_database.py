"""The door to the database: group commit, durability, schema versions, and what its errors say."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import uvloop
from sqlalchemy import Connection, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from loopbox_agent import schema_version
from loopbox_agent.database import Database, Patience, open_database, parse_url
from loopbox_agent.database_errors import (
    DatabaseBusyError,
    DatabaseClosedError,
    DatabaseDamagedError,
    DatabaseDownError,
    DatabaseError,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseRefusedError,
    DatabaseUrlError,
)
from loopbox_agent.group_commit import Done, Outcome, Unit, Writer
from loopbox_agent.records import InvalidRecordError
from loopbox_agent.schema_version import SchemaError, Upgrade, ensure_schema
from loopbox_agent.tables import memories, metadata, threads

WAIT_S = 20.0


def add(key: str) -> Unit[str]:
    row = {"id": key, "user_id": "ada", "created_at": 1.0, "updated_at": 1.0, "next_seq": 1, "next_position": 1}

    def unit(connection: Connection) -> str:
        connection.execute(insert(threads), row)
        return key

    return unit


def keys(connection: Connection) -> list[str]:
    return list(connection.execute(select(threads.c.id).order_by(threads.c.id)).scalars())


class RefusedError(Exception):
    pass


def fail_after(unit: Unit[str]) -> Unit[str]:
    def failing(connection: Connection) -> str:
        unit(connection)
        raise RefusedError

    return failing


async def test_a_unit_that_fails_spoils_no_neighbour(database: Database) -> None:
    units = [add("a"), fail_after(add("b")), add("c"), add("a"), add("d")]
    outcomes = await asyncio.gather(*map(database.write, units), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [str, RefusedError, str, IntegrityError, str]
    assert await database.read(keys) == ["a", "c", "d"]
    # The first may have gone before the rest gathered.
    assert database.writer.batches <= 2


async def test_a_lone_unit_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(RefusedError):
        await database.write(fail_after(add("a")))
    assert await database.write(add("b")) == "b"
    assert await database.read(keys) == ["b"]


async def test_thousand_units_share_few_transactions(database: Database) -> None:
    await asyncio.gather(*(database.write(add(f"{number:04}")) for number in range(1000)))
    assert len(await database.read(keys)) == 1000
    assert database.writer.units == 1000
    assert database.writer.batches <= 10


async def test_closing_commits_what_waits_and_refuses_more(url: str) -> None:
    async with open_database(url) as database:
        waiting = [asyncio.ensure_future(database.write(add(f"{number:03}"))) for number in range(300)]
        await asyncio.sleep(0)
    assert len(await asyncio.gather(*waiting)) == 300
    with pytest.raises(DatabaseClosedError):
        await database.write(add("late"))
    async with open_database(url) as database:
        assert len(await database.read(keys)) == 300


async def test_a_cancelled_callers_waiting_unit_is_not_run() -> None:
    ran: list[Unit[object]] = []
    first_taken, go_on = asyncio.Event(), asyncio.Event()

    async def commit(units: Sequence[Unit[object]]) -> list[Outcome]:
        ran.extend(units)
        first_taken.set()
        await go_on.wait()
        return [Done(None) for _ in units]

    writer = Writer(commit)
    writer.start()
    units: list[Unit[object]] = [lambda _, n=n: n for n in range(3)]  # type: ignore[misc]  # a lambda with a default
    first = writer.submit(units[0])
    await first_taken.wait()
    second, third = writer.submit(units[1]), writer.submit(units[2])
    second.cancel()
    go_on.set()
    await first
    await third
    await writer.close()
    assert ran == [units[0], units[2]]


async def test_more_than_may_wait_is_refused_at_once() -> None:
    go_on = asyncio.Event()

    async def commit(units: Sequence[Unit[object]]) -> list[Outcome]:
        await go_on.wait()
        return [Done(None) for _ in units]

    writer = Writer(commit, most_waiting=2)
    writer.start()
    taken = [writer.submit(lambda _: None), writer.submit(lambda _: None)]
    with pytest.raises(DatabaseBusyError) as refused:
        writer.submit(lambda _: None)
    assert refused.value.retry_after_s == 1
    go_on.set()
    await asyncio.gather(*taken)
    await writer.close()


async def test_a_writer_that_is_ended_leaves_nobody_waiting() -> None:
    begun = asyncio.Event()

    async def commit(units: Sequence[Unit[object]]) -> list[Outcome]:
        begun.set()
        await asyncio.Event().wait()
        return [Done(None) for _ in units]

    writer = Writer(commit)
    writer.start()
    in_work = writer.submit(lambda _: None)
    await begun.wait()
    waiting = writer.submit(lambda _: None)
    assert writer._task is not None
    writer._task.cancel()
    outcomes = await asyncio.gather(in_work, waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DatabaseClosedError] * 2
    with pytest.raises(DatabaseClosedError):
        writer.submit(lambda _: None)


async def test_reading_goes_on_beside_a_snapshot_and_a_writer(database: Database) -> None:
    await database.write(add("a"))
    async with database.snapshot() as reading:
        assert await reading(keys) == ["a"]
        await database.write(add("b"))
        assert await reading(keys) == ["a"]
    assert await database.read(keys) == ["a", "b"]


async def test_what_reads_cannot_write(url: str) -> None:
    if not url.startswith("sqlite"):
        pytest.skip("only SQLite's readers are bound to it")
    async with open_database(url) as database:
        with pytest.raises(DatabaseError):
            await database.read(add("a"))


def test_it_runs_under_uvloop(tmp_path: Path) -> None:
    async def main() -> list[str]:
        async with open_database(f"sqlite+aiosqlite:///{tmp_path}/agent.db") as database:
            await asyncio.gather(*(database.write(add(f"{number:02}")) for number in range(50)))
            return await database.read(keys)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert len(runner.run(main())) == 50


# Schema


def set_version(version: int) -> Unit[None]:
    def unit(connection: Connection) -> None:
        connection.execute(text("UPDATE schema_version SET version = :v"), {"v": version})

    return unit


async def test_a_newer_schema_is_refused_and_left(url: str) -> None:
    async with open_database(url) as database:
        await database.write(set_version(99))
    with pytest.raises(SchemaError, match="schema 99, this agent knows 2"):
        async with open_database(url):
            pytest.fail("it was opened")


async def test_tables_of_others_are_refused(url: str) -> None:
    async with open_database(url) as database:
        await database.write(lambda connection: connection.execute(text("DROP TABLE schema_version")))
    with pytest.raises(SchemaError, match="not the agent's"):
        async with open_database(url):
            pytest.fail("it was opened")


UPGRADES = (
    Upgrade(8, dict.fromkeys(("sqlite", "postgresql"), ("ALTER TABLE threads ADD COLUMN colour TEXT",))),
    Upgrade(9, dict.fromkeys(("sqlite", "postgresql"), ("UPDATE threads SET colour = 'red'",))),
)


def version_of(connection: Connection) -> int:
    return int(connection.execute(text("SELECT version FROM schema_version")).scalar_one())


async def test_upgrades_run_in_order_once(database: Database) -> None:
    await database.write(add("a"))
    told: list[int] = []
    for _ in range(2):
        await database.write(lambda c: ensure_schema(c, version=9, upgrades=UPGRADES, before_upgrade=told.append))
    assert told == [schema_version.VERSION]
    assert await database.read(version_of) == 9
    assert await database.read(lambda c: c.execute(text("SELECT colour FROM threads")).scalar_one()) == "red"


async def test_an_upgrade_that_fails_leaves_the_old_version(database: Database) -> None:
    broken = (*UPGRADES[:1], Upgrade(9, dict.fromkeys(("sqlite", "postgresql"), ("UPDATE nonsense SET a = 1",))))
    with pytest.raises(DBAPIError, match="nonsense"):
        await database.write(lambda connection: ensure_schema(connection, version=9, upgrades=broken))
    assert await database.read(version_of) == schema_version.VERSION
    with pytest.raises(DBAPIError, match="colour"):
        await database.read(lambda c: c.execute(text("SELECT colour FROM threads")).all())


async def test_the_upgrades_make_what_a_new_database_has(database: Database) -> None:
    def picture(connection: Connection) -> dict[str, object]:
        looked = inspect(connection)
        return {
            name: (
                [(c["name"], str(c["type"]), c["nullable"]) for c in looked.get_columns(name)],
                looked.get_pk_constraint(name)["constrained_columns"],
                sorted(str(index["column_names"]) for index in looked.get_indexes(name)),
                [one["column_names"] for one in looked.get_unique_constraints(name)],
            )
            for name in ("interactions", "consents")
        }

    def go_back(connection: Connection) -> None:
        for name in ("interactions", "consents"):
            connection.execute(text(f"DROP TABLE {name}"))
        connection.execute(text("UPDATE schema_version SET version = 1"))

    new = await database.read(picture)
    await database.write(go_back)
    await database.write(ensure_schema)
    assert await database.read(picture) == new
    assert await database.read(version_of) == schema_version.VERSION


def test_a_changed_table_needs_an_upgrade() -> None:
    """Whoever changes a table: add an Upgrade, raise VERSION, then set this picture anew."""
    picture = {
        table.name: ",".join(f"{column.name}{'' if column.nullable else '!'}" for column in table.columns)
        for table in metadata.tables.values()
    }
    assert schema_version.VERSION == 2
    assert picture == {
        "schema_version": "version!",
        "threads": "id!,user_id!,title,created_at!,updated_at!,next_seq!,next_position!,leased_by,leased_until",
        "messages": "thread_id!,seq!,position!,run_id!,active!,tokens!,body!,created_at!",
        "runs": "id!,user_id!,thread_id,status!,request!,result,error,input_tokens!,output_tokens!,created_at!,"
        "finished_at",
        "run_events": "run_id!,seq!,name!,body!",
        "tool_calls": "run_id!,call_id!,tool!,effect!,arguments!,result,is_error!,begun_at!,finished_at",
        "working_notes": "run_id!,name!,body!",
        "session_notes": "thread_id!,name!,body!,updated_at!",
        "memories": "id!,user_id!,digest!,text!,tags!,source!,size!,created_at!,used_at!",
        "documents": "id!,user_id!,name!,size!,digest!,created_at!",
        "passages": "id!,document_id!,position!,start!,text!",
        "quarantine": "id!,user_id!,run_id!,kind!,score!,findings!,text!,state!,created_at!,decided_at,decided_by,"
        "reason",
        "interactions": "id!,run_id!,user_id!,thread_id,outcome!,messages!,tools!,rating,comment!,better!,created_at!",
        "consents": "user_id!,learn!,decided_at!",
        "mcp_servers": "id!,user_id!,name!,body!",
    }


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///agent.db",
        "mysql://root:hunter2@db/agent",
        "postgresql://ada:hunter2@db/agent",
        "postgresql+asyncpg://ada:hunter2@db/agent",
        "postgresql+asyncpg://ada@db/agent?password=hunter2",
        "postgresql+asyncpg://ada@db",
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///relative.db",
        "hunter2",
        "postgresql+asyncpg://ada@db:hunter2/agent",
        "",
    ],
)
def test_a_wrong_url_is_refused_and_never_quoted(url: str) -> None:
    with pytest.raises(DatabaseUrlError) as refused:
        parse_url(url)
    assert "hunter2" not in str(refused.value)


def test_the_password_comes_from_a_file_and_hides(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    parsed = parse_url("postgresql+asyncpg://ada@db/agent", tmp_path / "password")
    assert parsed.password == "hunter2"
    assert "hunter2" not in str(parsed) + repr(parsed)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe", b"x" * 5000])
def test_a_password_file_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatabaseUrlError, match="password file"):
        parse_url("postgresql+asyncpg://ada@db/agent", path)


# Trouble with SQLite's file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


@pytest.fixture
def file_url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


async def test_a_second_agent_on_the_file_is_refused(file_url: str) -> None:
    async with open_database(file_url):
        with pytest.raises(DatabaseLockedError, match="Another agent"):
            async with open_database(file_url, patience=Patience(lock_s=0.0)):
                pytest.fail("it was opened")
    async with open_database(file_url) as database:  # and let go of at the end
        await database.write(add("a"))


@pytest.mark.parametrize("content", [b"no database at all, but long enough " * 100, b"SQLite format 3\0" + bytes(5000)])
async def test_a_file_that_is_no_database_is_refused_and_left(path: Path, file_url: str, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DatabaseDamagedError, match="restore the newest backup"):
        async with open_database(file_url):
            pytest.fail("it was opened")
    assert path.read_bytes() == content


async def test_a_damaged_page_is_told_of_when_it_is_met(path: Path, file_url: str) -> None:
    async with open_database(file_url) as database:
        for number in range(200):
            await database.write(add(f"{number:04}" + "x" * 40))
        await database.side.scrub()  # everything into the file
        raw = bytearray(path.read_bytes())
        middle = len(raw) // 4096 * 2048
        raw[middle - 32768 :] = b"\xaa" * (len(raw) - middle + 32768)
        path.write_bytes(raw)
        with pytest.raises(DatabaseDamagedError, match="damaged"):
            await database.read(
                lambda c: (
                    c.execute(text("PRAGMA integrity_check")).all()
                    and c.execute(select(memories, threads)).all()
                    and keys(c)
                )
            )
    with pytest.raises(DatabaseDamagedError):
        async with open_database(file_url):
            pytest.fail("it was opened")


async def test_a_place_where_no_file_can_be_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a person's")
    (tmp_path / "agent.db").mkdir()
    for path, why in ((tmp_path / "file" / "agent.db", "Check that its directory"), (tmp_path / "agent.db", "Check")):
        with pytest.raises(DatabaseError, match=why):
            async with open_database(f"sqlite+aiosqlite:///{path}"):
                pytest.fail("it was opened")
    assert (tmp_path / "file").read_text() == "a person's"


async def test_a_locked_file_is_told_of_and_used_again_when_free(path: Path, file_url: str) -> None:
    async with open_database(file_url, patience=Patience(busy_s=0.05)) as database:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseLockedError, match="nothing of this was written"):
                await database.write(add("a"))
            assert await database.read(keys) == []
            other.execute("ROLLBACK")
        await database.write(add("b"))
        assert await database.read(keys) == ["b"]


async def test_a_full_disk_is_told_of_and_nothing_is_half_written(file_url: str) -> None:
    """SQLite's own limit of pages stands for the disk's: the same error code, and no file system is needed."""

    def limit(pages: int) -> Unit[None]:
        def unit(connection: Connection) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

        return unit

    async with open_database(file_url) as database:
        await database.write(add("a"))
        await database.write(limit(1))  # no page more than there are
        units = [add(f"{number:05}" + "x" * 50) for number in range(3000)]
        outcomes = await asyncio.gather(*map(database.write, units), return_exceptions=True)
        full = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert full
        assert {type(outcome) for outcome in full} == {DatabaseFullError}
        assert (await database.read(keys))[-1:] == ["a"]
        assert len(await database.read(keys)) == 3001 - len(full)
        await database.write(limit(1 << 20))
        await database.write(add("b"))


# Trouble with the server


async def test_a_server_that_is_not_there_is_told_of_without_the_password(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2")
    with pytest.raises(DatabaseDownError) as refused:
        async with open_database(
            f"postgresql+asyncpg://ada@/agent?host={tmp_path}", password_file=tmp_path / "password"
        ):
            pytest.fail("it was opened")
    assert "hunter2" not in str(refused.value)


async def test_a_database_that_is_not_there_is_told_of(postgres: object) -> None:
    with pytest.raises(DatabaseRefusedError, match="3D000"):
        async with open_database(f"postgresql+asyncpg://agent@/nowhere?host={postgres.folder}"):  # type: ignore[attr-defined]
            pytest.fail("it was opened")


async def end_connections(database: Database) -> None:
    """End all of the agent's connections but the one that asks, as a server's restart does."""
    await database.write(
        lambda c: c.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        ).all()
    )


async def test_lost_connections_are_replaced(url: str) -> None:
    if url.startswith("sqlite"):
        pytest.skip("has no connections to lose")
    async with open_database(url) as database, open_database(url) as other:
        await database.write(add("a"))
        await asyncio.gather(*(database.read(keys) for _ in range(4)))
        await end_connections(other)
        assert await asyncio.gather(*(database.read(keys) for _ in range(4))) == [["a"]] * 4
        await database.write(add("b"))
        assert await other.read(keys) == ["a", "b"]


async def test_a_connection_lost_at_the_commit_is_told_of_as_uncertain(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if url.startswith("sqlite"):
        pytest.skip("has no connections to lose")
    async with open_database(url) as database, open_database(url) as other:
        await database.write(add("a"))
        perform: Callable[[Sequence[Unit[object]]], Awaitable[list[Outcome]]] = database.side._perform  # type: ignore[attr-defined]

        async def perform_then_lose(units: Sequence[Unit[object]]) -> list[Outcome]:
            outcomes = await perform(units)
            await end_connections(other)
            return outcomes

        monkeypatch.setattr(database.side, "_perform", perform_then_lose)
        with pytest.raises(DatabaseDownError, match="cannot tell"):
            await database.write(add("b"))
        monkeypatch.undo()
        await database.write(add("c"))
        assert await other.read(keys) == ["a", "c"]


async def test_the_errors_of_a_unit_pass_as_they_are(database: Database) -> None:
    def unit(_: Connection) -> None:
        raise InvalidRecordError("no")

    with pytest.raises(InvalidRecordError):
        await database.write(unit)


async def test_what_is_posted_is_written_by_the_end(url: str) -> None:
    async with open_database(url) as database:
        database.post(add("a"))
        database.post(fail_after(add("b")))
    async with open_database(url) as database:
        assert await database.read(keys) == ["a"]


async def test_the_file_is_its_owners_alone(path: Path, file_url: str) -> None:
    async with open_database(file_url) as database:
        await database.write(add("a"))
        assert {one.stat().st_mode & 0o777 for one in path.parent.iterdir()} == {0o600}
    shutil.rmtree(path.parent)
