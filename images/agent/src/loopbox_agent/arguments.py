"""arguments: owns the reading, mending and checking of the arguments that a model gave for a tool.

A model gets one mending that changes no meaning (broken JSON closed, "5" for 5 where a number is wanted), then one
word about what does not fit, then an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from json_repair import loads as mend
from pydantic import JsonValue
from pydantic_core import from_json

from loopbox_agent.errors import AgentError
from loopbox_agent.schemas import VALIDATORS, SchemaUnfitError

LONGEST: Final = 262_144  #: characters of arguments that are read at all
LONGEST_MENDED: Final = 65_536  #: characters; mending reads slower than parsing
MAX_NESTING: Final = 64
MAX_MENDED_DEPTH: Final = 8  #: levels below the arguments where types are mended


class ArgumentsInvalidError(AgentError):
    """The arguments given for a tool do not fit its schema."""

    code: ClassVar[str] = "arguments_invalid"
    status: ClassVar[int] = 422


def read_json(text: str, *, longest: int = LONGEST) -> JsonValue | None:
    """Return what JSON says, None when it is none, is null, nests too deep, or is longer than so many characters."""
    if len(text) > longest:
        return None
    try:
        read: JsonValue = from_json(text, allow_inf_nan=False)
    except ValueError:
        return None
    return read if _nests(read) else None


def repair_json(text: str) -> JsonValue | None:
    """Return what JSON says, mended once if it is broken; None when nothing can be made of it."""
    if (read := read_json(text)) is not None:
        return read
    if len(text) > LONGEST_MENDED or _deep(text) or text.strip() in {"", "null"}:
        return None
    try:
        mended: Any = mend(text, skip_json_loads=True)  # Any: the library's own union; looked at below
    except Exception:  # noqa: BLE001  a model wrote the text: whatever the library trips over, it is not mended
        return None
    # The library answers '' for text that holds no JSON at all; and it would make lists out of prose.
    whole: JsonValue = mended if isinstance(mended, dict | list) else None
    return whole if whole is not None and text.lstrip()[:1] in {"{", "["} and _nests(whole) else None


def _deep(text: str) -> bool:
    """Tell roughly whether a text opens more brackets than any honest arguments: mending recurses into each."""
    depth = deepest = 0
    for character in text:
        if character in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}]":
            depth -= 1
    return deepest > MAX_NESTING


def _nests(value: JsonValue) -> bool:
    waiting = [(value, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > MAX_NESTING:
            return False
        if isinstance(node, dict):
            waiting.extend((item, depth + 1) for item in node.values())
        elif isinstance(node, list):
            waiting.extend((item, depth + 1) for item in node)
    return True


def fit_arguments(
    name: str, schema: Mapping[str, JsonValue], given: str | Mapping[str, JsonValue] | None
) -> dict[str, JsonValue]:
    """Return the arguments as the schema wants them. Raises ArgumentsInvalidError saying where they do not fit.

    They are taken as they are when they fit; else their types are mended and they are looked at once more.
    """
    read = repair_json(given) if isinstance(given, str) and given.strip() else (given or {})
    if not isinstance(read, Mapping):
        raise ArgumentsInvalidError(f"{name}: the arguments are not a JSON object; nothing was run.")
    arguments = dict(read)
    try:
        problem = VALIDATORS.problem(schema, arguments)
        if problem is None:
            return arguments
        mended = _mended(dict(schema), arguments, 0)
        if isinstance(mended, dict) and mended != arguments and VALIDATORS.problem(schema, mended) is None:
            return mended
    except SchemaUnfitError as error:
        raise ArgumentsInvalidError(f"{name}: its schema cannot be checked: {error}") from error
    raise ArgumentsInvalidError(f"{name}: {problem}; nothing was run.")


def _mended(schema: JsonValue, value: JsonValue, depth: int) -> JsonValue:
    """Return the value with the types that the schema names, where the text leaves no doubt."""
    if not isinstance(schema, dict) or depth > MAX_MENDED_DEPTH:
        return value
    wanted = schema.get("type")
    if isinstance(value, str) and isinstance(wanted, str):
        return _typed(schema, wanted, value, depth)
    if isinstance(value, dict):
        named = schema.get("properties")
        required = schema.get("required")
        return {
            key: _mended(named.get(key) if isinstance(named, dict) else None, item, depth + 1)
            for key, item in value.items()
            # A null for what may be left out means that it is left out.
            if item is not None or (isinstance(required, list) and key in required)
        }
    if isinstance(value, list):
        return [_mended(schema.get("items"), item, depth + 1) for item in value]
    return value


def _typed(schema: dict[str, JsonValue], wanted: str, value: str, depth: int) -> JsonValue:
    match wanted:
        case "integer" | "number" | "boolean":
            read = read_json(value.strip().lower(), longest=40)
            right = isinstance(read, bool) if wanted == "boolean" else not isinstance(read, bool)
            return read if isinstance(read, bool | int | float) and right else value
        case "object" | "array":
            read = repair_json(value)
            return value if read is None else _mended(schema, read, depth + 1)
        case _:
            return value
