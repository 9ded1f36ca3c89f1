"""gateway: owns the seam to the data plane, the types that cross it, and the fake that ships with it.

Request bytes never pass here: loopd only tells the gateway which servers there are and who gets which share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, Protocol

from loopd.errors import UnavailableError

Pool = Literal["engine", "agent"]

MOST_WEIGHT = 256  # HAProxy's cap for a server


class GatewayDownError(UnavailableError):
    """The gateway's admin socket does not answer; traffic may go on all the same."""

    code = "gateway_down"


class ServerState(StrEnum):
    """How the gateway finds a server."""

    UP = "up"
    DOWN = "down"
    DRAIN = "drain"  #: up, at no weight: takes no new request
    MAINT = "maint"  #: leaving


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A server that is wanted."""

    pool: Pool
    server: str
    address: str  #: ip:port
    share: int  #: whole percent of its pool; 0 takes no new request, streams in flight go on


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server as the gateway has it."""

    pool: Pool
    server: str
    address: str
    weight: int  #: 0..256
    sessions: int  #: requests in flight on it
    state: ServerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What an apply() did."""

    shares: Mapping[str, float]  #: "pool/server" -> percent really set
    changed: bool
    flip_s: float  #: time of the write that changed all weights


class Gateway(Protocol):
    """What loopd needs of the data plane. Every call may be repeated. Raises GatewayDownError."""

    async def observe(self) -> tuple[Server, ...]:
        """Return one snapshot of the servers."""
        ...

    async def apply(self, routes: Sequence[Route]) -> Applied:
        """Make the servers equal to the routes; all weights change in one write; no stream in flight is cut."""
        ...

    async def wait_idle(self, pool: Pool, server: str, *, deadline_s: float) -> bool:
        """Return True once nothing is in flight on a server (or it is gone), False after ``deadline_s`` seconds."""
        ...


def weights(shares: Mapping[str, int]) -> dict[str, int]:
    """Return server weights in proportion to whole-percent shares of one pool: the largest share gets 256.

    A share above 0 never becomes weight 0. Raises ValueError for a share outside 0..100.
    """
    if any(not 0 <= share <= 100 for share in shares.values()):  # noqa: PLR2004 percent
        raise ValueError(f"shares are whole percents from 0 to 100, got {dict(shares)}")
    largest = max(shares.values(), default=0)
    if largest == 0:
        return dict.fromkeys(shares, 0)
    return {server: max(1, round(share * MOST_WEIGHT / largest)) if share else 0 for server, share in shares.items()}


def really_set(routes: Sequence[Route]) -> dict[str, float]:
    """Return the percent each server gets once its share is rounded to a weight."""
    by_weight = route_weights(routes)
    result = {}
    for route in routes:
        total = sum(by_weight[r.pool, r.server] for r in routes if r.pool == route.pool)
        result[f"{route.pool}/{route.server}"] = 100 * by_weight[route.pool, route.server] / total if total else 0.0
    return result


def route_weights(routes: Sequence[Route]) -> dict[tuple[Pool, str], int]:
    """Return the weight of each route."""
    result: dict[tuple[Pool, str], int] = {}
    for pool in {route.pool for route in routes}:
        found = weights({route.server: route.share for route in routes if route.pool == pool})
        result |= {(pool, server): weight for server, weight in found.items()}
    return result


@dataclass
class InMemoryGateway:
    """A data plane in memory: same contract, no traffic. Tests set what is in flight in ``sessions``."""

    servers: dict[tuple[Pool, str], Server] = field(default_factory=dict)
    sessions: dict[str, int] = field(default_factory=dict)  #: server -> requests in flight
    unhealthy: set[str] = field(default_factory=set)  #: servers whose probe fails
    down: bool = False

    async def observe(self) -> tuple[Server, ...]:
        """Return the servers."""
        self._require_up()
        return tuple(
            replace(
                server,
                sessions=self.sessions.get(server.server, 0),
                state=ServerState.DOWN if server.server in self.unhealthy else server.state,
            )
            for server in self.servers.values()
        )

    async def apply(self, routes: Sequence[Route]) -> Applied:
        """Make the servers equal to the routes; those in use stay in maintenance until they are not."""
        self._require_up()
        before = dict(self.servers)
        by_weight = route_weights(routes)
        wanted: dict[tuple[Pool, str], Server] = {
            (r.pool, r.server): Server(
                pool=r.pool,
                server=r.server,
                address=r.address,
                weight=by_weight[r.pool, r.server],
                sessions=0,
                state=ServerState.UP if by_weight[r.pool, r.server] else ServerState.DRAIN,
            )
            for r in routes
        }
        busy = {
            key: replace(server, state=ServerState.MAINT)
            for key, server in self.servers.items()
            if key not in wanted and self.sessions.get(server.server)
        }
        self.servers = wanted | busy
        return Applied(shares=really_set(routes), changed=self.servers != before, flip_s=0.0)

    async def wait_idle(self, pool: Pool, server: str, *, deadline_s: float) -> bool:
        """Tell whether nothing is in flight; in memory nothing changes while one waits."""
        del deadline_s
        self._require_up()
        return (pool, server) not in self.servers or not self.sessions.get(server)

    def _require_up(self) -> None:
        if self.down:
            raise GatewayDownError("the gateway's admin socket does not answer; `loopctl why gateway` says more")
