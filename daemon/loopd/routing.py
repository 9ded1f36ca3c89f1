"""routing: owns keeping the gateway's servers equal to the recorded shares and the running containers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from loopd.engine import Engine, Instance
from loopd.errors import UnavailableError
from loopd.gateway import Applied, Gateway, GatewayDownError, Route, Server, ServerState
from loopd.registry import Registry
from loopd.release import SHORT, engine_unit
from loopd.units import AGENT, AGENT_PORT, ENGINE_PORT

ATTACH_TIMEOUT_S = 10.0
POLL_S = 0.02

log = structlog.get_logger("loopd.routing")


class NotAttachedError(UnavailableError):
    """The gateway's own probe does not find the candidate healthy, so no traffic was given to it."""

    code = "not_attached"


def plan_routes(shares: Mapping[str, int], instances: Iterable[Instance]) -> tuple[Route, ...]:
    """Return the wanted servers: each release with a share and an address, and the agent.

    Shares of releases that do not run are given to those that do, in proportion, so that what is up takes all
    traffic; a release at 0 stays at 0.
    """
    addresses = {instance.unit: instance.address for instance in instances if instance.address}
    up = {release: share for release, share in shares.items() if engine_unit(release) in addresses}
    total = sum(up.values())
    routes = [
        Route(
            pool="engine",
            server=release[:SHORT],
            address=f"{addresses[engine_unit(release)]}:{ENGINE_PORT}",
            share=share,
        )
        for release, share in _whole(up, total).items()
    ]
    if AGENT in addresses:
        routes.append(Route(pool="agent", server=AGENT, address=f"{addresses[AGENT]}:{AGENT_PORT}", share=100))
    return tuple(sorted(routes, key=lambda route: (route.pool, route.server)))


def _whole(up: Mapping[str, int], total: int) -> dict[str, int]:
    """Scale shares to whole percents that sum to 100, largest remainder first; all 0 stays so."""
    if total in (0, 100):
        return dict(up)
    scaled = {release: share * 100 // total for release, share in up.items()}
    rest = sorted((r for r in up if up[r]), key=lambda r: (-(up[r] * 100 % total), r))
    for release in rest[: 100 - sum(scaled.values())]:
        scaled[release] += 1
    return scaled


@dataclass(slots=True)
class Routing:
    """Applies shares to the gateway, one at a time."""

    registry: Registry
    engine: Engine
    gateway: Gateway
    _lock: asyncio.Lock

    @classmethod
    def over(cls, registry: Registry, engine: Engine, gateway: Gateway) -> Routing:
        """Return a Routing with a lock of its own."""
        return cls(registry, engine, gateway, asyncio.Lock())

    async def wanted(self) -> tuple[Route, ...]:
        """Return the routes that should be, from what is recorded and what runs."""
        serving = await self.registry.serving()
        return plan_routes(serving.shares, await self.engine.observe())

    async def converge(self) -> Applied:
        """Make the gateway's servers equal to the wanted ones. Raises GatewayDownError, EngineDownError."""
        async with self._lock:
            return await self.gateway.apply(await self.wanted())

    async def wait_answering(self, *, timeout_s: float) -> None:
        """Return once the gateway answers. Raises GatewayDownError after ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                await self.gateway.observe()
            except GatewayDownError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(POLL_S)
            else:
                return

    async def attach(self, release: str) -> Applied:
        """Converge, then return once the gateway's probe finds the release up. Raises NotAttachedError."""
        applied = await self.converge()
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT_S):
                while not self._is_up(await self.gateway.observe(), release):  # noqa: ASYNC110 HAProxy tells nobody
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise NotAttachedError(
                f"the gateway does not find release {release[:SHORT]} healthy after {ATTACH_TIMEOUT_S:g} s"
            ) from error
        return applied

    @staticmethod
    def _is_up(servers: tuple[Server, ...], release: str) -> bool:
        return any(
            s.pool == "engine" and s.server == release[:SHORT] and s.state in (ServerState.UP, ServerState.DRAIN)
            for s in servers
        )
