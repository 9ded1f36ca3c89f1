"""gateway: owns the seam to the data plane, the types that cross it, and the fake that ships with it.

Request bytes never pass here: loopd only tells the gateway which servers there are and who gets which share.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Literal, Protocol, get_args

from loopd.errors import LoopdError, UnavailableError
from loopd.keys import PublicKey

Pool = Literal["engine", "agent"]
POOLS: tuple[Pool, ...] = get_args(Pool)

MOST_WEIGHT = 256  # HAProxy's cap for a server
MOST_SERVERS = 64  # of one pool; far beyond one host, and all weights still fit one line of the runtime socket
WHOLE = 100  # percent
POLL_S = 0.02  # HAProxy tells nobody when a server becomes idle

_SERVER = re.compile(r"[a-z0-9-]{1,64}")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
MOST_PORT = 65535


class GatewayDownError(UnavailableError):
    """The gateway's admin socket does not answer; traffic may go on all the same."""

    code = "gateway_down"


class RouteError(LoopdError, ValueError):
    """The wanted routes make no sense; the gateway was not touched."""

    code = "route_invalid"


class ServerState(StrEnum):
    """How the gateway finds a server."""

    STARTING = "starting"  #: takes requests by its weight, but no probe has ended yet; lasts less than a second
    UP = "up"
    DOWN = "down"
    DRAIN = "drain"  #: up, at no weight: takes no new request
    MAINT = "maint"  #: leaving


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A server that is wanted. Its fields become words of HAProxy's language, so they are parsed: RouteError."""

    pool: Pool
    server: str
    address: str  #: IPv4 address:port
    share: int  #: whole percent of its pool; 0 takes no new request, streams in flight go on

    def __post_init__(self) -> None:
        if self.pool not in POOLS or not _SERVER.fullmatch(self.server):
            raise RouteError(f"no server may be called {self.pool}/{self.server}: [a-z0-9-], 1 to 64 characters")
        host, _, port = self.address.rpartition(":")
        try:
            # Not IPv6: its zone may hold anything (RFC 6874), and Python's parser lets it.
            IPv4Address(host)
        except ValueError as error:
            raise RouteError(f"{self.pool}/{self.server}: {self.address!r} is not an IPv4 address:port") from error
        if not _PORT.fullmatch(port) or int(port) > MOST_PORT:
            raise RouteError(f"{self.pool}/{self.server}: {self.address!r} has no port in 1..{MOST_PORT}")
        if not 0 <= self.share <= WHOLE:
            raise RouteError(f"{self.pool}/{self.server}: share {self.share} is not in 0..{WHOLE} percent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server as the gateway has it."""

    pool: Pool
    server: str
    address: str
    weight: int  #: 0..256
    sessions: int  #: requests in flight on it, waiting ones included
    state: ServerState
    bytes_out: int = 0  #: of its answers since the gateway knows it; grows while it answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What an apply() did."""

    shares: Mapping[str, float]  #: "pool/server" -> percent really set
    changed: bool
    flip_s: float  #: time of the write that changed all weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """Which tokens are let in."""

    keys: tuple[PublicKey, ...]  #: that verify
    revoked: Mapping[str, int]  #: id of a token -> the second since 1970 from which it need not be remembered


class Gateway(Protocol):
    """What loopd needs of the data plane. Every call may be repeated. Raises GatewayDownError."""

    async def observe(self) -> tuple[Server, ...]:
        """Return one snapshot of the servers."""
        ...

    async def apply(self, routes: Sequence[Route]) -> Applied:
        """Make the servers equal to the routes; all weights change in one write; no stream in flight is cut.

        A server that is no longer wanted takes no new request at once and leaves when it is idle: at this call or
        at a later one. Raises RouteError when a pool's shares are neither 100 together nor all 0.
        """
        ...

    async def wait_idle(self, pool: Pool, server: str, *, deadline_s: float) -> bool:
        """Return True once nothing is in flight on a server (or it is gone), False after ``deadline_s`` seconds."""
        ...

    async def admit(self, doors: Doors) -> None:
        """Let in from the next request on whom the doors say; streams in flight go on.

        When it raises GatewayDownError the gateway learns it when it starts, or at the next apply().
        """
        ...


def weights(shares: Mapping[str, int]) -> dict[str, int]:
    """Return the weight, 0..256, of each server of one pool from its share.

    Whole percents fit below HAProxy's cap as they are, so every proportion is exact and no share above 0 becomes 0.
    Raises RouteError for a share that is no whole percent, or a sum that is neither 100 nor 0.
    """
    if any(not 0 <= share <= WHOLE for share in shares.values()):
        raise RouteError(f"a share is a whole percent, 0 to {WHOLE}: {dict(shares)}")
    if sum(shares.values()) not in (0, WHOLE):
        raise RouteError(f"the shares of a pool are {WHOLE} percent together, or all 0: {dict(shares)}")
    most = max(shares.values(), default=0)
    if most == WHOLE:
        return {server: MOST_WEIGHT if share else 0 for server, share in shares.items()}
    factor = MOST_WEIGHT // max(most, 1)
    return {server: share * factor for server, share in shares.items()}


def route_weights(routes: Sequence[Route]) -> dict[tuple[Pool, str], int]:
    """Return each route's weight. Raises RouteError."""
    found: dict[tuple[Pool, str], int] = {}
    for pool in POOLS:
        mine = [route for route in routes if route.pool == pool]
        shares = {route.server: route.share for route in mine}
        if len(mine) != len(shares) or len(mine) > MOST_SERVERS:
            raise RouteError(f"pool {pool} has {len(mine)} routes: at most {MOST_SERVERS}, each server once")
        found |= {(pool, server): weight for server, weight in weights(shares).items()}
    return found


def really_set(routes: Sequence[Route]) -> dict[str, float]:
    """Return "pool/server" -> percent of its pool that the weights give. Raises RouteError."""
    found = route_weights(routes)
    totals = {pool: sum(weight for (of, _), weight in found.items() if of == pool) for pool in POOLS}
    return {
        f"{pool}/{server}": weight * WHOLE / totals[pool] if totals[pool] else 0.0
        for (pool, server), weight in found.items()
    }


async def poll_idle(gateway: Gateway, pool: Pool, server: str, deadline_s: float) -> bool:
    """Look until nothing is in flight on the server, or the deadline passes; looks at least once."""
    deadline = time.monotonic() + deadline_s
    while any((s.pool, s.server) == (pool, server) and s.sessions for s in await gateway.observe()):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


@dataclass(slots=True)
class InMemoryGateway:
    """The fake: servers in a dict. It and HAProxy pass the same contract suite (tests/test_gateway.py)."""

    servers: dict[tuple[Pool, str], Server] = field(default_factory=dict)
    sick: set[str] = field(default_factory=set)  #: addresses whose probe fails
    down: bool = False  #: the admin socket does not answer
    doors: Doors | None = None

    def hold(self, pool: Pool, server: str, sessions: int) -> None:
        """Say how many requests are in flight on a server."""
        self.servers[pool, server] = replace(self.servers[pool, server], sessions=sessions)

    async def observe(self) -> tuple[Server, ...]:
        """Return the servers, with what their probes find now."""
        self._answer()
        return tuple(replace(server, state=self._state(server)) for server in self.servers.values())

    async def apply(self, routes: Sequence[Route]) -> Applied:
        """Make the servers equal to the routes."""
        self._answer()
        by_weight = route_weights(routes)
        wanted = {
            (r.pool, r.server): Server(
                pool=r.pool,
                server=r.server,
                address=r.address,
                weight=by_weight[r.pool, r.server],
                sessions=found.sessions if (found := self.servers.get((r.pool, r.server))) else 0,
                state=ServerState.UP,
            )
            for r in routes
        }
        leaving = {
            key: replace(server, weight=0, state=ServerState.MAINT)
            for key, server in self.servers.items()
            if key not in wanted and server.sessions
        }
        changed = self.servers != wanted | leaving
        self.servers = wanted | leaving
        return Applied(shares=really_set(routes), changed=changed, flip_s=0.0)

    async def wait_idle(self, pool: Pool, server: str, *, deadline_s: float) -> bool:
        """Look until nothing is in flight: the loop that the real one runs."""
        return await poll_idle(self, pool, server, deadline_s)

    async def admit(self, doors: Doors) -> None:
        """Remember the doors."""
        self.doors = doors
        self._answer()

    def _answer(self) -> None:
        if self.down:
            raise GatewayDownError("the gateway does not answer; traffic may go on. `loopctl why gateway` says more")

    def _state(self, server: Server) -> ServerState:
        if server.state is ServerState.MAINT:
            return ServerState.MAINT
        if server.address in self.sick:
            return ServerState.DOWN
        return ServerState.UP if server.weight else ServerState.DRAIN
