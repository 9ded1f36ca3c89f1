"""schemas: owns the checking of JSON schemas that strangers write, and of values against them, in bounded time. Pure.

A schema is code: a reference can fetch, a pattern can backtrack for hours, nested alternatives can multiply. So a
schema is measured before it is used; patterns run on an engine that needs linear time; no reference leaves the
schema or comes back to itself.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Final

import jsonschema  # type: ignore[import-untyped]  # it ships no types
from pydantic import JsonValue
from pydantic_core import SchemaError, SchemaValidator, ValidationError, core_schema
from referencing import Registry

from loopbox_agent.errors import AgentError

MAX_BYTES: Final = 32_768
MAX_DEPTH: Final = 24  #: nesting of the schema's own JSON
MAX_PROPERTIES: Final = 512
MAX_EXPANDED: Final = 10_000  #: subschemas when every reference is written out
MAX_PATTERN: Final = 512  #: characters
MAX_TOLD: Final = 300  #: characters of a validator's words
_REFERENCES: Final = ("$ref",)
_REFUSED: Final = ("$dynamicRef", "$recursiveRef", "$id", "$anchor", "$dynamicAnchor", "patternProperties")


class SchemaUnfitError(AgentError):
    """A schema asks for more than is done for anybody."""

    code: ClassVar[str] = "schema_unfit"
    status: ClassVar[int] = 422


def check_schema(schema: Mapping[str, JsonValue]) -> None:
    """Measure a schema. Raises SchemaUnfitError saying where it is too much or wrong."""
    try:
        size = len(json.dumps(schema).encode())
    except (ValueError, RecursionError, TypeError) as error:
        raise SchemaUnfitError(f"The schema is no JSON ({error}); nothing was run.") from error
    if size > MAX_BYTES:
        raise SchemaUnfitError(f"The schema has {size} bytes, {MAX_BYTES} are allowed; nothing was run.")
    _measure(schema)
    _expand(dict(schema))
    try:
        jsonschema.Draft202012Validator.check_schema(dict(schema))
    except jsonschema.SchemaError as error:
        where = "/".join(str(step) for step in error.absolute_path) or "schema"
        raise SchemaUnfitError(f"The schema is none: {where}: {error.message[:MAX_TOLD]}; nothing was run.") from error


def _measure(schema: Mapping[str, JsonValue]) -> None:
    properties = 0
    waiting: list[tuple[JsonValue, int]] = [(dict(schema), 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise SchemaUnfitError(f"The schema nests deeper than {MAX_DEPTH} levels; nothing was run.")
        if isinstance(node, list):
            waiting.extend((item, depth + 1) for item in node)
        if not isinstance(node, dict):
            continue
        waiting.extend((item, depth + 1) for item in node.values())
        if isinstance(named := node.get("properties"), dict):
            properties += len(named)
        if properties > MAX_PROPERTIES:
            raise SchemaUnfitError(f"The schema has more than {MAX_PROPERTIES} properties; nothing was run.")


def _expand(root: dict[str, JsonValue]) -> None:
    """Count the subschemas as if every reference were written out."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: JsonValue) -> int:
        if isinstance(node, list):
            return sum(size(item) for item in node)
        if not isinstance(node, dict):
            return 0
        if id(node) in open_nodes:
            raise SchemaUnfitError("The schema refers to itself, which is not supported; nothing was run.")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            total = 1 + sum(size(child) for child in _children(node, root))
            if total > MAX_EXPANDED:
                raise SchemaUnfitError(f"The schema has more than {MAX_EXPANDED} parts written out; nothing was run.")
            open_nodes.discard(id(node))
            sizes[id(node)] = total
        return sizes[id(node)]

    size(root)


#: Keywords whose value is one schema, a list of them, or a mapping of names to them. What stands under any other
#: keyword (a default, an example, an enum) is data.
_ONE: Final = (
    "items", "contains", "additionalProperties", "propertyNames", "not", "if", "then", "else",
    "unevaluatedItems", "unevaluatedProperties", "contentSchema",
)  # fmt: skip
_MANY: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED: Final = ("properties", "dependentSchemas")


def _children(node: dict[str, JsonValue], root: dict[str, JsonValue]) -> Iterator[JsonValue]:
    for refused in _REFUSED:
        if refused in node:
            raise SchemaUnfitError(f"The schema uses {refused}, which is not supported; nothing was run.")
    if isinstance(pattern := node.get("pattern"), str):
        _compiled(pattern)
    for reference in _REFERENCES:
        if (pointer := node.get(reference)) is not None:
            yield _target(pointer, root)
    for key in _ONE:
        if key in node:
            yield node[key]
    for key in _MANY:
        yield from value if isinstance(value := node.get(key), list) else ()
    for key in _NAMED:
        yield from value.values() if isinstance(value := node.get(key), dict) else ()


def _target(pointer: JsonValue, root: dict[str, JsonValue]) -> JsonValue:
    if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
        raise SchemaUnfitError(
            f"The schema refers to {str(pointer)[:80]!r}; only references inside the schema are followed. "
            "Nothing was fetched or run."
        )
    node: JsonValue = root
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, dict) or name not in node:
            raise SchemaUnfitError(f"The schema refers to {pointer[:80]!r}, which it does not have; nothing was run.")
        node = node[name]
    return node


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> SchemaValidator:
    """Return a matcher that needs linear time. Raises SchemaUnfitError for what such an engine cannot do."""
    if len(pattern) > MAX_PATTERN:
        raise SchemaUnfitError(f"A pattern has more than {MAX_PATTERN} characters; nothing was run.")
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except SchemaError as error:
        raise SchemaUnfitError(
            f"The pattern {pattern[:80]!r} cannot be checked in linear time (look-around and back references "
            "cannot); nothing was run."
        ) from error


# Any: jsonschema's own signatures.
def _pattern(_validator: Any, pattern: Any, value: Any, _schema: Any) -> Iterator[jsonschema.ValidationError]:
    if isinstance(value, str) and isinstance(pattern, str):
        try:
            _compiled(pattern).validate_python(value)
        except ValidationError:
            yield jsonschema.ValidationError(f"{value[:80]!r} does not match {pattern[:80]!r}")


def _unique(_validator: Any, wanted: Any, value: Any, _schema: Any) -> Iterator[jsonschema.ValidationError]:
    if wanted and isinstance(value, list):
        # The library's own compares each with each when the items cannot be sorted.
        seen = {json.dumps(item, sort_keys=True) for item in value}
        if len(seen) < len(value):
            yield jsonschema.ValidationError("has items that are the same")


_LinearValidator: Final = jsonschema.validators.extend(
    jsonschema.Draft202012Validator, {"pattern": _pattern, "uniqueItems": _unique}
)


class Validators:
    """Compiled schemas, the least used forgotten first."""

    def __init__(self, most: int = 256) -> None:
        self._most = most
        self._kept: OrderedDict[str, Any] = OrderedDict()  # Any: the library ships no types

    def problem(self, schema: Mapping[str, JsonValue], value: JsonValue) -> str | None:
        """Return where and how a value does not fit, None when it does. Raises SchemaUnfitError."""
        key = json.dumps(schema, sort_keys=True)
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            check_schema(schema)
            # A copy of its own, and an empty registry: a $ref to another place is refused, never fetched.
            self._kept[key] = _LinearValidator(json.loads(key), registry=Registry())
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        try:
            error = next(self._kept[key].iter_errors(value), None)
        except RecursionError:
            return "it nests too deep"
        if error is None:
            return None
        where = ".".join(str(step) for step in error.absolute_path)
        return f"{where[:MAX_TOLD] or 'the whole'}: {error.message[:MAX_TOLD]}"

    def __len__(self) -> int:
        return len(self._kept)


VALIDATORS: Final = Validators()  #: shared: schemas are the same from run to run
