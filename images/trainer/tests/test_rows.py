from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from images.trainer.tests.training_rows import row, rows

from loopbox_trainer.rows import MOST_MESSAGES, MOST_ROW_BYTES, Row, RowError, encode, parse_json, parse_row

USER = {"role": "user", "content": "hi"}
BASE: dict[str, Any] = {"messages": [USER, {"role": "assistant", "content": "hello"}], "outcome": "good", "meta": {}}


@given(rows())
def test_a_row_is_read_as_it_was_written(made: Row) -> None:
    assert parse_row(encode(made)) == made


def test_the_content_is_written_even_when_it_is_empty() -> None:
    assert json.loads(encode(row()))["messages"][1]["content"] == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"messages": [USER] * (MOST_MESSAGES + 1)}, "not_a_row"),
        ({"messages": []}, "not_a_row"),
        ({"messages": [{**USER, "tool_calls": [{"name": "x", "arguments": {}}]}]}, "not_a_row"),
        ({"messages": [{**USER, "name": "x"}]}, "not_a_row"),
        ({"messages": [{"role": "robot", "content": ""}]}, "not_a_row"),
        ({"tools": [{"name": "x"}, {"name": "x"}]}, "not_a_row"),
        ({"tools": [{"name": f"x{n}"} for n in range(65)]}, "not_a_row"),
        ({"surprise": 1}, "not_a_row"),
        ({"weight": -1}, "not_a_row"),
        ({"id": "no hex"}, "not_a_row"),
        ({"meta": {"big": "x" * MOST_ROW_BYTES}}, "too_large"),
    ],
)
def test_what_is_no_row_is_refused_with_its_reason(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as told:
        parse_row(json.dumps(BASE | change).encode())
    assert told.value.reason == reason


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_bytes_of_any_kind_are_a_row_or_a_row_error(line: bytes) -> None:
    try:
        parse_row(line)
    except RowError as error:
        assert error.reason in {"broken_json", "not_a_row", "too_large"}  # noqa: PT017 either way is fine


def test_a_value_nested_without_end_is_broken() -> None:
    with pytest.raises(RowError, match="broken_json"):
        parse_json(b"[" * 200_000)


def test_half_a_character_cannot_be_written() -> None:
    with pytest.raises(RowError, match="not_text"):
        encode(row(row().messages[0], meta={"x": "\ud800"}))
