"""tool_offer: owns which tools a run is offered: what was asked for, less what its caller may not, within bounds.

Each offered tool costs the model context in every turn, so the sum of names, descriptions and schemas is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from pydantic import JsonValue

from loopbox_agent.errors import AgentError
from loopbox_agent.principal import Role
from loopbox_agent.tool_registry import Registry
from loopbox_agent.tool_spec import EFFECTS, Effect, ToolSpec, context_bytes

Band = Literal["allow", "isolate", "review", "block"]
_ALL = frozenset[Effect](EFFECTS)
SHORT = 120  # characters of a description that had to be cut


class ToolForbiddenError(AgentError):
    """The caller's role may not use this tool."""

    code: ClassVar[str] = "tool_forbidden"
    status: ClassVar[int] = 403


class ToolUnavailableError(AgentError):
    """The tool is known, and off."""

    code: ClassVar[str] = "tool_unavailable"
    status: ClassVar[int] = 409


@dataclass(frozen=True, slots=True)
class RoleTable:
    """Which levels each role may call."""

    levels: Mapping[Role, frozenset[Effect]] = field(
        default_factory=lambda: {Role.VIEWER: frozenset(), Role.USER: _ALL, Role.OPERATOR: _ALL, Role.ADMIN: _ALL}
    )
    need_grant: frozenset[Role] = frozenset({Role.USER})  #: roles whose "network" needs a grant of hosts as well

    def why_not(self, tool: ToolSpec, role: Role, *, network_granted: bool) -> str:
        """Return why this role may not call the tool, "" when it may."""
        mine = role.name.lower()
        if role < tool.minimum_role:
            return f"it needs the role {tool.minimum_role.name.lower()}"
        if tool.level not in self.levels.get(role, frozenset()):
            return f"the role {mine} may not use tools of level {tool.level}"
        if tool.level == "network" and role in self.need_grant and not network_granted:
            return f"the role {mine} needs a grant of hosts for tools that use the network"
        return ""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of what one run is offered."""

    tools: int = 32
    context_bytes: int = 24 << 10  #: of names, descriptions and schemas together, about a quarter of it in tokens
    description: int = 600  #: characters of one


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What a run asks for, and for whom."""

    names: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()  #: words; tools that match are added after the named ones
    role: Role = Role.USER
    band: Band = "allow"
    network_granted: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tool that was asked for, or found, and is not offered."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Offer:
    """What a run is offered, in order of preference."""

    tools: tuple[ToolSpec, ...]
    left_out: tuple[LeftOut, ...] = ()
    context_bytes: int = 0


def for_run(registry: Registry, asking: Asking, table: RoleTable, bounds: Bounds) -> Offer:
    """Return what to offer: the named tools in their order, then those found by capability, best first.

    A tool that would pass a bound is offered with a short description, or, when that passes it too, left out.
    Raises UnknownToolError, ToolForbiddenError or ToolUnavailableError for a tool asked for by name.
    """
    chosen: dict[str, ToolSpec] = {}
    left_out: list[LeftOut] = []
    for name in dict.fromkeys(asking.names):
        tool = registry.require(name)
        if why := _band_refuses(tool, asking.band):
            left_out.append(LeftOut(name, why))
        else:
            _allow(tool, asking, table)
            chosen[name] = tool
    for match in registry.match(asking.capabilities, limit=bounds.tools * 2):
        name = match.tool.name
        why = _band_refuses(match.tool, asking.band) or match.tool.unavailable
        why = why or table.why_not(match.tool, asking.role, network_granted=asking.network_granted)
        if why and name not in asking.names:
            left_out.append(LeftOut(name, why))
        elif not why:
            chosen.setdefault(name, match.tool)
    return _within(list(chosen.values()), left_out, bounds)


def _within(chosen: list[ToolSpec], left_out: list[LeftOut], bounds: Bounds) -> Offer:
    offered: list[ToolSpec] = []
    used = 0
    for tool in chosen:
        for longest in (bounds.description, SHORT):
            fit = replace(tool, description=described(tool, longest))
            size = context_bytes(fit)
            if used + size <= bounds.context_bytes:
                break
        if len(offered) == bounds.tools:
            left_out.append(LeftOut(tool.name, f"{bounds.tools} tools are offered already"))
        elif used + size > bounds.context_bytes:
            left_out.append(LeftOut(tool.name, f"its {size} bytes would pass the {bounds.context_bytes} for all tools"))
        else:
            offered.append(fit)
            used += size
    return Offer(tuple(offered), tuple(left_out), used)


def described(tool: ToolSpec, most: int) -> str:
    """Return the description as the model sees it; a stranger's words are told to be so."""
    text = tool.description if len(tool.description) <= most else tool.description[: most - 1] + "…"
    return f"[Words of the external server {tool.source}:] {text}" if tool.kind == "server" else text


def _allow(tool: ToolSpec, asking: Asking, table: RoleTable) -> None:
    if tool.unavailable:
        raise ToolUnavailableError(f"The tool {tool.name} is off; nothing was run. {tool.unavailable}")
    if why := table.why_not(tool, asking.role, network_granted=asking.network_granted):
        details: dict[str, JsonValue] = {"tool": tool.name, "level": tool.level, "role": asking.role.name.lower()}
        raise ToolForbiddenError(f"The tool {tool.name} may not be used: {why}; nothing was run.", details=details)


def _band_refuses(tool: ToolSpec, band: Band) -> str:
    if band == "block":
        return "the request is blocked"
    if band != "allow" and tool.level == "network":
        return "the request's risk keeps it off the network"
    return ""
