"""tool_schema: owns the check and the slimming of a tool's argument schema before it meets a model or a validator.

A schema from a stranger can be huge, nest without end, point to other places, or hold a pattern that takes years to
match. Validating arguments against it happens on the event loop, so it is made harmless here, once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import jsonschema  # type: ignore[import-untyped]  # it ships no types
from pydantic import JsonValue

MAX_SCHEMA_BYTES = 32 << 10
MAX_DEPTH = 24
MAX_NODES = 4000  # with every reference put in its place
MAX_TEXT = 300  # characters of one description inside a schema
_NAMES = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})  # keys below are names, not keywords
_DEFINED = frozenset({"$defs", "definitions"})  # counted where they are referred to
_DATA = frozenset({"enum", "const", "default", "examples"})  # below are values, not schemas
_NOISE = frozenset({"title", "examples", "$comment", "$schema", "$id"})
#: A stranger's regular expressions can take for ever to match.
_DANGEROUS = frozenset({"pattern", "patternProperties", "propertyNames", "format", "$dynamicRef", "$recursiveRef"})


class SchemaRefusedError(Exception):
    """A schema that can't be used; the text says why."""


def plain_schema(schema: object, *, trusted: bool) -> dict[str, JsonValue]:
    """Return the schema slimmed for a prompt. Raises SchemaRefusedError.

    trusted: false also takes out what can take for ever to check.
    """
    if not isinstance(schema, dict):
        raise SchemaRefusedError("it has no argument schema")
    _depth(schema)
    if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise SchemaRefusedError(f"its argument schema has more than {MAX_SCHEMA_BYTES} bytes")
    if schema.get("type", "object") != "object":
        raise SchemaRefusedError("its arguments are not an object")
    dropped = _NOISE if trusted else _NOISE | _DANGEROUS
    made = _slim(schema, dropped)
    if not isinstance(made, dict):
        raise SchemaRefusedError("it has no argument schema")
    made["type"] = "object"
    made.setdefault("properties", {})
    try:
        jsonschema.Draft202012Validator.check_schema(made)
    except jsonschema.SchemaError as error:
        raise SchemaRefusedError(f"its argument schema is not valid: {error.message[:200]}") from error
    if _count(made, made, ()) > MAX_NODES:
        raise SchemaRefusedError(f"its argument schema grows to more than {MAX_NODES} parts")
    return made


def _depth(value: object) -> None:
    """Refuse deep nesting before anything recursive touches it."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
        ]
        if not level:
            return
    raise SchemaRefusedError(f"its argument schema nests deeper than {MAX_DEPTH}")


def _slim(value: JsonValue, dropped: frozenset[str], *, names: bool = False) -> JsonValue:
    if isinstance(value, list):
        return [_slim(item, dropped) for item in value]
    if not isinstance(value, dict):
        return value
    made: dict[str, JsonValue] = {}
    for key, inner in value.items():
        if not names and key in dropped:
            continue
        if not names and key == "description":
            made[key] = inner[:MAX_TEXT] if isinstance(inner, str) else ""
        elif not names and key in _DATA:
            made[key] = inner
        else:
            made[key] = _slim(inner, dropped, names=key in _NAMES and not names)
    return made


def _count(root: Mapping[str, JsonValue], value: JsonValue, path: tuple[str, ...], *, names: bool = False) -> int:
    """Return how many parts the schema has with each reference put in its place, MAX_NODES + 1 at most."""
    total = 1
    if isinstance(value, list):
        parts = [(part, False) for part in value]
    elif isinstance(value, dict):
        target = value.get("$ref")
        if isinstance(target, str) and not names:
            if target in path or len(path) > MAX_DEPTH:
                raise SchemaRefusedError("its argument schema contains itself, or refers too deep")
            total += _count(root, _resolve(root, target), (*path, target))
        skipped = frozenset() if names else _DEFINED | _DATA
        parts = [(part, key in _NAMES and not names) for key, part in value.items() if key not in skipped]
    else:
        return total
    for part, are_names in parts:
        if total > MAX_NODES:
            break
        total += _count(root, part, path, names=are_names)
    return min(total, MAX_NODES + 1)


def _resolve(root: Mapping[str, JsonValue], target: str) -> JsonValue:
    if not target.startswith("#"):
        raise SchemaRefusedError(f"its argument schema points to another place ({target[:80]})")
    at: JsonValue = dict(root)
    for step in filter(None, target[1:].split("/")):
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(at, dict) or name not in at:
            raise SchemaRefusedError(f"its argument schema points to nothing ({target[:80]})")
        at = at[name]
    return at
