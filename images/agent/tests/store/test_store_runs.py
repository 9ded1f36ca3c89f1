"""The log of runs and the journal of their tool calls; on both databases."""

from __future__ import annotations

from typing import Protocol

import pytest

from loopbox_agent import run_log as run_log_module
from loopbox_agent.call_journal import CallJournal, CallMismatchError, Fresh, Repeat, Unknown
from loopbox_agent.database import Database, open_database
from loopbox_agent.memory import Memories
from loopbox_agent.records import InvalidRecordError, NotFoundError, StoreLimitError, TooLargeError
from loopbox_agent.recovery import recover_runs
from loopbox_agent.run_log import Ended, RunEvent, RunLog
from loopbox_agent.threads import Threads

USER, OTHER, RUN = "ada@example.org", "bob", "run_0000000000000001"


class Clock(Protocol):
    now: float


@pytest.fixture
def journal(database: Database) -> CallJournal:
    return CallJournal(database)


async def test_a_run_is_recorded_from_start_to_end(run_log: RunLog, threads: Threads) -> None:
    thread = await threads.create(USER)
    await run_log.start(RUN, USER, {"instruction": "Say \0 \ud800 hello."}, thread_id=thread.id)
    run = await run_log.get(USER, RUN)
    assert (run.status, run.thread_id, run.finished_at, run.result) == ("running", thread.id, None, None)
    assert run.request == {"instruction": "Say \0 \ufffd hello."}
    end = Ended(status="completed", result={"output": "hello"}, input_tokens=7, output_tokens=3)
    assert await run_log.finish(RUN, end, [RunEvent(1, "run.completed", {"output": "hello"})])
    assert not await run_log.finish(RUN, Ended(status="cancelled"))
    run = await run_log.get(USER, RUN)
    assert (run.status, run.result, run.error, run.input_tokens) == ("completed", {"output": "hello"}, None, 7)
    assert run.finished_at is not None
    assert [event.name for event in await run_log.events(RUN)] == ["run.completed"]


async def test_a_held_run_may_end_again(run_log: RunLog) -> None:
    await run_log.start(RUN, USER, {})
    assert await run_log.finish(RUN, Ended(status="held"))
    assert await run_log.finish(RUN, Ended(status="completed", result={"output": "released"}))
    assert not await run_log.finish(RUN, Ended(status="failed"))


async def test_runs_are_their_users_alone(run_log: RunLog, threads: Threads) -> None:
    await run_log.start(RUN, USER, {})
    thread = await threads.create(OTHER)
    for call in (run_log.get(OTHER, RUN), run_log.get(USER, "run_\0"), run_log.recent(OTHER, before=RUN)):
        with pytest.raises(NotFoundError):
            await call
    with pytest.raises(NotFoundError):
        await run_log.start("run_2", USER, {}, thread_id=thread.id)
    with pytest.raises(NotFoundError):
        await run_log.start("run_2", USER, {}, thread_id="thread_none")
    with pytest.raises(InvalidRecordError):
        await run_log.start(RUN, OTHER, {})
    with pytest.raises(NotFoundError):
        await run_log.append("run_none", [RunEvent(1, "a", None)])
    with pytest.raises(NotFoundError):
        await run_log.finish("run_none", Ended(status="failed"))
    assert await run_log.recent(OTHER) == []


async def test_runs_are_listed_newest_first_and_by_pages(run_log: RunLog, threads: Threads) -> None:
    thread = await threads.create(USER)
    for number in range(5):
        await run_log.start(f"run_{number}", USER, {}, thread_id=thread.id if number % 2 else None)
    await run_log.finish("run_3", Ended(status="failed", error={"code": "internal"}))
    assert [run.id for run in await run_log.recent(USER, limit=2)] == ["run_4", "run_3"]
    assert [run.id for run in await run_log.recent(USER, before="run_3")] == ["run_2", "run_1", "run_0"]
    assert [run.id for run in await run_log.recent(USER, thread_id=thread.id)] == ["run_3", "run_1"]
    assert [run.id for run in await run_log.recent(USER, status="failed")] == ["run_3"]


async def test_events_are_read_on_from_where_a_client_stopped(run_log: RunLog) -> None:
    await run_log.start(RUN, USER, {})
    await run_log.append(RUN, [RunEvent(number, "text.delta", {"text": str(number)}) for number in range(1, 6)])
    await run_log.append(RUN, [])
    await run_log.append(RUN, [RunEvent(6, "run.completed", None)])
    assert [event.seq for event in await run_log.events(RUN, after=4)] == [5, 6]
    assert [event.body for event in await run_log.events(RUN, limit=2)] == [{"text": "1"}, {"text": "2"}]
    assert await run_log.events("run_none") == []


async def test_limits_of_runs(run_log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    await run_log.start(RUN, USER, {})
    monkeypatch.setattr(run_log_module, "MOST_EVENTS", 3)
    monkeypatch.setattr(run_log_module, "MOST_EVENT_BYTES", 100)
    monkeypatch.setattr(run_log_module, "MOST_REQUEST_BYTES", 100)
    with pytest.raises(StoreLimitError):
        await run_log.append(RUN, [RunEvent(4, "a", None)])
    with pytest.raises(TooLargeError):
        await run_log.append(RUN, [RunEvent(1, "a", "x" * 101)])
    with pytest.raises(TooLargeError):
        await run_log.start("run_2", USER, {"instruction": "x" * 101})
    assert await run_log.events(RUN) == []


async def test_after_a_crash_running_runs_are_interrupted(url: str) -> None:
    async with open_database(url) as database:
        log, memories = RunLog(database), Memories(database)
        for number in range(3):
            await log.start(f"run_{number}", USER, {})
        await memories.working.set("run_0", "plan", [1])
        await log.finish("run_1", Ended(status="completed"))
        await log.finish("run_2", Ended(status="held"))
    async with open_database(url) as database:
        log = RunLog(database)
        assert await recover_runs(database) == ["run_0"]
        assert await recover_runs(database) == []
        assert [run.status for run in await log.recent(USER)] == ["held", "completed", "interrupted"]
        run, [last] = await log.get(USER, "run_0"), await log.events("run_0", after=3)
        assert run.finished_at is not None
        assert isinstance(run.error, dict)
        assert (last.name, last.body) == ("run.failed", run.error)
        assert await Memories(database).working.all("run_0") == {}


async def test_old_runs_go_with_all_that_is_theirs(run_log: RunLog, journal: CallJournal, clock: Clock) -> None:
    for number in range(6):
        await run_log.start(f"run_{number}", USER, {})
        await run_log.append(f"run_{number}", [RunEvent(1, "a", None)])
        await journal.begin(f"run_{number}", "call", "read", {}, "read")
        if number != 1:
            await run_log.finish(f"run_{number}", Ended(status="completed"))
        clock.now += 100
    assert await run_log.trim(older_than_s=550, keep=100) == 1  # the first; the second is running
    assert await run_log.events("run_0") == []
    assert await journal.of_run("run_0") == []
    assert await run_log.trim(older_than_s=1e6, keep=2) == 3
    assert [run.id for run in await run_log.recent(USER)] == ["run_5", "run_1"]


async def test_a_call_runs_once(run_log: RunLog, journal: CallJournal) -> None:
    await run_log.start(RUN, USER, {})
    assert await journal.begin(RUN, "call-1", "bash", {"command": "rm x"}, "write") == Fresh()
    unknown = await journal.begin(RUN, "call-1", "bash", {"command": "rm x"}, "write")
    assert isinstance(unknown, Unknown)
    await journal.finish(RUN, "call-1", {"exit_code": 0})
    assert await journal.begin(RUN, "call-1", "bash", {"command": "rm x"}, "write") == Repeat({"exit_code": 0}, False)
    await journal.finish(RUN, "call-1", {"exit_code": 1}, is_error=True)  # the first one stays
    assert await journal.begin(RUN, "call-1", "bash", {"command": "rm x"}, "write") == Repeat({"exit_code": 0}, False)
    for tool, arguments in (("bash", {"command": "rm y"}), ("python", {"command": "rm x"})):
        with pytest.raises(CallMismatchError):
            await journal.begin(RUN, "call-1", tool, arguments, "write")


async def test_a_read_may_run_again_until_it_is_finished(run_log: RunLog, journal: CallJournal) -> None:
    await run_log.start(RUN, USER, {})
    assert await journal.begin(RUN, "call-1", "read", {"b": 1, "a": 2}, "read") == Fresh()
    assert await journal.begin(RUN, "call-1", "read", {"a": 2, "b": 1}, "read") == Fresh()
    await journal.finish(RUN, "call-1", None, is_error=True)
    assert await journal.begin(RUN, "call-1", "read", {"a": 2, "b": 1}, "read") == Repeat(None, True)
    (call,) = await journal.of_run(RUN)
    assert (call.tool, call.effect, call.arguments, call.is_error) == ("read", "read", {"a": 2, "b": 1}, True)


async def test_calls_of_unknown_runs_are_refused(run_log: RunLog, journal: CallJournal) -> None:
    with pytest.raises(NotFoundError):
        await journal.begin("run_none", "call-1", "read", {}, "read")
    with pytest.raises(NotFoundError):
        await journal.finish("run_none", "call-1", {})
    await run_log.start(RUN, USER, {})
    with pytest.raises(InvalidRecordError):
        await journal.begin(RUN, "x" * 65, "read", {}, "read")
