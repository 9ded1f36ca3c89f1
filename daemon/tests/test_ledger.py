from __future__ import annotations

import asyncio

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopd.ledger import Ledger
from loopd.state import Database


async def test_entries_are_chained_and_tampering_is_found(ledger: Ledger, database: Database) -> None:
    for number in range(5):
        await ledger.append("unit.restarted", "agent", f"cause {number}", exit_code=number)
    assert await ledger.verify() is None
    await database.execute("UPDATE ledger SET cause = 'nothing happened' WHERE seq = 3")
    assert await ledger.verify() == 3


async def test_a_removed_entry_is_found(ledger: Ledger, database: Database) -> None:
    for number in range(3):
        await ledger.append("a.b", "s", str(number))
    await database.execute("DELETE FROM ledger WHERE seq = 2")
    assert await ledger.verify() == 3


async def test_a_follower_gets_old_entries_and_then_new_ones(ledger: Ledger) -> None:
    await ledger.append("a.old", "s", "before")
    seen: list[str] = []

    async def follow() -> None:
        async for entry in ledger.follow(0):
            seen.append(entry.event)
            if len(seen) == 3:
                return

    follower = asyncio.create_task(follow())
    await ledger.append("a.new", "s", "after")
    await ledger.append("a.newer", "s", "after that")
    async with asyncio.timeout(5):
        await follower
    assert seen == ["a.old", "a.new", "a.newer"]


async def test_the_correlation_id_of_the_request_is_kept(ledger: Ledger) -> None:
    with structlog.contextvars.bound_contextvars(correlation_id="abcd1234"):
        entry = await ledger.append("a.b", "s", "c")
    assert entry.correlation_id == "abcd1234"
    last = await ledger.last("s", "a.")
    assert last == entry


async def test_nothing_is_written_when_the_transaction_around_fails(ledger: Ledger, database: Database) -> None:
    with pytest.raises(RuntimeError):
        async with database.transaction():
            await ledger.append("a.b", "s", "c")
            raise RuntimeError
    assert await ledger.read() == []
    assert await ledger.newest() == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(detail=st.dictionaries(st.sampled_from(["x", "y", "z"]), st.one_of(st.text(), st.integers(), st.none())))
async def test_any_detail_survives_and_keeps_the_chain(ledger: Ledger, detail: dict[str, str | int | None]) -> None:
    entry = await ledger.append("a.b", "s", "c", **detail)
    assert (await ledger.read(after=entry.seq - 1))[0].detail == detail
    assert await ledger.verify() is None
