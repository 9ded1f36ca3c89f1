"""Threads: whose they are, their order, compaction, leases; on both databases."""

from __future__ import annotations

import asyncio
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from loopbox_agent import threads as threads_module
from loopbox_agent.database import Database, open_database
from loopbox_agent.records import InvalidRecordError, NotFoundError, StoreLimitError, TooLargeError
from loopbox_agent.threads import ThreadBusyError, Threads

USER, OTHER, RUN = "ada@example.org", "bob", "run_0000000000000001"


class Clock(Protocol):
    now: float


def ask(text: str) -> ModelMessage:
    return ModelRequest(parts=[UserPromptPart(text)])


def answer(text: str) -> ModelMessage:
    return ModelResponse(parts=[TextPart(text)])


def texts(messages: list[ModelMessage]) -> list[str]:
    return [str(getattr(message.parts[0], "content", "")) for message in messages]


async def test_a_thread_is_its_owners_alone(threads: Threads) -> None:
    thread = await threads.create(USER, "Plans")
    assert await threads.get(USER, thread.id) == thread
    assert thread.id.startswith("thread_")
    for call in (
        threads.get(OTHER, thread.id),
        threads.rename(OTHER, thread.id, "mine"),
        threads.delete(OTHER, thread.id),
        threads.recent(OTHER, before=thread.id),
        threads.get(USER, "thread_\0"),
        threads.get(USER, "' OR 1=1 --"),
    ):
        with pytest.raises(NotFoundError):
            await call
    await threads.rename(USER, thread.id, "Other\0 plans \ud800")
    assert (await threads.get(USER, thread.id)).title == "Other\ufffd plans \ufffd"
    await threads.delete(USER, thread.id)
    with pytest.raises(NotFoundError):
        await threads.get(USER, thread.id)


async def test_threads_are_listed_last_used_first_and_by_pages(threads: Threads) -> None:
    ids = [(await threads.create(USER)).id for _ in range(5)]
    await threads.create(OTHER)
    await threads.append(ids[1], RUN, [ask("hello")])
    order = [ids[1], ids[4], ids[3], ids[2], ids[0]]
    assert [thread.id for thread in await threads.recent(USER)] == order
    first = await threads.recent(USER, limit=2)
    assert [thread.id for thread in first] == order[:2]
    assert [thread.id for thread in await threads.recent(USER, before=first[-1].id)] == order[2:]


async def test_messages_come_back_as_they_were(threads: Threads) -> None:
    thread = await threads.create(USER)
    told: list[ModelMessage] = [
        ask("What is in ü.txt? \0 \U0001f600"),
        ModelResponse(parts=[ToolCallPart("read", {"path": "ü.txt"}, tool_call_id="call-1")]),
        ModelRequest(parts=[ToolReturnPart("read", {"text": "'; DROP TABLE messages; --"}, tool_call_id="call-1")]),
        answer("Nothing."),
    ]
    assert await threads.append(thread.id, RUN, told[:2], tokens=30) == 2
    assert await threads.append(thread.id, RUN, told[2:], tokens=12) == 4
    assert await threads.append(thread.id, RUN, []) == 0
    assert await threads.history(thread.id) == told
    stored = await threads.active(thread.id)
    assert [one.seq for one in stored] == [1, 2, 3, 4]
    assert 38 <= sum(one.tokens for one in stored) <= 42
    assert await threads.history("thread_none") == []


async def test_a_compaction_hides_and_keeps_what_it_drops(threads: Threads) -> None:
    thread = await threads.create(USER)
    await threads.append(thread.id, RUN, [ask(f"m{number}") for number in range(1, 7)])
    assert await threads.compact(thread.id, RUN, 4, [answer("summary a"), answer("summary b")], tokens=9) == 4
    assert texts(await threads.history(thread.id)) == ["summary a", "summary b", "m5", "m6"]
    await threads.append(thread.id, RUN, [ask("m7")])
    # Again, now into the middle of the first summary.
    first = (await threads.active(thread.id))[0]
    assert await threads.compact(thread.id, RUN, first.seq, [answer("shorter")]) == 1
    assert texts(await threads.history(thread.id)) == ["shorter", "summary b", "m5", "m6", "m7"]
    dropped = await threads.dropped(thread.id)
    assert [one.seq for one in dropped] == [7, 4, 3, 2, 1]
    assert texts([one.message for one in dropped]) == ["summary a", "m4", "m3", "m2", "m1"]
    assert texts([one.message for one in await threads.dropped(thread.id, "M2")]) == ["m2"]
    assert await threads.dropped(thread.id, "m7") == []
    assert len(await threads.dropped(thread.id, limit=2)) == 2
    for seq in (4, 99, -1):
        with pytest.raises(NotFoundError):
            await threads.compact(thread.id, RUN, seq, [])


@pytest.mark.parametrize("query", ["%", "_", "\\", '"', "'", "\0", "\ud800", "a" * 5000, 'say "hi"', "100%"])
async def test_no_query_breaks_the_search_in_what_was_dropped(threads: Threads, query: str) -> None:
    thread = await threads.create(USER)
    await threads.append(thread.id, RUN, [ask('they say "hi" at 100%'), ask("other")])
    await threads.compact(thread.id, RUN, 2, [])
    found = texts([one.message for one in await threads.dropped(thread.id, query)])
    assert set(found) <= {'they say "hi" at 100%', "other"}
    if query in ('say "hi"', "100%", "%"):
        assert found == ['they say "hi" at 100%']


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.integers(1, 4), st.tuples(st.integers(0, 20), st.integers(0, 3))), max_size=8))
async def test_history_is_what_a_list_would_hold(memory_threads: Threads, steps: list[int | tuple[int, int]]) -> None:
    """Any mix of appends (a count) and compactions (up to which, by how many) reads as a plain list would."""
    thread = await memory_threads.create(USER)
    model: list[str] = []
    for number, step in enumerate(steps):
        if isinstance(step, int):
            new = [f"m{number}.{index}" for index in range(step)]
            await memory_threads.append(thread.id, RUN, [ask(text) for text in new])
            model += new
        elif model:
            upto = step[0] % len(model)
            new = [f"s{number}.{index}" for index in range(step[1])]
            seq = (await memory_threads.active(thread.id))[upto].seq
            await memory_threads.compact(thread.id, RUN, seq, [answer(text) for text in new])
            model = new + model[upto + 1 :]
        assert texts(await memory_threads.history(thread.id)) == model


@pytest.fixture
async def memory_threads(database: Database) -> Threads:
    return Threads(database)


async def test_limits_are_refused_and_leave_the_thread_as_it_was(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = await threads.create(USER)
    monkeypatch.setattr(threads_module, "MOST_MESSAGES", 3)
    monkeypatch.setattr(threads_module, "MOST_MESSAGE_BYTES", 1000)
    monkeypatch.setattr(threads_module, "MOST_THREADS", 1)
    with pytest.raises(TooLargeError):
        await threads.append(thread.id, RUN, [ask("ok"), ask("x" * 1001)])
    with pytest.raises(StoreLimitError):
        await threads.append(thread.id, RUN, [ask("x")] * 4)
    with pytest.raises(StoreLimitError):
        await threads.create(USER)
    with pytest.raises(TooLargeError):
        await threads.create(OTHER, "t" * 401)
    for user in ("", "a" * 65, "a b", "ä", "a/../b"):
        with pytest.raises(InvalidRecordError):
            await threads.create(user)
    for run in ("", "a" * 65, "a b"):
        with pytest.raises(InvalidRecordError):
            await threads.append(thread.id, run, [ask("x")])
    assert await threads.history(thread.id) == []
    await threads.append(thread.id, RUN, [ask("x")] * 2)


async def test_one_run_holds_a_thread(threads: Threads, clock: Clock) -> None:
    thread = await threads.create(USER)
    async with threads.lease(thread.id, RUN, 60):
        for call in (
            threads.acquire(thread.id, "run_2", 60),
            threads.append(thread.id, "run_2", [ask("x")]),
            threads.compact(thread.id, "run_2", 1, []),
            threads.delete(USER, thread.id),
        ):
            with pytest.raises(ThreadBusyError, match=RUN):
                await call
        await threads.release(thread.id, "run_2")  # is not its
        await threads.append(thread.id, RUN, [ask("mine")])
        await threads.acquire(thread.id, RUN, 60)
    await threads.acquire(thread.id, "run_2", 60)
    clock.now += 61  # a crash: nobody released it
    await threads.acquire(thread.id, "run_3", 60)
    with pytest.raises(ThreadBusyError):
        await threads.append(thread.id, "run_2", [ask("late")])
    assert await threads.release_all() == 1
    await threads.append(thread.id, "run_4", [ask("free")])
    assert texts(await threads.history(thread.id)) == ["mine", "free"]
    with pytest.raises(NotFoundError):
        async with threads.lease("thread_none", RUN, 60):
            pytest.fail("it was leased")


async def test_of_many_runs_at_once_one_gets_the_thread(threads: Threads) -> None:
    thread = await threads.create(USER)
    outcomes = await asyncio.gather(
        *(threads.acquire(thread.id, f"run_{number}", 60) for number in range(50)), return_exceptions=True
    )
    assert sum(outcome is None for outcome in outcomes) == 1
    assert all(outcome is None or isinstance(outcome, ThreadBusyError) for outcome in outcomes)


async def test_a_cancelled_run_lets_go(threads: Threads) -> None:
    thread = await threads.create(USER)
    held = asyncio.Event()

    async def run() -> None:
        async with threads.lease(thread.id, RUN, 60):
            held.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await held.wait()
    task.cancel()
    await asyncio.wait({task})
    await threads.acquire(thread.id, "run_2", 60)
    await threads.release(thread.id, "run_2")
    # Cancelled at any moment of the acquisition, too.
    for turns in range(6):
        task = asyncio.create_task(run())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await threads.acquire(thread.id, f"run_3{turns}", 60)
        await threads.release(thread.id, f"run_3{turns}")


async def test_two_processes_append_in_one_order(url: str) -> None:
    """Two agents on one PostgreSQL, as while one replaces the other: no message is lost, none overwritten."""
    if url.startswith("sqlite"):
        pytest.skip("a file has one agent")
    async with open_database(url) as one, open_database(url) as two:
        thread = await Threads(one).create(USER)
        await asyncio.gather(
            *(Threads(side).append(thread.id, RUN, [ask("x")]) for side in (one, two) for _ in range(20))
        )
        assert [stored.seq for stored in await Threads(one).active(thread.id)] == list(range(1, 41))
