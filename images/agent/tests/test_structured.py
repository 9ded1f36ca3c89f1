"""Answers under a caller's schema: what the engine is bound by, what is accepted, and the one repair."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopbox_agent.schemas import SchemaUnfitError
from loopbox_agent.structured import (
    LONGEST_STRING,
    MAX_STRING,
    OutputInvalidError,
    plan_shape,
    read_output,
    settle_output,
)

SCHEMA: dict[str, Any] = {  # Any: JSON
    "title": "City",
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z]"},
        "notes": {"type": "string", "maxLength": 100_000},
        "tags": {"type": ["array", "null"], "items": {"type": "string", "format": "uri"}},
        "kind": {"type": "string", "enum": ["big", "small"]},
    },
    "required": ["name"],
}


def test_the_grammar_has_ends_and_the_answer_is_held_to_the_original() -> None:
    shape = plan_shape(SCHEMA)
    assert shape.grammar == {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": MAX_STRING},
            "notes": {"type": "string", "maxLength": LONGEST_STRING},
            "tags": {"type": ["array", "null"], "items": {"type": "string", "maxLength": MAX_STRING}, "maxItems": 64},
            "kind": {"type": "string", "enum": ["big", "small"]},
        },
        "required": ["name"],
    }
    assert read_output(shape, '{"name": "Paris", "notes": "' + "x" * 5000 + '"}')
    with pytest.raises(OutputInvalidError):
        read_output(shape, '{"name": "paris"}')


@pytest.mark.parametrize(
    "text", ['```json\n{"name": "Paris"}\n```', "{'name': 'Paris'}", '{"name": "Paris"', '{"name": "Paris"}']
)
def test_broken_json_is_mended(text: str) -> None:
    assert read_output(plan_shape(SCHEMA), text) == {"name": "Paris"}


def test_null_is_an_answer_where_it_is_allowed() -> None:
    assert read_output(plan_shape({"type": ["null", "string"]}), " null ") is None


@pytest.mark.parametrize("schema", [{"type": "string", "minLength": 5000}, {"type": "array", "minItems": 10_000}])
def test_what_no_engine_can_be_bound_to_is_refused_first(schema: Any) -> None:  # Any: JSON
    with pytest.raises(SchemaUnfitError):
        plan_shape(schema)


NODES = st.recursive(
    st.sampled_from(
        [{"type": "string"}, {"type": "integer"}, True, {"type": "string", "maxLength": 9999}, {"const": 1}]
    ),
    lambda inner: (
        st.fixed_dictionaries({"type": st.just("array"), "items": inner})
        | st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(st.text(max_size=4), inner, max_size=3)}
        )
        | st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)})
    ),
    max_leaves=12,
)


@given(NODES)
@settings(deadline=None)
def test_no_string_and_no_list_is_without_an_end(node: Any) -> None:  # Any: JSON
    def look(made: Any) -> None:  # Any: JSON
        if isinstance(made, dict):
            if made.get("type") == "string":
                assert made["maxLength"] <= LONGEST_STRING
            if made.get("type") == "array":
                assert made["maxItems"] <= 256
            for child in made.values():
                look(child)
        elif isinstance(made, list):
            for child in made:
                look(child)

    look(dict(plan_shape({"properties": {"root": node}}).grammar))


async def test_one_repair_turn_then_a_clear_error() -> None:
    shape, asked = plan_shape(SCHEMA), []

    async def ask(told: str) -> str:
        asked.append(told)
        return answers.pop(0)

    answers = ['{"name": "Rome"}']
    assert await settle_output(shape, '{"name": 5}', ask) == {"name": "Rome"}
    assert "name" in asked[0]
    answers = ["what?", '{"name": "Rome"}']
    with pytest.raises(OutputInvalidError) as caught:
        await settle_output(shape, "rubbish", ask)
    assert (caught.value.code, caught.value.status, len(asked)) == ("output_invalid", 502, 2)
