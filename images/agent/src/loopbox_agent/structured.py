"""structured: owns answers under a caller's JSON schema: what the engine is bound by, and what the answer must be.

Two schemas: the caller's own, which the answer is checked against, and a narrower one that the engine generates
under. Engines build a grammar of it, which dies on long bounds (a maxLength over 2,000) and does not know every
keyword; and a small model seldom closes a string that has no end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from pydantic import JsonValue

from loopbox_agent.arguments import read_json, repair_json
from loopbox_agent.errors import AgentError
from loopbox_agent.schemas import VALIDATORS, SchemaUnfitError, check_schema

MAX_STRING: Final = 400  #: characters, where the schema sets no bound
LONGEST_STRING: Final = 2000  #: characters, whatever the schema says; engines die on more
MAX_ITEMS: Final = 64  #: of a list, where the schema sets no bound
MOST_ITEMS: Final = 256
LONGEST_ANSWER: Final = 262_144  #: characters
LONGEST_QUOTED: Final = 4000  #: characters of a wrong answer that the model is shown again
_KEPT: Final = frozenset({
    "type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems",
    "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum", "const",
    "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions",
})  # fmt: skip


class OutputInvalidError(AgentError):
    """The model's answer does not fit the schema that was asked for."""

    code: ClassVar[str] = "output_invalid"
    status: ClassVar[int] = 502


@dataclass(frozen=True, slots=True)
class Shape:
    """What an answer must be."""

    schema: Mapping[str, JsonValue]  #: the caller's own
    grammar: Mapping[str, JsonValue]  #: for the engine's ``format``


def plan_shape(schema: Mapping[str, JsonValue]) -> Shape:
    """Return the shape of a caller's schema. Raises SchemaUnfitError before anything is generated."""
    check_schema(schema)
    return Shape(dict(schema), grammar_of(schema))


def grammar_of(schema: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the schema for generation: known keywords only, every string and list with an end."""
    made = _bound(dict(schema))
    return made if isinstance(made, dict) else {}


def _bound(node: JsonValue) -> JsonValue:
    """Return a schema node; at a node that is no object (true, false) the node itself."""
    if not isinstance(node, dict):
        return node
    made: dict[str, JsonValue] = {}
    for key, value in node.items():
        if key not in _KEPT:
            continue
        match value:
            case dict() if key in {"properties", "$defs", "definitions"}:
                made[key] = {name: _bound(child) for name, child in value.items()}
            case dict() if key in {"items", "additionalProperties"}:
                made[key] = _bound(value)
            case list() if key in {"anyOf", "oneOf", "allOf", "prefixItems"}:
                made[key] = [_bound(child) for child in value]
            case _:
                made[key] = value
    kinds = node.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    free = not {"enum", "const"} & set(node)
    if "string" in kinds and free:
        _clamp(made, "minLength", "maxLength", MAX_STRING, LONGEST_STRING)
    if "array" in kinds and free:
        _clamp(made, "minItems", "maxItems", MAX_ITEMS, MOST_ITEMS)
    return made


def _clamp(made: dict[str, JsonValue], least: str, most: str, usual: int, highest: int) -> None:
    low = made.get(least)
    if isinstance(low, int) and low > highest:
        raise SchemaUnfitError(f"{least} is {low}, {highest} is the most an engine can be bound to; nothing was run.")
    high = made.get(most, max(usual, low) if isinstance(low, int) else usual)
    made[most] = min(high, highest) if isinstance(high, int) else usual


def read_output(shape: Shape, text: str) -> JsonValue:
    """Return the answer that fits the schema, mended once if it is broken JSON. Raises OutputInvalidError."""
    value = read_json(text, longest=LONGEST_ANSWER)
    if value is None and text.strip() != "null":
        value = repair_json(_unfenced(text))
        if value is None:
            raise OutputInvalidError("The model's answer is no JSON; nothing was kept of it.")
    if (problem := VALIDATORS.problem(shape.schema, value)) is not None:
        raise OutputInvalidError(f"The model's answer does not fit the schema: {problem}; nothing was kept of it.")
    return value


def _unfenced(text: str) -> str:
    """Return what stands between the fences that models like to put around JSON."""
    words = text.strip()
    if words.startswith("```") and words.endswith("```") and "\n" in words:
        words = words[words.index("\n") + 1 : -3].strip()
    return words


def word_repair(text: str, problem: str) -> str:
    """Return what the model is told for its one repair."""
    return (
        f"Your last answer cannot be used. {problem}\nYour answer was:\n{text[:LONGEST_QUOTED]}\n"
        "Answer again with the JSON alone, so that it fits the schema."
    )


async def settle_output(shape: Shape, text: str, ask: Callable[[str], Awaitable[str]]) -> JsonValue:
    """Return the answer that fits, after one repair turn at most. Raises OutputInvalidError.

    ask: given what to tell the model, returns its next answer, generated under ``shape.grammar``.
    """
    try:
        return read_output(shape, text)
    except OutputInvalidError as error:
        again = await ask(word_repair(text, str(error)))
    try:
        return read_output(shape, again)
    except OutputInvalidError as error:
        raise OutputInvalidError(
            f"{error} It was asked twice. Make the schema simpler, or say in the instruction what each field holds."
        ) from error
