"""mcp_servers: owns users' own MCP servers: adding, removing, looking at them, and their tools as sources of a run.

Connections are shared by all runs of their user and kept while they are used. Which hosts can be reached at all is the
egress proxy's matter; without one there is no way out, and every server is told to be off.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import httpx2
from pydantic import JsonValue

from loopbox_agent.egress_http import egress_client
from loopbox_agent.errors import AgentError
from loopbox_agent.mcp_connection import Connection, Pace, ServerHealth
from loopbox_agent.mcp_http import ServerTransport
from loopbox_agent.sandbox import Outcome
from loopbox_agent.server_store import MAX_SERVERS, McpServer, ServerStore
from loopbox_agent.tool_registry import Source
from loopbox_agent.tool_spec import Listing, ToolSpec

MAX_CONNECTIONS = 128  # of all users
MAX_USERS = 1024  # whose servers are held in memory
MAX_ANSWER = 4 << 20  # bytes of one answer
MAX_SECRET = 8 << 10
NO_WAY_OUT = "This agent has no way out of the appliance: grant the server's host to it (see docs/security.md)."


class ServerRefusedError(AgentError):
    """A server could not be added; nothing was kept."""

    code: ClassVar[str] = "mcp_server_refused"
    status: ClassVar[int] = 422


class UnknownServerError(AgentError):
    """The user has no server by that name."""

    code: ClassVar[str] = "unknown_mcp_server"
    status: ClassVar[int] = 404


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a server offers, or why it can't be asked."""

    listing: Listing
    health: ServerHealth


class McpServers:
    """All users' servers. Used by one event loop."""

    def __init__(
        self,
        store: ServerStore,
        *,
        secrets_dir: Path | None = None,
        proxy: str | None = None,
        direct: bool = False,
        pace: Pace | None = None,
    ) -> None:
        """Take the store; connect to nothing yet.

        secrets_dir: with the files that servers' headers name. proxy: see ``egress_client``. direct: without a proxy,
        connect directly; only where no network of the appliance's own could be reached this way.
        """
        self._store = store
        self._secrets_dir = secrets_dir
        self._proxy = proxy
        self._off = "" if proxy or direct else NO_WAY_OUT
        self._pace = pace or Pace()
        self._known: OrderedDict[str, tuple[McpServer, ...]] = OrderedDict()
        self._connections: OrderedDict[tuple[str, str], Connection] = OrderedDict()
        self._changing = asyncio.Lock()
        self._closings: set[asyncio.Task[None]] = set()

    async def add(self, user: str, server: McpServer) -> None:
        """Add a server, or change the one by that name. Raises ServerRefusedError. Asks the server nothing."""
        async with self._changing:
            there = await self.list(user)
            if server.name not in {one.name for one in there} and len(there) >= MAX_SERVERS:
                raise ServerRefusedError(f"You have {MAX_SERVERS} servers already; remove one first.")
            await self._headers(server)  # a secret that is missing is told now, not at the first call
            await self._store.put(user, server)
            self._known.pop(user, None)
        await self._drop(user, server.name)

    async def remove(self, user: str, name: str) -> None:
        """Remove a server; its calls in flight end with an error. Raises UnknownServerError."""
        async with self._changing:
            if not await self._store.delete(user, name):
                raise UnknownServerError(f"You have no MCP server {name[:40]!r}; nothing was removed.")
            self._known.pop(user, None)
        await self._drop(user, name)

    async def list(self, user: str) -> tuple[McpServer, ...]:
        """Return a user's servers in the order they were added."""
        if user not in self._known:
            self._known[user] = await self._store.list(user)
            if len(self._known) > MAX_USERS:
                self._known.popitem(last=False)
        self._known.move_to_end(user)
        return self._known[user]

    async def discover(self, server: McpServer, *, within_s: float = 10.0) -> Discovery:
        """Ask a server, added or not, what it offers, over a connection of its own. What fails is in the health."""
        connection = self._connection(server)
        try:
            if not self._off:
                await connection.ready(within_s)
            return Discovery(connection.listing, self._told(connection.health()))
        finally:
            await connection.close()

    async def sources(self, user: str, *, within_s: float = 2.0) -> tuple[Source, ...]:
        """Return a user's servers as sources; all are connected to at once, and waited for ``within_s`` at most."""
        servers = await self.list(user)
        if not servers:
            return ()
        if self._off:
            return tuple(Source(one.name, "server", unavailable=self._off) for one in servers)
        connections = [self._shared(user, server) for server in servers]
        there = await asyncio.gather(*(connection.ready(within_s) for connection in connections))
        return tuple(_source(*pair) for pair in zip(connections, there, strict=True))

    async def call(self, user: str, tool: ToolSpec, arguments: Mapping[str, JsonValue]) -> Outcome:
        """Call a tool of a user's server. Whatever goes wrong is an outcome marked as error."""
        server = next((one for one in await self.list(user) if one.name == tool.source), None)
        if server is None or self._off:
            text = self._off or f"The MCP server {tool.source} was removed; nothing was sent."
            return Outcome(text, {"text": text}, is_error=True)
        return await self._shared(user, server).call(tool, arguments)

    def health(self, user: str) -> tuple[ServerHealth, ...]:
        """Return how a user's servers are, those that were used so far. Asks nothing."""
        return tuple(self._told(one.health()) for (owner, _), one in self._connections.items() if owner == user)

    async def close(self) -> None:
        """Leave every server."""
        connections = list(self._connections.values())
        self._connections.clear()
        await asyncio.gather(*self._closings, *(connection.close() for connection in connections))

    def _shared(self, user: str, server: McpServer) -> Connection:
        key = (user, server.name)
        connection = self._connections.get(key)
        if connection is None:
            connection = self._connections[key] = self._connection(server)
            while len(self._connections) > MAX_CONNECTIONS:
                _, oldest = self._connections.popitem(last=False)
                self._closing(oldest)
        self._connections.move_to_end(key)
        return connection

    def _connection(self, server: McpServer) -> Connection:
        async def open_http() -> httpx2.AsyncClient:
            return await egress_client(
                self._proxy,
                timeout_s=server.timeout_s + 5,
                headers=await self._headers(server),
                most_bytes=MAX_ANSWER,
                wrap=ServerTransport,
            )

        return Connection(server, open_http, self._pace)

    async def _headers(self, server: McpServer) -> dict[str, str]:
        """Return the headers with their secrets. Raises ServerRefusedError, never with a secret in its text."""
        return {header: await asyncio.to_thread(self._secret, name) for header, name in server.headers.items()}

    def _secret(self, name: str) -> str:
        if self._secrets_dir is None:
            raise ServerRefusedError("No secrets directory is set, so no header can be sent. Set AGENT_SECRETS_DIR.")
        try:
            with (self._secrets_dir / name).open("rb") as file:
                value = file.read(MAX_SECRET + 1).decode("ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise ServerRefusedError(f"The secret {name!r} can't be read; put it into the secrets directory.") from None
        if not value or len(value) > MAX_SECRET or not value.isprintable():
            raise ServerRefusedError(f"The secret {name!r} is empty, too long, or more than one line.")
        return value

    async def _drop(self, user: str, name: str) -> None:
        connection = self._connections.pop((user, name), None)
        if connection is not None:
            await connection.close()

    def _closing(self, connection: Connection) -> None:
        task = asyncio.create_task(connection.close(), name="mcp-close")
        self._closings.add(task)
        task.add_done_callback(self._closings.discard)

    def _told(self, health: ServerHealth) -> ServerHealth:
        return replace(health, state="down", reason=self._off) if self._off else health


def _source(connection: Connection, there: bool) -> Source:  # noqa: FBT001 the answer of ``ready``
    name, listing = connection.server.name, connection.listing
    if there:
        return Source(name, "server", listing.tools, listing.refused)
    return Source(name, "server", unavailable=connection.health().reason or "it is still being connected to")
