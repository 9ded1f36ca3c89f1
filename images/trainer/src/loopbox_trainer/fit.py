"""fit: owns whether a call fits the tools that were on offer: its name, and its arguments by the tool's schema.

Schemas come from strangers: patterns are matched in linear time, nothing is fetched, and a schema that is no schema
makes the row unusable.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NoReturn

import jsonschema_rs

from loopbox_trainer.rows import Call, RowError, Tool, canonical

MOST_KEPT: Final = 4096  #: compiled schemas


class Fit:
    """Judges calls. Keeps what it compiled, so that the same tools in a thousand rows cost once."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[bytes, jsonschema_rs.Validator | None] = OrderedDict()

    def fault(self, call: Call, tools: tuple[Tool, ...]) -> str | None:
        """Return why a call does not fit: unknown_tool, broken_schema, arguments_unfit; None when it does."""
        tool = next((one for one in tools if one.name == call.name), None)
        if tool is None:
            return "unknown_tool"
        try:
            key = canonical(tool.parameters)
        except RowError:
            return "broken_schema"
        if key in self._compiled:
            self._compiled.move_to_end(key)
            validator = self._compiled[key]
        else:
            validator = self._compiled[key] = _compile(tool)
            if len(self._compiled) > MOST_KEPT:
                self._compiled.popitem(last=False)
        if validator is None:
            return "broken_schema"
        try:
            return None if validator.is_valid(call.arguments) else "arguments_unfit"
        except (ValueError, RecursionError, jsonschema_rs.ReferencingError):
            return "arguments_unfit"


def _compile(tool: Tool) -> jsonschema_rs.Validator | None:
    try:
        return jsonschema_rs.Draft202012Validator(
            tool.parameters or {"type": "object"},
            pattern_options=jsonschema_rs.RegexOptions(),
            retriever=_refuse,
        )
    except (ValueError, RecursionError, jsonschema_rs.ReferencingError):
        return None


def _refuse(uri: str) -> NoReturn:
    raise ValueError(f"a schema refers to {uri[:100]}, and nothing is fetched")
