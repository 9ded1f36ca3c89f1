"""Reading a conversation back by its own numbers, over any number of compactions; on both databases."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images.agent.tests.store.test_store_threads import USER, answer, ask, texts
from pydantic_ai.messages import CompactionPart, ModelMessage, ModelRequest, ModelResponse, ToolCallPart

from loopbox_agent.database import Database
from loopbox_agent.read_back import MOST, Asked, originals, read_back
from loopbox_agent.threads import Threads


class Turn(NamedTuple):
    """What one run adds to a thread, and how many messages it keeps where it compresses."""

    added: int
    keeps: int | None


def summary(dropped: int) -> ModelMessage:
    return ModelRequest(parts=[CompactionPart(content="short", metadata={"loopbox": "compaction", "dropped": dropped})])


async def told(threads: Threads, turns: list[Turn]) -> tuple[str, list[str]]:
    """Return a thread made of these turns, and the texts of its messages."""
    thread = (await threads.create(USER)).id
    said: list[str] = []
    for number, turn in enumerate(turns):
        run = f"run_{number:016x}"
        fresh = [f"m{len(said) + n} of {run}" for n in range(turn.added)]
        said += fresh
        last = await threads.append(thread, run, [ask(text) for text in fresh])
        if turn.keeps is not None and last:
            kept = said[max(0, len(said) - turn.keeps) :] if turn.keeps else []
            await threads.compact(thread, run, last, [summary(len(said) - len(kept)), *map(ask, kept)])
    return thread, said


TURNS = st.lists(st.builds(Turn, st.integers(1, 5), st.none() | st.integers(0, 4)), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TURNS, st.integers(0, 25), st.integers(0, 25), st.integers(1, 8))
async def test_numbers_are_those_of_the_conversation_whatever_was_compressed(
    database: Database, turns: list[Turn], first: int, last: int, most: int
) -> None:
    thread, said = await told(Threads(database), turns)
    whole = await read_back(database, thread, Asked(0, len(said), most=len(said)))
    assert texts([message for _, message in whole.found]) == said
    assert ([number for number, _ in whole.found], whole.there) == (list(range(len(said))), len(said))
    part = await read_back(database, thread, Asked(first, last, most=most))
    wanted = list(range(first, min(last + 1, len(said))))
    assert [number for number, _ in part.found] == wanted[:most]
    assert part.goes_on == (wanted[most] if len(wanted) > most else None)
    newest = await read_back(database, thread, Asked(most=most))
    assert texts([message for _, message in newest.found]) == said[-most:]
    assert newest.goes_on is None


@given(st.lists(st.tuples(st.integers(0, 3).map(str), st.booleans()), max_size=20))
def test_what_a_run_stores_before_its_summary_has_a_number(rows: list[tuple[str, bool]]) -> None:
    seqs = originals((seq, run, is_summary) for seq, (run, is_summary) in enumerate(rows))
    assert seqs == sorted(set(seqs))
    for seq, (run, _) in enumerate(rows):
        assert (seq in seqs) is not any(other == run and summed for other, summed in rows[: seq + 1])


async def test_words_are_found_once_although_copies_hold_them_too(threads: Threads, database: Database) -> None:
    thread, _ = await told(threads, [Turn(4, 3), Turn(2, 4), Turn(1, None)])
    back = await read_back(database, thread, Asked(query="m2 RUN_0"))
    assert [(number, texts([message])) for number, message in back.found] == [(2, ["m2 of run_0000000000000000"])]
    assert (await read_back(database, thread, Asked(first=3, query="m2"))).found == []
    assert (await read_back(database, "thread_none", Asked())).there == 0


async def test_a_call_whose_arguments_look_like_a_summary_hides_nothing(threads: Threads, database: Database) -> None:
    """Guards against a model that could make messages unreadable by what it calls a tool with."""
    thread = (await threads.create(USER)).id
    sly = ModelResponse(parts=[ToolCallPart("note", {"part_kind": "compaction", "metadata": {"a": 1}})])
    await threads.append(thread, "run_1", [ask("a"), sly, answer("b")])
    assert [number for number, _ in (await read_back(database, thread, Asked())).found] == [0, 1, 2]


async def test_more_than_is_read_at_once_says_where_to_go_on(threads: Threads, database: Database) -> None:
    thread, said = await told(threads, [Turn(MOST + 3, None)])
    back = await read_back(database, thread, Asked(first=0))
    assert (len(back.found), back.goes_on, back.there) == (MOST, MOST, len(said))
