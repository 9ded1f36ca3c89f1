"""fit: owns the Toolset, the tools that a row had on offer, and whether a call fits them: its name, its arguments.

Schemas come from strangers: patterns are matched in linear time, nothing is fetched, and a schema that is no schema
makes the row unusable.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final, NoReturn

import jsonschema_rs
import msgspec

from loopbox_trainer.rows import Call, Tool, canonical

MOST_KEPT: Final = 4096  #: sets of tools with their compiled schemas


@dataclass(slots=True, eq=False)
class Toolset:
    """Tools that were on offer together."""

    tools: tuple[Tool, ...]
    digest: bytes
    line: bytes  #: as JSON
    _compiled: dict[str, jsonschema_rs.Validator | None] = field(default_factory=dict)

    def fault(self, call: Call) -> str | None:
        """Return why a call does not fit: unknown_tool, broken_schema, arguments_unfit; None when it does."""
        if call.name not in self._compiled:
            tool = next((one for one in self.tools if one.name == call.name), None)
            if tool is None:
                return "unknown_tool"
            self._compiled[call.name] = _compile(tool)
        validator = self._compiled[call.name]
        if validator is None:
            return "broken_schema"
        try:
            return None if validator.is_valid(call.arguments) else "arguments_unfit"
        except (ValueError, RecursionError):
            return "arguments_unfit"


class Toolsets:
    """All sets seen of late: a thousand rows with the same tools pay for their schemas once."""

    def __init__(self) -> None:
        self._by_content: dict[bytes, Toolset] = {}
        self._by_identity: dict[int, Toolset] = {}  # a set keeps its tools alive, so no other has their identity

    def of(self, tools: tuple[Tool, ...]) -> Toolset:
        """Return the set of these tools. Raises RowError: not_text."""
        found = self._by_identity.get(id(tools))
        if found is not None and found.tools is tools:
            return found
        key = canonical(tools)
        found = self._by_content.get(key)
        if found is None:
            if len(self._by_content) >= MOST_KEPT:
                self._by_content.clear()
                self._by_identity.clear()
            found = self._by_content[key] = Toolset(tools, hashlib.sha256(key).digest(), msgspec.json.encode(tools))
            self._by_identity[id(tools)] = found
        return found


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
