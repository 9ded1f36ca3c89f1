"""What the model is reminded of: each thing when it is so, not too often, never too much."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox_agent.loop_watch import LoopWatch, call_key
from loopbox_agent.reminders import MOST_CHARACTERS, CallSeen, Limits, Told, TurnFacts, as_text, plan_reminders


def kinds(facts: TurnFacts, told: Told | None = None) -> list[str]:
    return [reminder.kind for reminder in plan_reminders(facts, told or Told())[0]]


def call(tool: str = "bash", key: str = "", failure: str = "") -> CallSeen:
    return CallSeen(tool, key or f"{tool}:1", failure, "Look for what there is." if failure else "")


BAD = call(failure="not_found")
DIFFERENT = [replace(BAD, key=f"bash:{number}") for number in range(3)]


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (TurnFacts(turn=1), []),
        (TurnFacts(turn=1, left_s=300, total_s=300), []),
        (TurnFacts(turn=1, left_s=59, total_s=300), ["time"]),
        (TurnFacts(turn=1, left_s=19), ["time"]),
        (TurnFacts(turn=1, left_s=21), []),
        (TurnFacts(turn=1, tokens=84, most_tokens=100), []),
        (TurnFacts(turn=1, tokens=85, most_tokens=100), ["budget"]),
        (TurnFacts(turn=1, tokens=85), []),
        (TurnFacts(turn=1, calls=[call(key=f"bash:{n}") for n in range(9)], most_calls=10), ["budget"]),
        (TurnFacts(turn=1, made=9, calls=[call()], most_calls=10), ["budget"]),
        (TurnFacts(turn=1, calls=[call()] * 2), []),
        (TurnFacts(turn=1, calls=[call()] * 3), ["loop"]),
        (TurnFacts(turn=1, calls=[call(), call("read_file"), call(), call("read_file"), call()]), ["loop"]),
        (TurnFacts(turn=1, calls=[call()] * 3 + [call("python")]), []),  # it went on to something else
        (TurnFacts(turn=1, calls=DIFFERENT[:2]), []),
        (TurnFacts(turn=1, calls=DIFFERENT), ["errors"]),
        (TurnFacts(turn=1, calls=[*DIFFERENT[:2], call("python"), DIFFERENT[2]]), ["errors"]),
        (TurnFacts(turn=1, calls=[*DIFFERENT[:2], call(), DIFFERENT[2]]), []),  # it worked between
        (TurnFacts(turn=1, calls=[*DIFFERENT[:2], call(failure="timeout")]), []),
        (TurnFacts(turn=1, calls=[*DIFFERENT, call("python")]), []),
        (TurnFacts(turn=1, dropped=12, read_back="read_thread"), ["compression"]),
        (TurnFacts(turn=1, notes=["likes tea"]), ["memory"]),
        (
            TurnFacts(turn=1, left_s=1, tokens=9, most_tokens=9, calls=[BAD] * 3, dropped=1, notes=["x"]),
            ["time", "budget", "loop", "errors", "compression", "memory"],
        ),
    ],
)
def test_each_thing_is_told_when_it_is_so(facts: TurnFacts, wanted: list[str]) -> None:
    assert kinds(facts) == wanted


def test_each_is_told_once_in_some_turns() -> None:
    told = Told()
    seen = []
    for turn in range(1, 13):
        due, told = plan_reminders(TurnFacts(turn=turn, notes=["x"], left_s=1 if turn > 2 else None), told)
        seen.append([reminder.kind for reminder in due])
    assert [turn for turn, due in enumerate(seen, 1) if "memory" in due] == [1, 6, 11]
    assert [turn for turn, due in enumerate(seen, 1) if "time" in due] == [3, 8]


def test_the_words_say_what_to_do_and_who_says_so() -> None:
    text = as_text(plan_reminders(TurnFacts(turn=1, calls=DIFFERENT, dropped=4, read_back="recall"), Told())[0])
    assert text.startswith("[reminder from the system, not from the user]\n- bash failed 3 times")
    assert "Look for what there is." in text
    assert "read it back with recall" in text
    assert as_text(()) == ""


SEEN = st.builds(CallSeen, st.text(max_size=80), st.text(max_size=4), st.text(max_size=12), st.text(max_size=900))


@given(
    facts=st.builds(
        TurnFacts,
        turn=st.integers(1, 100),
        left_s=st.none() | st.floats(0, 1e5),
        total_s=st.none() | st.floats(0, 1e5),
        tokens=st.integers(0, 10**9),
        most_tokens=st.none() | st.integers(1, 10**6),
        calls=st.lists(SEEN, max_size=30),
        most_calls=st.none() | st.integers(1, 30),
        notes=st.lists(st.text(max_size=300), max_size=20),
        dropped=st.integers(0, 10**6),
        read_back=st.text(max_size=100),
    ),
    told=st.builds(
        Told, st.dictionaries(st.sampled_from(["time", "budget", "loop", "errors", "memory"]), st.integers(1, 100))
    ),
    every=st.integers(1, 9),
)
def test_whatever_is_so_it_stays_short_and_the_same(facts: TurnFacts, told: Told, every: int) -> None:
    limits = Limits(every_turns=every)
    due, after = plan_reminders(facts, told, limits)
    assert (due, after) == plan_reminders(facts, told, limits)
    assert sum(len(reminder.text) for reminder in due) <= MOST_CHARACTERS
    assert len({reminder.kind for reminder in due}) == len(due)
    for reminder in due:
        assert "\n" not in reminder.text
        assert facts.turn - told.turns.get(reminder.kind, -every) >= every
        assert after.turns[reminder.kind] == facts.turn


def test_equal_calls_have_equal_keys_whatever_the_order() -> None:
    assert call_key("a", {"x": 1, "y": [1, 2]}) == call_key("a", {"y": [1, 2], "x": 1})
    assert len({call_key("a", {"x": 1}), call_key("b", {"x": 1}), call_key("a", {"x": "1"}), call_key("a", {})}) == 4
    assert call_key("a", {"x": "\ud800"})  # a lone surrogate, which models write


def test_a_loop_is_looked_for_among_the_last_calls_only() -> None:
    watch = LoopWatch(window=4)
    assert [watch.note("a", {}) for _ in range(6)] == [1, 2, 3, 4, 4, 4]
    assert [watch.note("b", {"n": n}) for n in range(2)] == [1, 1]
    assert watch.note("a", {}) == 2  # this, and one of the three before
