"""What the golden prompts tell broken weights by; the figures are those that the real engine gave."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopd.golden import SCHEMA, Token, judge, judge_bound


def said(*texts: str, logprob: float = -0.8) -> tuple[str, list[Token]]:
    return "".join(texts), [Token(text, logprob) for text in texts]


LIVELY = said(*["The", "ocean", "is", "a", "vast", "and", "mysterious", "realm", "teeming", "with", "life"])


def test_a_lively_answer_and_a_short_one_pass() -> None:
    assert judge(*LIVELY) == ""
    assert judge(*said("4")) == ""
    assert judge(*said("4", logprob=-2.4)) == ""


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (("", []), "no token"),
        (said(*["&"] * 31, logprob=-5.56), "guesses"),
        (said(*["6"] * 31, logprob=-0.01), "31 times in a row"),
        (said(*"GGPGGGGGGGGGGGG", logprob=-1.0), "times in a row"),
        (said(*["a", "b"] * 16), "goes round in circles"),
        (said("\ufffd", "a", "\ufffd", "\x00"), "unreadable"),
        (said("a", "b", logprob=math.nan), "no probabilities"),
        (said("a", "b", logprob=math.inf), "no probabilities"),
        (said(*LIVELY[0], logprob=-2.65), "guesses"),
        (said("x", logprob=-5.33), "guesses"),
    ],
)
def test_broken_weights_show_in_their_answers(answer: tuple[str, list[Token]], words: str) -> None:
    assert words in judge(*answer)


@given(st.lists(st.tuples(st.text(max_size=4), st.floats())))
def test_any_answer_gets_a_verdict(tokens: list[tuple[str, float]]) -> None:
    """A model chooses these values: no answer may crash its judge."""
    assert isinstance(judge("".join(text for text, _ in tokens), [Token(*token) for token in tokens]), str)


@pytest.mark.parametrize("text", ['{"ok": true}', '{\n"ok"\n:false}'])
def test_an_answer_that_obeys_the_schema_passes(text: str) -> None:
    assert SCHEMA["required"] == ["ok"]
    assert judge_bound(text) == ""


@pytest.mark.parametrize("text", ["", "null", "[]", '{"ok": 1}', '{"ok": true, "x": 1}', '{"ok": tru', "1e999"])
def test_an_answer_that_does_not_is_named(text: str) -> None:
    assert judge_bound(text)
