"""What may be learnt from: kept of those who let it, rated, read in order, forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from images.agent.tests.store.conftest import Clock

from loopbox_agent.database import Database
from loopbox_agent.interactions import Interactions, Learn, Seen
from loopbox_agent.records import NotFoundError, TooLargeError, new_id


def seen(user: str = "anna", **more: Any) -> Seen:  # Any: fields
    given: dict[str, Any] = {"run_id": new_id("run"), "thread_id": None, "outcome": "completed", "messages": ["a"]}
    return Seen(**{**given, "user": user, "tools": [], **more})


@pytest.mark.parametrize(
    ("learn", "said", "kept"),
    [
        ("everyone", None, True),
        ("everyone", False, False),
        ("asked", None, False),
        ("asked", True, True),
        ("asked", False, False),
    ],
)
async def test_runs_are_kept_of_those_who_let_it(
    database: Database, learn: Learn, said: bool | None, kept: bool
) -> None:
    interactions = Interactions(database, learn=learn)
    if said is not None:
        await interactions.decide("anna", agree=said)
    assert await interactions.agrees("anna") is kept
    assert await database.write(interactions.keeping(seen())) is kept
    assert len(await interactions.after(0)) == kept


async def test_nothing_is_kept_where_the_operator_says_so(database: Database) -> None:
    interactions = Interactions(database, learn="off")
    await interactions.decide("anna", agree=True)
    interactions.keep(seen())
    await database.write(lambda _: None)  # what was posted before is written by now
    assert (await interactions.after(0), await interactions.agrees("anna")) == ([], False)


async def test_a_no_takes_what_was_kept(database: Database) -> None:
    interactions = Interactions(database)
    for user in ("anna", "anna", "bert"):
        await database.write(interactions.keeping(seen(user)))
    assert await interactions.decide("anna", agree=False) == 2
    assert [one.user for one in await interactions.after(0)] == ["bert"]
    assert await interactions.decide("anna", agree=True) == 0


async def test_they_are_read_in_order_page_by_page(database: Database) -> None:
    interactions = Interactions(database)
    for number in range(5):
        await database.write(interactions.keeping(seen(messages=[number], tools=[{"name": "look"}])))
    first = await interactions.after(0, 3)
    assert [one.messages for one in first] == [[0], [1], [2]]
    assert first[0].tools == [{"name": "look"}]
    assert [one.messages for one in await interactions.after(first[-1].number)] == [[3], [4]]


async def test_a_run_is_kept_once_and_the_last_word_about_it_counts(database: Database) -> None:
    interactions = Interactions(database)
    one = seen()
    assert await database.write(interactions.keeping(one)) is True
    assert await database.write(interactions.keeping(one)) is False
    await interactions.rate("anna", one.run_id, "good")
    rated = await interactions.rate("anna", one.run_id, "bad", "too long", "Four.")
    assert (rated.rating, rated.comment, rated.better) == ("bad", "too long", "Four.")
    assert await interactions.after(0) == [rated]
    for user, run in (("bert", one.run_id), ("anna", new_id("run")), ("anna", "\x00")):
        with pytest.raises(NotFoundError):
            await interactions.rate(user, run, "good")


async def test_what_is_too_big_is_not_kept(database: Database) -> None:
    with pytest.raises(TooLargeError):
        Interactions(database).keep(seen(messages=["x" * (256 << 10)]))


async def test_old_ones_go(database: Database, clock: Clock) -> None:
    interactions = Interactions(database, clock=clock)
    for number in range(6):
        await database.write(interactions.keeping(seen(messages=[number])))
        clock.now += 10
    assert await interactions.trim(older_than_s=35, keep=5) == 3
    assert [one.messages for one in await interactions.after(0)] == [[3], [4], [5]]
