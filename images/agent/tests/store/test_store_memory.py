"""Memory, knowledge, text search and quarantine; on both databases."""

from __future__ import annotations

from typing import Protocol

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from loopbox_agent import knowledge as knowledge_module
from loopbox_agent import memory as memory_module
from loopbox_agent.chunks import cut
from loopbox_agent.database import Database
from loopbox_agent.knowledge import SHARED, Knowledge
from loopbox_agent.memory import Memories, Quota, evicted
from loopbox_agent.quarantine import AlreadyDecidedError, Finding, Quarantine
from loopbox_agent.records import InvalidRecordError, NotFoundError, StoreLimitError, TooLargeError
from loopbox_agent.run_log import Ended, RunLog
from loopbox_agent.text_search import Hit, by_recency, words_of
from loopbox_agent.threads import Threads

USER, OTHER, RUN = "ada@example.org", "bob", "run_0000000000000001"
QUERIES = st.one_of(st.text(max_size=60), st.text(alphabet="\"'*()^:-+{}[]~|&!<>\\ ANDORTab%_.\0", max_size=60))


class Clock(Protocol):
    now: float


@pytest.fixture
def memories(database: Database, clock: Clock) -> Memories:
    return Memories(database, clock=clock)  # type: ignore[arg-type]  # the fixture's clock is called


@pytest.fixture
def knowledge(database: Database) -> Knowledge:
    return Knowledge(database)


@pytest.fixture
def quarantine(database: Database, clock: Clock) -> Quarantine:
    return Quarantine(database, clock=clock, most_waiting=3)  # type: ignore[arg-type]  # as above


# Memory


async def test_working_memory_goes_with_its_run(memories: Memories, run_log: RunLog) -> None:
    await run_log.start(RUN, USER, {})
    await memories.working.set(RUN, "plan", ["a"])
    await memories.working.set(RUN, "plan", ["a", "b"])
    await memories.working.set(RUN, "odd\0", None)
    assert await memories.working.all(RUN) == {"odd\ufffd": None, "plan": ["a", "b"]}
    assert await memories.working.delete(RUN, "plan")
    assert not await memories.working.delete(RUN, "plan")
    await run_log.finish(RUN, Ended(status="completed"))
    assert await memories.working.all(RUN) == {}


async def test_session_notes_stay_with_their_thread(memories: Memories, threads: Threads) -> None:
    thread = await threads.create(USER)
    await memories.session.set(thread.id, "goal", {"text": "ship"})
    assert await memories.session.all(thread.id) == {"goal": {"text": "ship"}}
    await threads.delete(USER, thread.id)
    assert await memories.session.all(thread.id) == {}
    with pytest.raises(NotFoundError):
        await memories.session.set(thread.id, "goal", 1)


async def test_notes_have_limits(memories: Memories, threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    thread = await threads.create(USER)
    monkeypatch.setattr(memory_module, "MOST_NOTES", 2)
    for name in "ab":
        await memories.session.set(thread.id, name, 1)
    with pytest.raises(StoreLimitError):
        await memories.session.set(thread.id, "c", 1)
    await memories.session.set(thread.id, "a", 2)  # is no further one
    with pytest.raises(TooLargeError):
        await memories.session.set(thread.id, "a", "x" * (64 << 10))
    with pytest.raises(TooLargeError):
        await memories.session.set(thread.id, "x" * 200, 1)


async def test_what_was_remembered_is_recalled_by_its_words(memories: Memories) -> None:
    await memories.remember(USER, "Ada likes strong coffee in the morning.", tags=["taste"], source=RUN)
    await memories.remember(USER, "The deployment runs on Fridays.")
    await memories.remember(OTHER, "Bob likes coffee.")
    for query in ("coffee", "COFFEE?", "does she like coffee", "mornings", "text: coffee*"):
        (first, *_) = await memories.recall(USER, query)
        assert first.text == "Ada likes strong coffee in the morning.", query
        assert (first.tags, first.source) == (("taste",), RUN)
        assert 0 < first.rank <= 1
    assert [one.text for one in await memories.recall(USER, "deployments")] == ["The deployment runs on Fridays."]
    assert await memories.recall(USER, "bob") == []
    assert await memories.recall(USER, "") == []
    assert await memories.recall("nobody", "coffee") == []


async def test_both_databases_split_words_alike(memories: Memories) -> None:
    for text in ("see report-2024.pdf", "mail ada@example.org", "naïve café", "snake_case_name", "Straße 12"):
        await memories.remember(USER, text)
    for query, found in (
        ("report", "see report-2024.pdf"),
        ("2024", "see report-2024.pdf"),
        ("pdf", "see report-2024.pdf"),
        ("example", "mail ada@example.org"),
        ("café", "naïve café"),
        ("CASE", "snake_case_name"),
        ("straße", "Straße 12"),
    ):
        assert [one.text for one in await memories.recall(USER, query)] == [found], query


async def test_the_same_text_is_one_memory(memories: Memories) -> None:
    first = await memories.remember(USER, "Likes  tea", tags=["a"], source="one")
    again = await memories.remember(USER, " likes tea ", tags=["b", "a", ""], source="two")
    assert (again.id, again.tags, again.source, again.text) == (first.id, ("a", "b"), "one", "Likes  tea")
    assert again.used_at > first.used_at
    assert len(await memories.all(USER)) == 1
    assert (await memories.remember(OTHER, "likes tea")).id != first.id


async def test_recent_use_counts(memories: Memories, clock: Clock) -> None:
    old = await memories.remember(USER, "the build server is alpha")
    clock.now += 90 * 86_400
    new = await memories.remember(USER, "the build server is gamma")
    assert [one.id for one in await memories.recall(USER, "build server")] == [new.id, old.id]


async def test_the_least_recently_used_is_forgotten_first(database: Database, clock: Clock) -> None:
    memories = Memories(database, quota=Quota(count=3), clock=clock)  # type: ignore[arg-type]  # as above
    ids = [(await memories.remember(USER, f"fact {word}")).id for word in ("one", "two", "three")]
    await memories.remember(OTHER, "fact one")
    assert [one.id for one in await memories.recall(USER, "one")] == ids[:1]  # posts its use before what follows
    last = (await memories.remember(USER, "fact four")).id
    assert [one.id for one in await memories.all(USER)] == [last, ids[2], ids[0]]
    assert await memories.recall(USER, "two") == []
    assert len(await memories.all(OTHER)) == 1


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 10), st.integers(1, 200))
def test_eviction_keeps_to_the_quota_and_takes_no_more(sizes: list[int], count: int, size: int) -> None:
    rows = list(enumerate(sizes))
    quota = Quota(count=count, size=size)
    gone = evicted(rows, quota)
    assert gone == list(range(len(gone)))  # the oldest ones

    def fits(kept: list[int]) -> bool:
        return len(kept) <= count and sum(kept) <= size

    kept = sizes[len(gone) :]
    assert fits(kept) or len(kept) == 1
    if gone:
        assert not fits(sizes[len(gone) - 1 :])


async def test_forgetting_is_ones_own(memories: Memories) -> None:
    made = await memories.remember(USER, "secret plan")
    with pytest.raises(NotFoundError):
        await memories.forget(OTHER, made.id)
    await memories.forget(USER, made.id)
    assert await memories.recall(USER, "secret") == []
    with pytest.raises(NotFoundError):
        await memories.forget(USER, made.id)


async def test_limits_of_memories(memories: Memories) -> None:
    with pytest.raises(TooLargeError):
        await memories.remember(USER, "x" * (8 << 10) + "y")
    with pytest.raises(TooLargeError):
        await memories.remember(USER, "x", tags=["t" * 65])
    for text in ("", "  \n"):
        with pytest.raises(InvalidRecordError):
            await memories.remember(USER, text)
    kept = await memories.remember(USER, "x", tags=[f"t{number}" for number in range(30)])
    assert len(kept.tags) == 16


# Search


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(QUERIES)
@example('"')
@example("NEAR(a b)")
@example("text:a OR *")
@example("a AND NOT (b")
@example("' | !(")
@example("\ud800 \0")
@example("² ½ Ⅷ ﷺ ꙮ")
async def test_no_query_breaks_a_search(memories: Memories, knowledge: Knowledge, query: str) -> None:
    await memories.remember(USER, "plain text about nothing")
    await memories.recall(USER, query)
    await knowledge.search(USER, query)


@given(st.text(max_size=300))
def test_words_are_letters_and_digits_in_lower_case(query: str) -> None:
    words = words_of(query)
    assert len(words) == len(set(words)) <= 32
    assert all(word.isalnum() and word == word.lower() and len(word) <= 128 for word in words)


@given(st.lists(st.tuples(st.floats(0.001, 100), st.floats(0, 1e9)), max_size=20))
def test_ranks_lie_between_zero_and_one_and_fall(scored: list[tuple[float, float]]) -> None:
    hits = [(Hit(number, score), at) for number, (score, at) in enumerate(scored)]
    ranks = [rank for _, rank in by_recency(hits, now=1e9, half_life_days=30)]
    assert ranks == sorted(ranks, reverse=True)
    assert all(0 <= rank <= 1 for rank in ranks)


# Knowledge


@given(st.text(alphabet="ab \n.", max_size=600), st.integers(10, 80))
def test_passages_hold_all_of_a_text_and_no_more_than_their_size(text: str, size: int) -> None:
    overlap = size // 8
    chunks = cut(text, size=size, overlap=overlap)
    held = set()
    for chunk in chunks:
        assert 0 < len(chunk.text) <= size
        assert text[chunk.start : chunk.start + len(chunk.text)] == chunk.text
        held |= set(range(chunk.start, chunk.start + len(chunk.text)))
    assert all(text[place].isspace() for place in set(range(len(text))) - held)
    ends = [chunk.start + len(chunk.text) for chunk in chunks]
    assert ends == sorted(set(ends))  # each goes on where others stopped
    assert all(end - chunk.start <= overlap for end, chunk in zip(ends, chunks[1:], strict=False))


def test_passages_end_where_paragraphs_do() -> None:
    paragraphs = ["word " * 90 + "end." for _ in range(6)]
    chunks = cut("\n\n".join(paragraphs))
    assert all(chunk.text.endswith("end.") for chunk in chunks)
    assert len(chunks) == 3


def test_long_text_without_borders_is_cut_all_the_same() -> None:
    assert [len(chunk.text) for chunk in cut("x" * 3000)] == [1200, 1200, 600]


async def test_documents_are_found_by_their_passages(knowledge: Knowledge) -> None:
    filler = "\n\n".join(f"Paragraph {number} is about gardening and weather. " * 20 for number in range(5))
    await knowledge.add(USER, "manual.md", f"{filler}\n\nThe reactor must be vented before maintenance.\n\n{filler}")
    await knowledge.add(SHARED, "faq", "Venting the reactor takes ten minutes.")
    await knowledge.add(OTHER, "private", "The reactor is painted green.")
    found = await knowledge.search(USER, "How do I vent the reactor?")
    assert {(one.document, one.owner) for one in found} >= {("manual.md", USER), ("faq", SHARED)}
    assert all(one.document != "private" for one in found)
    assert found[0].score == 1.0
    assert all(0 < one.score <= 1 for one in found)
    mine = next(one for one in found if one.document == "manual.md")
    assert "must be vented" in mine.text
    assert mine.position > 0
    assert await knowledge.search(USER, "...") == []
    assert len(await knowledge.search(USER, "gardening", limit=3)) == 3


async def test_the_same_name_replaces_and_deleting_forgets(knowledge: Knowledge) -> None:
    await knowledge.add(USER, "notes", "Old wisdom about herons.")
    await knowledge.add(USER, "notes", "New wisdom about storks.")
    await knowledge.add(USER, "notes", "New wisdom about storks.")
    assert [one.name for one in await knowledge.all(USER)] == ["notes"]
    assert await knowledge.search(USER, "herons") == []
    assert [one.text for one in await knowledge.search(USER, "stork")] == ["New wisdom about storks."]
    with pytest.raises(NotFoundError):
        await knowledge.delete(OTHER, "notes")
    await knowledge.delete(USER, "notes")
    assert await knowledge.search(USER, "stork") == []


async def test_limits_of_documents(knowledge: Knowledge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knowledge_module, "MOST_DOCUMENTS", 1)
    monkeypatch.setattr(knowledge_module, "MOST_BYTES", 100)
    monkeypatch.setattr(knowledge_module, "MOST_DOCUMENT_BYTES", 200)
    await knowledge.add(USER, "a", "x")
    for name, text, error in (
        ("b", "x", StoreLimitError),
        ("a", "x" * 101, StoreLimitError),
        ("a", "x" * 201, TooLargeError),
        ("", "x", InvalidRecordError),
        ("n" * 201, "x", InvalidRecordError),
    ):
        with pytest.raises(error):
            await knowledge.add(USER, name, text)
    assert [one.size for one in await knowledge.all(USER)] == [1]  # what was there stayed


# Quarantine


def finding(text: str = "hidden") -> Finding:
    return Finding(run_id=RUN, user=USER, kind="output", score=80, findings=[{"rule": "pii"}], text=text)


async def test_what_is_held_is_decided_once(quarantine: Quarantine) -> None:
    first, second = await quarantine.add(finding("one\0")), await quarantine.add(finding("two"))
    assert [held.text for held in await quarantine.recent()] == ["two", "one\ufffd"]
    released = await quarantine.release(first, "op")
    assert (released.state, released.decided_by, released.text) == ("released", "op", "one\ufffd")
    rejected = await quarantine.reject(second, "op", "leaks a key")
    assert (rejected.state, rejected.reason, rejected.findings) == ("rejected", "leaks a key", [{"rule": "pii"}])
    for call in (quarantine.release(second, "op"), quarantine.reject(first, "op", "")):
        with pytest.raises(AlreadyDecidedError):
            await call
    assert await quarantine.get(first) == released
    assert [held.id for held in await quarantine.recent("released")] == [first]
    assert [held.id for held in await quarantine.recent(None)] == [second, first]
    assert [held.id for held in await quarantine.recent(None, before=second)] == [first]
    for held_id in ("held_none", "\0"):
        with pytest.raises(NotFoundError):
            await quarantine.release(held_id, "op")


async def test_the_quarantine_does_not_grow_without_bound(quarantine: Quarantine, clock: Clock) -> None:
    ids = [await quarantine.add(finding()) for _ in range(5)]
    assert [held.id for held in await quarantine.recent()] == ids[:1:-1]
    assert (await quarantine.get(ids[0])).decided_by == "loopbox"
    assert await quarantine.trim(older_than_s=3600, keep=1) == 1
    clock.now += 3601
    assert await quarantine.trim(older_than_s=3600, keep=1) == 1
    assert len(await quarantine.recent(None)) == 3  # those that wait stay
