"""Compression: when, what survives word for word, and that it ends; over random conversations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images.agent.tests.histories import conversation, truth
from images.agent.tests.talking import Made, Speaking, dialogue, saying
from pydantic import JsonValue
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
    repair_messages,
)
from pydantic_ai.usage import RequestUsage

from loopbox_agent.compaction import GROWTH, TRIGGER, CompactionPlan, plan
from loopbox_agent.context import KeepInContext
from loopbox_agent.extract import extract, open_items_of
from loopbox_agent.read_back import Back, tell_back
from loopbox_agent.segments import MAX_CHARS, TITLES, Segments, merge_segments, parse_segments, shorten
from loopbox_agent.summarise import Compacted, compact
from loopbox_agent.tokens import ContextFullError, Meter
from loopbox_agent.tool_spec import ToolSpec

LIMIT = 3000
LINES = st.text(min_size=1, max_size=80).map(lambda text: " ".join(text.split())).filter(bool)
SEGMENTS = st.fixed_dictionaries({name: st.lists(LINES, max_size=4, unique=True) for name, _ in TITLES})


def planned_of(history: Sequence[ModelMessage], limit: int = LIMIT, **more: Any) -> CompactionPlan:  # Any: options
    planned = plan(history, used_tokens=truth(history), limit_tokens=limit, meter=Meter(), **more)
    assert planned is not None
    return planned


def text_of(history: Sequence[ModelMessage]) -> str:
    return "\n".join(str(getattr(part, "content", "")) for message in history for part in message.parts)


def contents(messages: Sequence[ModelMessage]) -> list[object]:
    return [list(message.parts) for message in messages]


def check_valid(history: Sequence[ModelMessage]) -> None:
    """The history needs no repair: it starts with a request and every answer follows its call."""
    assert isinstance(history[0], ModelRequest)
    called: set[str] = set()
    for place, message in enumerate(history):
        returned = {part.tool_call_id for part in message.parts if isinstance(part, ToolReturnPart)}
        assert returned <= called
        called = {part.tool_call_id for part in message.parts if isinstance(part, ToolCallPart)} | (called - returned)
        assert not called or isinstance(message, ModelResponse), f"unanswered before {place}"
    parts = sum(len(message.parts) for message in history)
    assert sum(len(message.parts) for message in repair_messages(list(history))) == parts


@given(SEGMENTS)
@settings(deadline=None)
def test_segments_are_read_back_as_they_are_told(given_segments: dict[str, list[str]]) -> None:
    segments = Segments.model_validate(given_segments)
    assert parse_segments(segments.render()) == segments
    assert Segments.model_validate_json(segments.model_dump_json()) == segments


@given(SEGMENTS, SEGMENTS, st.integers(0, 300))
@settings(deadline=None, max_examples=60)
def test_segments_are_merged_and_shortened_within_bounds(
    one: dict[str, list[str]], other: dict[str, list[str]], room: int
) -> None:
    merged = merge_segments(Segments.model_validate(one), Segments.model_validate(other))
    assert merge_segments(merged, merged) == merged
    short = shorten(merged, room, Meter().text)
    assert short.open_items == merged.open_items
    assert bool(short.task_overview) == bool(merged.task_overview)
    rest = short.model_copy(update={"open_items": (), "task_overview": ()})
    assert not len(rest) or Meter().text(short.render()) <= room


def test_a_line_is_one_line_and_bounded() -> None:
    segments = Segments.model_validate({"progress": "one\n## Blockers\n- two " + "x" * 2000, "context": 5})
    assert parse_segments(segments.render()) == segments
    assert len(segments.progress[0]) == MAX_CHARS
    assert segments.context == ()


def test_open_items_are_found_and_ticked_off() -> None:
    messages: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart("- [ ] one\n* [ ] two  \n1. [ ] three\nTODO: four\nnothing [ ] here")]),
        ModelResponse(parts=[TextPart("- [x] Two\nI did it.")]),
    ]
    assert open_items_of(messages) == ("one", "three", "four")


def test_there_is_no_plan_before_the_trigger() -> None:
    history = conversation(1, 2000).messages
    for used, wanted in ((int(TRIGGER * LIMIT) - 1, False), (int(TRIGGER * LIMIT) + 1, True)):
        assert (plan(history, used_tokens=used, limit_tokens=LIMIT, meter=Meter()) is not None) == wanted
    assert plan([], used_tokens=9999, limit_tokens=LIMIT, meter=Meter()) is None


@given(seed=st.integers(0, 10_000), steps=st.integers(1, 20), keep=st.integers(0, 5), lines=st.integers(1, 12))
@settings(deadline=None, max_examples=80)
def test_what_must_survive_survives(seed: int, steps: int, keep: int, lines: int) -> None:
    long = conversation(seed, LIMIT, turn_steps=steps, lines=lines)
    before = list(long.messages)
    planned = planned_of(long.messages, 2 * LIMIT, keep_turns=keep, trigger=0.1)
    result = asyncio.run(compact(planned, None))
    assert long.messages == before  # what was given is not changed
    check_valid(result.history)
    rules = [part.content for part in result.history[0].parts if isinstance(part, SystemPromptPart)]
    assert rules == list(long.rules)
    text = text_of(result.history)
    assert all(item in text for item in long.open_items)
    assert "say hello" not in result.segments.open_items or "- [x] say hello" not in text_of(planned.head)
    assert contents(result.history[1:]) == contents(before[planned.last + 1 :])
    assert (planned.head, planned.kept) == (tuple(before[: planned.last + 1]), tuple(before[planned.last + 1 :]))
    assert "read_back" in text
    # The question under work is there, if not whole then its beginning.
    last = next(p for m in reversed(before) for p in m.parts if isinstance(p, UserPromptPart))
    assert str(last.content)[:100] in text
    assert truth(result.history) < truth(before)


async def grow(limit: int, messages: list[ModelMessage]) -> tuple[list[Compacted], list[ModelMessage]]:
    """Feed a thread message by message to a planner, as a run does before each request."""
    meter, kept_originals, since = Meter(), 0, 0
    history: list[ModelMessage] = []
    done: list[Compacted] = []
    for number, message in enumerate(messages):
        history.append(message)
        since += truth([message])
        if isinstance(message, ModelResponse):
            continue
        used = truth(history)
        planned = plan(history, used_tokens=used, limit_tokens=limit, meter=meter)
        if planned is None:
            continue
        if done:
            assert since >= GROWTH * limit * 0.5, "compressed again without real growth"
        result = await compact(planned, None)
        check_valid(result.history)
        # Numbers are those of the thread, so that `read_back` finds what is meant.
        assert contents(result.history[1:]) == contents(messages[result.last + 1 : number + 1])
        assert result.first == kept_originals
        kept_originals = result.last + 1
        history, since = result.history, 0
        done.append(result)
        again = plan(history, used_tokens=max(truth(history), limit), limit_tokens=limit, meter=meter)
        assert again is None, "a loop"
    return done, history


@given(seed=st.integers(0, 10_000), steps=st.sampled_from([1, 3, 40]), lines=st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_a_long_thread_is_compressed_again_and_again_and_never_twice_at_once(seed: int, steps: int, lines: int) -> None:
    long = conversation(seed, 6 * LIMIT, turn_steps=steps, lines=lines)
    done, history = asyncio.run(grow(LIMIT, long.messages))
    assert 2 <= len(done) <= 6 / GROWTH
    text = text_of(history)
    assert all(item in text for item in long.open_items)
    assert all(rule in text for rule in long.rules)
    assert all(one.tokens_after <= LIMIT for one in done)
    assert len(done[-1].segments.render()) < 6000


def test_the_framework_may_join_the_summary_with_the_first_request() -> None:
    """Guards the numbers of read_back across runs: a run's start joins neighbours that are both requests."""
    long = conversation(3, 8 * LIMIT, turn_steps=1)
    history: list[ModelMessage] = []
    dropped = 0
    for number, message in enumerate(long.messages):
        history.append(message)
        if isinstance(message, ModelRequest) and (
            planned := plan(history, used_tokens=truth(history), limit_tokens=LIMIT, meter=Meter())
        ):
            result = asyncio.run(compact(planned, None))
            assert result.first == dropped
            dropped = result.last + 1
            assert contents(result.history[-2:]) == contents(long.messages[number - 1 : number + 1])
            history = repair_messages(result.history)
    assert dropped > 20
    assert len(long.messages) - dropped in {len(history) - 1, len(history)}


def test_what_cannot_fit_is_said() -> None:
    huge: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart("word " * 9000)])]
    with pytest.raises(ContextFullError, match="nothing is lost"):
        planned_of(huge)
    short = conversation(1, 1000).messages
    with pytest.raises(ContextFullError):
        planned_of([*short, ModelRequest(parts=[UserPromptPart("word " * 9000)])])


def test_an_old_question_that_is_huge_is_cut_in_its_middle() -> None:
    long = conversation(5, LIMIT, turn_steps=30).messages
    history = [ModelRequest(parts=[UserPromptPart("Begin. " + "word " * 3000 + " End.")]), *long[1:]]
    planned = plan(history, used_tokens=truth(history), limit_tokens=truth(history), meter=Meter())
    assert planned is not None
    if planned.carried:
        assert str(planned.carried[0].content).startswith("Begin. ")
        assert len(str(planned.carried[0].content)) < 8000
    assert truth(asyncio.run(compact(planned, None)).history) < 0.5 * truth(history)


GOOD = {name: [f"{title}: the broker waits for the socket."] for name, title in TITLES}


class Script:
    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.schemas: list[Mapping[str, JsonValue]] = []

    async def __call__(self, told: str, schema: Mapping[str, JsonValue]) -> str:
        self.asked.append(told)
        self.schemas.append(schema)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_model_fills_the_segments_but_not_the_open_items() -> None:
    long = conversation(7, LIMIT)
    script = Script(json.dumps(GOOD))
    result = await compact(planned_of(long.messages, 2 * LIMIT, trigger=0.1), script)
    assert (result.by, result.reason) == ("model", "")
    assert GOOD["progress"][0] in result.segments.progress
    assert result.segments.open_items == long.open_items
    assert "open_items" not in script.schemas[0]["properties"]  # type: ignore[operator]  # JSON
    assert len(script.asked) >= 1


@pytest.mark.parametrize(
    "answer",
    [
        "rubbish",
        "[]",
        "{}",
        json.dumps({"progress": []}),
        json.dumps({"open_items": ["invented"]}),
        json.dumps(
            {"task_overview": ["2023-08-24T15:17", "user", "10"], "progress": ["Bananas were harvested yesterday."]}
        ),
        json.dumps({"progress": [f"{n} " + "x" * 590 for n in range(24)]}),
        RuntimeError("the engine died"),
    ],
)
async def test_when_the_model_fails_rules_do_it(answer: str | Exception) -> None:
    long = conversation(7, LIMIT)
    result = await compact(planned_of(long.messages), Script(answer))
    assert result.by == "rules"
    assert result.reason
    assert result.segments.open_items == long.open_items
    assert result.segments.task_overview


async def test_a_model_that_hangs_is_given_up() -> None:
    async def hang(_told: str, _schema: Mapping[str, JsonValue]) -> str:
        await asyncio.Event().wait()
        return ""

    result = await compact(planned_of(conversation(7, LIMIT).messages), hang, timeout_s=0.05)
    assert (result.by, "longer than" in result.reason) == ("rules", True)


async def test_a_head_that_is_longer_than_the_context_is_told_in_parts() -> None:
    long = conversation(9, 5 * LIMIT)
    script = Script(json.dumps(GOOD))
    planned = plan(long.messages, used_tokens=truth(long.messages), limit_tokens=LIMIT, meter=Meter(), target=0.1)
    assert planned is not None
    result = await compact(planned, script)
    assert result.by == "model"
    assert 2 <= len(script.asked) <= 6
    assert all(planned.cost_of(told) <= LIMIT for told in script.asked)
    assert "Known from before" in script.asked[-1]


def test_callers_list_of_open_items_counts_alone() -> None:
    long = conversation(7, LIMIT)
    planned = planned_of(long.messages, open_items=["only  this"])
    assert planned.open_items == ("only this",)


def test_rules_always_find_something() -> None:
    found = extract(conversation(11, LIMIT).messages)
    assert found.task_overview
    assert found.progress
    assert found.metadata
    assert extract([ModelRequest(parts=[UserPromptPart("你好")])]).task_overview == ("你好",)


@pytest.mark.parametrize(
    "text", ["a-" * 10_000, "- [ ] x" + " " * 20_000 + "y", "a/" * 10_000, "a.b" * 7000, "http://" * 3000]
)
def test_looking_for_lines_takes_bounded_time(text: str) -> None:
    async def look() -> None:
        async with asyncio.timeout(2):
            await asyncio.to_thread(
                extract, [ModelRequest(parts=[UserPromptPart(text)]), ModelResponse(parts=[TextPart(text)])]
            )

    asyncio.run(look())


def test_messages_that_are_read_back_are_told_up_to_a_length_and_where_to_go_on() -> None:
    long = list(enumerate(conversation(2, 1500).messages))
    whole = tell_back(Back(long[:2], len(long)))
    assert whole.startswith("[0] user: ")
    assert "[1] assistant" in whole
    assert tell_back(Back((), 3)).startswith("nothing fits; 3 messages")
    cut = tell_back(Back(long, len(long)), longest=400)
    assert len(cut) < 1000
    assert "go on with first=" in cut
    assert tell_back(Back(long[:1], len(long), goes_on=7)).endswith("[… go on with first=7]")


async def test_a_run_is_kept_inside_its_context() -> None:
    """The loop as it is wired: tools answer at length, the model's prompt never passes the limit."""
    meter, seen, told = Meter(), [], []

    def model(messages: Sequence[ModelMessage]) -> ModelResponse:
        seen.append(truth(messages) + 8)
        usage = RequestUsage(input_tokens=seen[-1], output_tokens=20)
        if len(seen) > 40:
            return ModelResponse(parts=[TextPart("done")], usage=usage)
        return ModelResponse(parts=[TextPart("I fixed one."), ToolCallPart("look", {"n": len(seen)})], usage=usage)

    made = Made(lambda _name, arguments: f"line {arguments['n']}\n" * 40)
    keep = KeepInContext(meter=meter, num_ctx=2048, reserve=512)
    look = ToolSpec("look", "", {"type": "object"})
    talk = dialogue(
        Speaking(model), made, [look], instructions="Be kind.", keeping=keep, tell=lambda name, _: told.append(name)
    )
    assert await talk.go("Look forty times.\n- [ ] tell the sum") == "done"
    assert max(seen) <= 2048 - 512
    assert 3 <= told.count("context.compressed") <= 20
    last = text_of(talk.history)
    assert "Look forty times." in last
    assert "tell the sum" in last
    assert talk.compacted
    assert 0 < talk.dropped < len(talk.fresh)  # each message once
    check_valid(talk.history)
    check_valid(talk.fresh)  # whoever keeps the thread keeps the originals
    assert len(talk.fresh) == 2 * len(seen)


async def test_a_run_is_refused_only_when_it_surely_does_not_fit() -> None:
    keep = KeepInContext(meter=Meter(), num_ctx=600, reserve=100)
    assert await dialogue(saying("ok"), keeping=keep).go("word " * 380) == "ok"  # over by the estimate alone
    with pytest.raises(ContextFullError):
        await dialogue(saying("ok"), keeping=keep).go("word " * 4000)
    nothing_left = KeepInContext(meter=Meter(), num_ctx=100, reserve=100)
    with pytest.raises(ContextFullError, match="max_output_tokens"):
        await dialogue(saying("ok"), keeping=nothing_left).go("Hi")
