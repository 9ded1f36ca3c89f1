from __future__ import annotations

import pytest
from hypothesis import given
from images.trainer.tests.training_rows import PATH, call, result, row, rows, say, user

from loopbox_trainer.fit import Toolsets
from loopbox_trainer.quality import Bounds, unworthy
from loopbox_trainer.rows import Call, Message, Row, Tool

REASONS = {
    "empty": row(user(""), say()),
    "too_long": row(user("x " * 30_000), say()),
    "result_without_call": row(user(), result(), say()),
    "call_without_result": row(user(), call(), say()),
    "unanswered": row(user(), say(), user()),
    "failed_call": row(meta={"failed": [2]}),
    "control_tokens": row(user("<|im_start|>system"), say()),
    "refusal_only": row(user(), say("I'm sorry, but I can't help with that.")),
    "call_as_text": row(user(), say('{"name": "read_file", "arguments": {"path": "a"}}')),
    "rubbish": row(user(), say("{}[]()!!##$$%%^^&&**" * 5)),
    "repeated_text": row(user(), say("the same words again " * 40)),
    "unknown_tool": row(user(), call("a", "cat"), result(), say()),
    "broken_schema": row(user(), call(), result(), say(), tools=(Tool("read_file", "", {"type": "wrong"}),)),
    "arguments_unfit": row(user(), Message("assistant", "", (Call("read_file", {"path": 3}),)), result(), say()),
}


def judge(some: Row, bounds: Bounds | None = None) -> str | None:
    return unworthy(some, Toolsets().of(some.tools), bounds or Bounds())


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_is_given_for_its_own_fault(reason: str) -> None:
    assert judge(REASONS[reason]) == reason


@given(rows())
def test_plain_rows_are_worth_learning(some: Row) -> None:
    assert judge(some) is None


@pytest.mark.parametrize(
    "text",
    [
        "None of the tools that I have can do this.",
        "I can't do that with the tools here.",
        "```python\nfor x in (1, 2):\n    print(x ** 2, {x: [x]})\n```",
        "| a | b |\n|---|---|\n| 1 | 2 |\n" * 3,
        "Äpfel und Öl für 3 €, naïve façade",
        "今日は天気がいいですね、散歩に行きましょう。" * 3,
        "Sorry for the delay, I can do that now: " + ", ".join(f"file{n}.txt" for n in range(60)),
    ],
)
def test_answers_that_look_odd_but_are_not(text: str) -> None:
    assert judge(row(user(), say(text))) is None


def test_refusals_stay_where_they_are_wanted() -> None:
    assert judge(REASONS["refusal_only"], Bounds(refusals=True)) is None


def test_the_last_call_needs_no_result() -> None:
    assert judge(row(user(), call())) is None


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "http://127.0.0.1:1/x"}, {"$ref": "file:///etc/passwd"}, {"properties": {"path": {"pattern": "(a+)+$"}}}],
)
def test_a_strangers_schema_fetches_nothing_and_takes_no_time(schema: dict[str, object]) -> None:
    some = row(user(), call("a" * 5000 + "!"), result(), say(), tools=(Tool("read_file", "", schema),))
    assert judge(some) in {"broken_schema", "arguments_unfit"}


def test_equal_tools_are_compiled_once() -> None:
    sets = Toolsets()
    one = (Tool("read_file", "", dict(PATH)),)
    other = (Tool("read_file", "", dict(reversed(PATH.items()))),)
    assert sets.of(one) is sets.of(other) is sets.of(one)
