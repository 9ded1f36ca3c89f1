"""tool_registry: owns all tools that a run could use, from several sources, under names that are told apart.

Names (decision 18): built-in tools come before the sandbox's, those before user's servers in the order they were
added. The first to claim a name has it; a later one is offered as ``<source>__<name>``. So a server added last never
renames what was there before it.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from pydantic import JsonValue

from loopbox_agent.errors import AgentError
from loopbox_agent.tool_spec import MAX_NAME, Kind, Refused, ToolSpec, clean_name, words

RANK: Mapping[Kind, int] = {"builtin": 0, "sandbox": 1, "server": 2}
NEAREST = 3
MOST_NAMED = 40  # tools named in an error

Tool = ToolSpec  # as the sandbox's callers know it


class UnknownToolError(AgentError):
    """A tool by that name is not offered."""

    code: ClassVar[str] = "unknown_tool"
    status: ClassVar[int] = 400


def unknown(name: str, known: Iterable[str]) -> UnknownToolError:
    """Return the error that names the nearest tools there are."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:MAX_NAME], names, NEAREST, 0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    there = f"There are: {', '.join(names[:MOST_NAMED])}{more}." if names else "There are none."
    return UnknownToolError(
        f"There is no tool {name[:100]!r}; nothing was run.{hint} {there}",
        details={"tools": list[JsonValue](names[:MOST_NAMED]), "nearest": list[JsonValue](near)},
    )


@dataclass(frozen=True, slots=True)
class Source:
    """The tools of one source."""

    name: str
    kind: Kind
    tools: tuple[ToolSpec, ...] = ()
    refused: tuple[Refused, ...] = ()
    unavailable: str = ""  #: why its tools are not there; "" when they are


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two tools claimed one name."""

    name: str
    winner: str  #: source
    loser: str  #: source
    offered_as: str  #: the loser's tool


@dataclass(frozen=True, slots=True)
class Match:
    """A tool found by what it can do."""

    tool: ToolSpec
    score: float


@dataclass(frozen=True, slots=True)
class Registry:
    """All tools, by the name they are offered under."""

    tools: Mapping[str, ToolSpec]
    conflicts: tuple[Conflict, ...] = ()
    refused: tuple[tuple[str, Refused], ...] = ()  #: (source, what)
    sources: tuple[Source, ...] = ()
    _words: Mapping[str, tuple[frozenset[str], ...]] = field(default_factory=dict, repr=False, compare=False)

    def require(self, name: str) -> ToolSpec:
        """Return a tool. Raises UnknownToolError naming the nearest ones."""
        if name not in self.tools:
            raise unknown(name, self.tools)
        return self.tools[name]

    def match(self, wanted: Sequence[str], *, limit: int = 16) -> tuple[Match, ...]:
        """Return the tools that have to do with these words, best first, equals by name.

        Of the words' weight, a capability gives all, a word of the name two thirds, one of the description a quarter.
        """
        asked = words(wanted)
        if not asked:
            return ()
        found: list[Match] = []
        for name, tool in self.tools.items():
            capable, named, told = self._words[name]
            score = sum(
                1.0 if w in capable else 2 / 3 if w in named else 0.25 if w in told else 0.0 for w in asked
            ) / len(asked)
            if score > 0:
                found.append(Match(tool, round(score, 4)))
        return tuple(sorted(found, key=lambda m: (-m.score, m.tool.name))[:limit])

    def listing(self) -> list[dict[str, JsonValue]]:
        """Return all tools as a person or a client may see them."""
        renamed = {conflict.offered_as: conflict for conflict in self.conflicts}
        return [_view(tool, renamed.get(name)) for name, tool in self.tools.items()]


def merge(sources: Sequence[Source]) -> Registry:
    """Return the registry of these sources; servers in the order they were added. The rule is the module's."""
    tools: dict[str, ToolSpec] = {}
    conflicts: list[Conflict] = []
    ordered = sorted(sources, key=lambda source: RANK[source.kind])  # stable
    for source in ordered:
        for tool in source.tools:
            name = tool.name
            if name in tools:
                name = _qualified(source.name, tool.name, tools)
                conflicts.append(Conflict(tool.name, tools[tool.name].source, source.name, name))
            tools[name] = tool if name == tool.name else replace(tool, name=name, called=tool.source_name)
    indexed = {name: _words_of(tool) for name, tool in tools.items()}
    refused = tuple((source.name, one) for source in ordered for one in source.refused)
    return Registry(tools, tuple(conflicts), refused, tuple(ordered), indexed)


def _qualified(source: str, name: str, taken: Mapping[str, ToolSpec]) -> str:
    made = f"{clean_name(source)}__{name}"
    if len(made) > MAX_NAME:
        made = f"{made[: MAX_NAME - 7]}_{hashlib.sha256(made.encode()).hexdigest()[:6]}"
    number, tried = 2, made
    while tried in taken:
        tried = f"{made[: MAX_NAME - len(str(number)) - 1]}_{number}"
        number += 1
    return tried


def _words_of(tool: ToolSpec) -> tuple[frozenset[str], ...]:
    described = words([tool.description[i : i + 256] for i in range(0, len(tool.description), 256)])
    return frozenset(tool.capabilities), frozenset(words([tool.source_name, tool.source])), frozenset(described)


def _view(tool: ToolSpec, conflict: Conflict | None) -> dict[str, JsonValue]:
    shown: dict[str, JsonValue] = {
        "name": tool.name,
        "description": tool.description,
        "source": tool.source,
        "effect": tool.effect,
        "level": tool.level,
        "capabilities": list[JsonValue](tool.capabilities),
        "needs": {"memory_mb": tool.needs.memory_mb, "seconds": tool.needs.seconds},
        "schema": dict(tool.schema),
        "available": not tool.unavailable,
    }
    if tool.unavailable:
        shown["reason"] = tool.unavailable
    if conflict:
        shown["note"] = f"{conflict.name!r} is the name of a tool of {conflict.winner}; this one was renamed"
    return shown
