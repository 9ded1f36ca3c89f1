"""toolkit: owns the tools of a run put together: which it is offered, from where, and how a call of one is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import structlog

from loopbox_agent.builtin_tools import Builtins, Call, Place
from loopbox_agent.mcp_servers import McpServers
from loopbox_agent.principal import Principal
from loopbox_agent.sandbox import Broker, Kind, Sandbox
from loopbox_agent.tool_caller import Caller
from loopbox_agent.tool_offer import Asking, Band, Bounds, Offer, RoleTable, for_run
from loopbox_agent.tool_registry import Registry, Source, merge
from loopbox_agent.tool_schedule import Schedule
from loopbox_agent.tool_spec import ToolSpec

BROWSER = "browser"  # the first word of the names of tools that need a browser

log = structlog.get_logger("agent.toolkit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a run asks for."""

    place: Place
    principal: Principal
    names: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    band: Band = "allow"
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class Tools:
    """A run's tools."""

    offer: Offer
    registry: Registry
    caller: Caller

    @property
    def sandbox(self) -> Sandbox | None:
        """The sandbox it borrowed, if any."""
        return self.caller.sandbox


@dataclass(kw_only=True)
class Toolkit:
    """What all runs' tools are made of."""

    broker: Broker
    builtins: Builtins
    servers: McpServers
    roles: RoleTable = field(default_factory=RoleTable)
    bounds: Bounds = field(default_factory=Bounds)
    _listed: dict[Kind, tuple[ToolSpec, ...]] = field(default_factory=dict)  #: what a sandbox offered last

    async def registry(self, user: str) -> Registry:
        """Return all tools that a user's runs could use, as far as they are known. Borrows a sandbox to find out."""
        if "tools" not in self._listed:
            async with self.broker.borrow(f"listing-{user}", ttl_s=30.0) as sandbox:
                self._listed["tools"] = tuple(sandbox.tools.values())
        kinds: Sequence[Kind] = ("browser", "tools")
        listed = next((self._listed[kind] for kind in kinds if kind in self._listed), ())
        return await self._merged(user, listed)

    async def open(self, wanted: Wanted, stack: AsyncExitStack, more: Mapping[str, Call] | None = None) -> Tools:
        """Return a run's tools; what they hold is given back by ``stack``. Raises AgentError.

        more: calls of built-in tools that only this run can make, by name.
        """
        user = wanted.place.user
        kind: Kind = "browser" if any(_is_browsers(word) for word in (*wanted.names, *wanted.capabilities)) else "tools"
        sandbox: Sandbox | None = None
        if kind not in self._listed or self._needs_sandbox(wanted, await self._merged(user, self._listed[kind])):
            hosts = () if wanted.band != "allow" else wanted.hosts
            sandbox = await stack.enter_async_context(self.broker.borrow(wanted.place.run, wanted.ttl_s, kind, hosts))
            self._listed[kind] = tuple(sandbox.tools.values())
        schedule = Schedule()
        registry = await self._merged(user, self._listed[kind])
        offer = for_run(registry, self._asking(wanted), self.roles, self.bounds)
        for left in offer.left_out:
            log.info("tool.left_out", tool=left.name, reason=left.reason)
        caller = Caller(
            schedule=schedule,
            sandbox=sandbox,
            session=wanted.place.run,
            builtins={**self.builtins.calls(wanted.place), **(more or {})},
            server=lambda tool, arguments: self.servers.call(user, tool, arguments),
        )
        return Tools(offer, registry, caller)

    async def _merged(self, user: str, listed: Sequence[ToolSpec]) -> Registry:
        sources: list[Source] = [Source("builtin", "builtin", self.builtins.specs())]
        sources.append(Source("sandbox", "sandbox", tuple(listed)))
        sources += await self.servers.sources(user)
        return merge(sources)

    def _needs_sandbox(self, wanted: Wanted, registry: Registry) -> bool:
        offer = for_run(registry, self._asking(wanted), self.roles, self.bounds)
        return any(tool.kind == "sandbox" for tool in offer.tools)

    @staticmethod
    def _asking(wanted: Wanted) -> Asking:
        return Asking(
            names=wanted.names,
            capabilities=wanted.capabilities,
            role=wanted.principal.role,
            band=wanted.band,
            network_granted=bool(wanted.hosts),
        )


def _is_browsers(word: str) -> bool:
    return word == BROWSER or word.startswith(f"{BROWSER}_")


def views(registry: Registry) -> Mapping[str, object]:
    """Return the registry as a client may see it."""
    return {
        "tools": registry.listing(),
        "conflicts": [
            {"name": c.name, "winner": c.winner, "loser": c.loser, "offered_as": c.offered_as}
            for c in registry.conflicts
        ],
        "refused": [{"source": source, "name": r.name, "reason": r.reason} for source, r in registry.refused],
        "unavailable": [{"source": s.name, "reason": s.unavailable} for s in registry.sources if s.unavailable],
    }
