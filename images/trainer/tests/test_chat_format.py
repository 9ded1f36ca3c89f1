from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox_trainer.chat_format import (
    END,
    IGNORED,
    Call,
    Message,
    Span,
    UnfitError,
    encode,
    go_json,
    message_of,
    preface,
    tool_json,
    turns,
)

PLAIN = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    PLAIN | st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


class Letters:
    """A tokenizer with one token for each letter."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) for letter in text]


@given(JSON)
def test_what_is_written_is_the_same_json(value: object) -> None:
    # Every number is one float64 there.
    assert json.loads(go_json(value), parse_int=float) == json.loads(json.dumps(value), parse_int=float)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (5.0, "5"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (1e-6, "0.000001"),
        (1e-7, "1e-7"),
        (-0.0, "-0"),
        (0.1, "0.1"),
        ({"b": 1, "a": "<&>"}, r'{"a":"\u003c\u0026\u003e","b":1}'),
    ],
)
def test_numbers_and_text_are_written_as_the_engine_writes_them(value: object, text: str) -> None:
    assert go_json(value) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {"a": {1}}])
def test_what_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(UnfitError):
        go_json(value)


def test_exactly_what_assistants_write_is_learnt_with_its_end() -> None:
    said = [Message("user", "u"), Message("assistant", "a", (Call("f", {"x": 1}),)), Message("tool", "t")]
    tokens, labels = encode([Span(preface(said, [{"name": "f"}])), *turns(said)], Letters())
    learnt = "".join(chr(label) for label in labels if label != IGNORED)
    assert learnt == 'a\n<tool_call>\n{"name": "f", "arguments": {"x":1}}\n</tool_call>' + END
    assert "".join(map(chr, tokens)).endswith(learnt)  # what follows the last of it is not read


def test_calls_that_the_engine_would_lose_are_refused() -> None:
    with pytest.raises(UnfitError, match="lose the calls"):
        list(turns([Message("assistant", "a"), Message("assistant", "", (Call("f", {}),))]))


@pytest.mark.parametrize(
    "told", [{}, {"role": "assistant", "tool_calls": [{"name": "f"}]}, {"role": "a", "tool_calls": 3}]
)
def test_a_message_of_another_form_is_refused(told: dict[str, object]) -> None:
    with pytest.raises(UnfitError):
        message_of(told)


@pytest.mark.parametrize("parameters", [[], {"properties": {"a": True}}, "x"])
def test_a_schema_that_the_engine_refuses_is_refused(parameters: object) -> None:
    if parameters == []:
        assert '"properties":null' in tool_json({"name": "f", "parameters": parameters})
        return
    with pytest.raises(UnfitError):
        tool_json({"name": "f", "parameters": parameters})
