"""Runs of an agent that died get their turn in the conversation, once; on both databases."""

from __future__ import annotations

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, TextPart, ToolReturnPart, UserPromptPart

from loopbox_agent import threads as threads_module
from loopbox_agent.call_journal import CallJournal
from loopbox_agent.database import Database
from loopbox_agent.interrupted import MOST_CALLS, UNKNOWN
from loopbox_agent.recovery import recover_runs
from loopbox_agent.run_log import RunEvent, RunLog
from loopbox_agent.threads import Threads

USER, RUN = "ada", "run_1"


class CrashedError(Exception):
    """The process ends here."""


@pytest.fixture
async def thread(database: Database) -> str:
    """A thread that a run held when its agent died, one call finished and one not."""
    threads, journal = Threads(database), CallJournal(database)
    thread = (await threads.create(USER)).id
    await RunLog(database).start(RUN, USER, {"instruction": "Tidy up."}, thread_id=thread)
    await threads.acquire(thread, RUN, 300)
    await journal.begin(RUN, "call_1", "bash", {"command": "mkdir a"}, "write")
    await journal.finish(RUN, "call_1", {"text": "made a"})
    await journal.begin(RUN, "call_2", "bash", {"command": "rm -r b"}, "write")
    return thread


def answers(messages: list[ModelMessage]) -> list[object]:
    return [part.content for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]


async def test_an_interrupted_runs_turn_is_in_its_thread_once(database: Database, thread: str) -> None:
    assert await recover_runs(database) == [RUN]
    assert await recover_runs(database) == []
    threads = Threads(database)
    await threads.release_all()
    messages = await threads.history(thread)
    assert isinstance(messages[0].parts[0], UserPromptPart)
    assert messages[0].parts[0].content == "Tidy up."
    assert answers(messages) == ["made a", UNKNOWN]
    assert isinstance(messages[-1].parts[0], TextPart)
    assert "interrupted" in messages[-1].parts[0].content
    assert {stored.run_id for stored in await threads.active(thread)} == {RUN}
    run = await RunLog(database).get(USER, RUN)
    assert run.status == "interrupted"
    assert isinstance(run.error, dict)


async def test_a_second_crash_in_the_recovery_leaves_nothing_half_done(
    database: Database, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finishing(*_: object) -> object:
        def unit(_: object) -> None:
            raise CrashedError

        return unit

    with monkeypatch.context() as patched:
        patched.setattr(RunLog, "finishing", finishing)
        with pytest.raises(CrashedError):
            await recover_runs(database)
    assert await Threads(database).history(thread) == []
    assert await recover_runs(database) == [RUN]
    assert answers(await Threads(database).history(thread)) == ["made a", UNKNOWN]


async def test_a_turn_that_was_saved_is_not_added_again(database: Database, thread: str) -> None:
    said: list[ModelMessage] = [ModelRequest.user_text_prompt("Tidy up.")]
    await Threads(database).append(thread, RUN, said)  # and then it died, before its end was written
    assert await recover_runs(database) == [RUN]
    assert len(await Threads(database).history(thread)) == 1


async def test_a_run_that_did_not_hold_its_thread_adds_nothing(database: Database, thread: str) -> None:
    await RunLog(database).start("run_2", USER, {"instruction": "Me, too."}, thread_id=thread)  # it would be refused
    assert await recover_runs(database) == [RUN, "run_2"]
    assert {stored.run_id for stored in await Threads(database).active(thread)} == {RUN}


async def test_a_full_thread_does_not_keep_the_agent_from_starting(
    database: Database, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "MOST_MESSAGES", 2)
    assert await recover_runs(database) == [RUN]
    assert await Threads(database).history(thread) == []
    assert (await RunLog(database).get(USER, RUN)).status == "interrupted"


async def test_of_many_calls_those_of_unknown_end_are_kept_first(database: Database, thread: str) -> None:
    journal = CallJournal(database)
    for number in range(MOST_CALLS + 3):
        await journal.begin(RUN, f"more_{number:02}", "bash", {"command": "true"}, "write")
        await journal.finish(RUN, f"more_{number:02}", {"text": str(number)})
    journaled = await journal.last_of_run(RUN, MOST_CALLS)
    assert (len(journaled.calls), journaled.finished, journaled.unknown) == (MOST_CALLS, MOST_CALLS + 4, 1)
    assert journaled.left_out == 5
    assert [call.call_id for call in journaled.calls][:2] == ["call_2", "more_04"]
    await recover_runs(database)
    assert len(answers(await Threads(database).history(thread))) == MOST_CALLS


async def test_a_client_that_comes_back_reads_the_end(database: Database, thread: str) -> None:
    del thread
    await recover_runs(database)
    (last,) = await RunLog(database).events(RUN, after=700)
    assert isinstance(last, RunEvent)
    assert last.name == "run.failed"
