"""What a model gave for a tool: read, mended once, checked, asked again once."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loopbox_agent.arguments import ArgumentsInvalidError, fit_arguments, read_json, repair_json
from loopbox_agent.schemas import SchemaUnfitError, Validators, check_schema

SCHEMA: dict[str, Any] = {  # Any: JSON
    "type": "object",
    "properties": {
        "path": {"type": "string", "minLength": 1},
        "line": {"type": "integer", "minimum": 1},
        "deep": {"type": "object", "properties": {"on": {"type": "boolean"}}},
        "tags": {"type": "array", "items": {"type": "number"}},
    },
    "required": ["path"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("given_arguments", "wanted"),
    [
        ({"path": "a"}, {"path": "a"}),
        ('{"path": "a", "line": 2}', {"path": "a", "line": 2}),
        ("{'path': 'a', 'line': 2,}", {"path": "a", "line": 2}),
        ('{"path": "a"', {"path": "a"}),
        ({"path": "a", "line": "12"}, {"path": "a", "line": 12}),
        (
            {"path": "a", "deep": '{"on": "True"}', "tags": ["1", 2.5]},
            {"path": "a", "deep": {"on": True}, "tags": [1, 2.5]},
        ),
        ({"path": "a", "line": None}, {"path": "a"}),
    ],
)
def test_arguments_are_mended_once(given_arguments: Any, wanted: Any) -> None:  # Any: JSON
    assert fit_arguments("edit", SCHEMA, given_arguments) == wanted


@pytest.mark.parametrize(
    ("given_arguments", "word"),
    [
        ("no json", "not a JSON object"),
        ("[1]", "not a JSON object"),
        (None, "path"),
        ({"path": ""}, "path"),
        ({"path": "a", "line": "twelve"}, "line"),
        ({"path": "a", "line": "true"}, "line"),
        ({"path": "a", "other": 1}, "other"),
        ("{" * 100_000, "not a JSON object"),
        ('{"path": ' + "[" * 300 + "]" * 300 + "}", "not a JSON object"),
        ("x" * 300_000, "not a JSON object"),
    ],
)
def test_what_does_not_fit_is_said(given_arguments: Any, word: str) -> None:  # Any: JSON
    with pytest.raises(ArgumentsInvalidError, match="nothing was run") as caught:
        fit_arguments("edit", SCHEMA, given_arguments)
    assert word in str(caught.value)


FENCED = st.lists(st.sampled_from(["{", "}", '"', ":", ",", "```json", "```", "\n", "a"]), max_size=16).map("".join)


@given(st.text(max_size=60) | st.text(alphabet='{}[]":,\\n 1a', max_size=60) | FENCED)
@example('{"```json```{')  # trips an assertion of the library's
def test_no_text_breaks_the_reading(text: str) -> None:
    read = read_json(text)
    assert repair_json(text) == read or read is None


@pytest.mark.parametrize(
    "text", ['{"a": "' * 9000, '{"a":' + '"' * 60_000, "{" + "'a': " * 12_000, '{"a": ' + "1," * 30_000]
)
def test_mending_takes_bounded_time(text: str) -> None:
    begun = time.perf_counter()
    repair_json(text)
    assert time.perf_counter() - begun < 3


BOMB: dict[str, Any] = {  # Any: JSON
    "$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)} | {"d40": {"type": "string"}},
    "$ref": "#/$defs/d0",
}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"properties": {"a": {"$ref": "#/$defs/none"}}},
        {"$ref": "#"},
        {"$defs": {"a": {"properties": {"next": {"$ref": "#/$defs/a"}}}}, "$ref": "#/$defs/a"},
        BOMB,
        {"properties": {f"p{n}": {} for n in range(600)}},
        {"description": "x" * 40_000},
        {"pattern": "(?=a)b"},
        {"pattern": "(a"},
        {"patternProperties": {"(a+)+$": {}}},
        {"type": "nothing"},
        {"type": 5},
        {"$dynamicRef": "#a"},
    ],
)
def test_a_schema_that_asks_too_much_is_refused(schema: Any) -> None:  # Any: JSON
    with pytest.raises(SchemaUnfitError):
        check_schema(schema)


def test_a_schema_nests_as_deep_as_is_allowed() -> None:
    schema: Any = {}  # Any: JSON
    for _ in range(30):
        schema = {"items": schema}
    with pytest.raises(SchemaUnfitError, match="deeper"):
        check_schema(schema)


def test_patterns_and_uniqueness_need_linear_time() -> None:
    """Guards against a pattern that backtracks for hours, and lists compared each with each."""
    validators = Validators()
    begun = time.perf_counter()
    assert validators.problem({"type": "string", "pattern": "^(a+)+$"}, "a" * 50_000 + "b") is not None
    assert validators.problem({"type": "string", "pattern": "^(a+)+$"}, "aaa") is None
    many: list[Any] = [{"n": n} for n in range(20_000)]  # Any: JSON
    assert validators.problem({"uniqueItems": True}, [*many]) is None
    assert validators.problem({"uniqueItems": True}, [*many, {"n": 1}]) is not None
    assert time.perf_counter() - begun < 3


def test_compiled_schemas_are_few() -> None:
    validators = Validators(most=4)
    for number in range(20):
        assert validators.problem({"const": number}, number) is None
    assert len(validators) == 4
