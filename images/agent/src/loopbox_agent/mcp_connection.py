"""mcp_connection: owns the talk with one user's MCP server: a task of its own that connects, lists, and connects again.

The SDK's client is entered and left in that one task, as its cancel scopes demand (python-sdk#577); callers only send
requests through it, each in a task of its own that they need not wait for. Whatever the server does, a caller gets an
outcome within its time, and nothing is raised.
"""

from __future__ import annotations

import asyncio
import fnmatch
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import httpx2
import mcp.types as wire
import structlog
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from pydantic import JsonValue

from loopbox_agent.mcp_http import GONE, UNSENT
from loopbox_agent.sandbox import Outcome, outcome_of
from loopbox_agent.server_store import McpServer
from loopbox_agent.tool_spec import Listing, Refused, ToolSpec, clean_text, context_bytes, read_listing

State = Literal["idle", "connecting", "ready", "down"]
MAX_PAGES = 10  # of a listing
MAX_LISTED = 64  # tools of one server
MAX_AT_ONCE = 8  # calls to one server
MAX_WAITING = 32

log = structlog.get_logger("agent.mcp")

OpenHttp = Callable[[], Awaitable[httpx2.AsyncClient]]


@dataclass(frozen=True, slots=True)
class Pace:
    """Times of a connection, in seconds."""

    connect_s: float = 10.0  #: connecting and listing together
    relist_s: float = 300.0  #: for servers that don't tell of changes
    settle_s: float = 1.0  #: least time between two listings
    idle_s: float = 600.0  #: without a call, then the connection is closed
    first_retry_s: float = 1.0
    last_retry_s: float = 60.0


@dataclass(frozen=True, slots=True)
class ServerHealth:
    """How a server is."""

    name: str
    state: State
    reason: str  #: why it is down; "" when it is not
    tools: int
    refused: tuple[Refused, ...]
    protocol: str
    calls: int
    failures: int  #: calls that gave no answer of the server's own
    running: int


class Connection:
    """One server. Starts when it is first needed, and rests when it is not."""

    def __init__(self, server: McpServer, open_http: OpenHttp, pace: Pace) -> None:
        self.server = server
        self.listing = Listing(())
        self.used = time.monotonic()
        self._open_http = open_http
        self._pace = pace
        self._state: State = "idle"
        self._reason = ""
        self._protocol = ""
        self._client: Client | None = None
        self._owner: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()  #: ready or down
        self._wake = asyncio.Event()  #: the owner should look: list anew, leave, or try again
        self._relist = self._leave = False
        self._retry_at = 0.0
        self._room = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: set[asyncio.Task[Outcome]] = set()
        self._calls = self._failures = 0

    def health(self) -> ServerHealth:
        """Return how it is, as far as is known; asks nothing."""
        return ServerHealth(
            self.server.name,
            self._state,
            self._reason,
            len(self.listing.tools),
            self.listing.refused,
            self._protocol,
            self._calls,
            self._failures,
            len(self._tasks),
        )

    async def ready(self, within_s: float) -> bool:
        """Connect if need be; tell whether it is there. One found down a moment ago is not waited for."""
        self.used = time.monotonic()
        if self._client is not None:
            return True
        if self._state == "down" and self._owner and not self._owner.done() and time.monotonic() < self._retry_at:
            return False
        self._settled.clear()
        if self._owner is None or self._owner.done():
            self._state = "connecting"
            self._owner = asyncio.create_task(self._own(), name=f"mcp-{self.server.name}")
        self._wake.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._settled.wait()
        return self._client is not None

    async def call(self, tool: ToolSpec, arguments: Mapping[str, JsonValue]) -> Outcome:
        """Call a tool of this server. Whatever goes wrong is an outcome marked as error."""
        name = self.server.name
        if len(self._tasks) >= MAX_AT_ONCE + MAX_WAITING:
            return _failed(f"The server {name} has {len(self._tasks)} calls waiting; this one was not sent.")
        self._calls += 1
        begun = time.monotonic()
        if not await self.ready(self._pace.connect_s):
            self._failures += 1
            return _failed(f"The server {name} is not there ({self._reason or 'still connecting'}); nothing was sent.")
        task = asyncio.create_task(self._send(tool, arguments), name=f"mcp-call-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            left = max(0.0, begun + self.server.timeout_s - time.monotonic())
            done, _ = await asyncio.wait({task}, timeout=left)
            if done:
                return task.result()
        finally:
            task.cancel()  # and is not waited for: telling a hung server of the cancel may hang as well
        self._failures += 1
        return _failed(
            f"The server {name} did not answer {tool.source_name} within {self.server.timeout_s:g} s; "
            "whether it did what was asked is not known."
        )

    async def close(self) -> None:
        """End the calls, leave the server, and wait for both."""
        pending: list[asyncio.Task[Outcome] | asyncio.Task[None]] = list(self._tasks)
        if self._owner is not None:
            pending.append(self._owner)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending, timeout=self._pace.connect_s)
        self._state, self._client = "idle", None

    async def _send(self, tool: ToolSpec, arguments: Mapping[str, JsonValue]) -> Outcome:
        async with self._room:
            for last in (False, True):
                try:
                    return await self._send_once(tool, arguments)
                except MCPError as error:
                    if last or not _not_looked_at(error):
                        return self._gone_or_told(tool, error)
                except Exception as error:  # noqa: BLE001 the server's answer can break the SDK in any way
                    return self._broke(tool, error)
                self._reconnect()
                if not await self.ready(self._pace.connect_s):
                    self._failures += 1
                    return _failed(f"The server {self.server.name} is not there ({self._reason}); nothing was sent.")
        raise AssertionError("the second try returns")

    async def _send_once(self, tool: ToolSpec, arguments: Mapping[str, JsonValue]) -> Outcome:
        client = self._client
        if client is None:
            raise ConnectionError("it was left a moment ago")
        # Not call_tool: that checks the answer with the server's own output schema, whose patterns could take for ever.
        parameters = wire.CallToolRequestParams(name=tool.source_name, arguments=dict(arguments))
        answer = await client.session.send_request(wire.CallToolRequest(params=parameters), wire.CallToolResult)
        return outcome_of(answer.model_dump(by_alias=True, mode="json", exclude_none=True))

    def _gone_or_told(self, tool: ToolSpec, error: MCPError) -> Outcome:
        if error.code in {GONE, UNSENT, wire.CONNECTION_CLOSED}:
            return self._broke(tool, error)
        return _failed(f"The server {self.server.name} refused {tool.source_name}: {clean_text(error.message, 500)}")

    def _broke(self, tool: ToolSpec, error: Exception) -> Outcome:
        self._failures += 1
        self._reconnect()
        told = error.message if isinstance(error, MCPError) else str(error) or type(error).__name__
        return _failed(
            f"The server {self.server.name} broke off in {tool.source_name} ({clean_text(told, 300)}); "
            "whether it did what was asked is not known."
        )

    def _reconnect(self) -> None:
        if self._state == "ready":
            self._state, self._client = "connecting", None
            self._settled.clear()
            self._leave = True
            self._wake.set()

    async def _own(self) -> None:
        """Be connected, again and again, until nobody needs it or this task is cancelled."""
        failed = 0
        while True:
            self._leave = False
            try:
                async with self._connected() as client:
                    failed = 0
                    await self._tend(client)
            except Exception as error:
                if (task := asyncio.current_task()) and task.cancelling():
                    raise  # a task group can wrap a cancel of ours in what its children failed with
                failed += 1  # one server's fault, whatever it is, stays its own
                self._found_down(error)
            finally:
                self._client = None
            if self._state == "idle":
                return
            if self._state == "down":
                await self._pause(failed)

    async def _pause(self, failed: int) -> None:
        """Wait before the next try: longer after each failure, and until somebody asks."""
        longest = min(self._pace.last_retry_s, self._pace.first_retry_s * 2 ** min(failed - 1, 16))
        wait = longest * random.uniform(0.5, 1)  # noqa: S311 jitter
        self._retry_at = time.monotonic() + wait
        self._wake.clear()
        await asyncio.sleep(wait)
        await self._wake.wait()  # ``ready`` sets it
        self._state = "connecting"

    def _found_down(self, error: Exception) -> None:
        while isinstance(error, ExceptionGroup) and error.exceptions:
            error = error.exceptions[0]
        told = error.message if isinstance(error, MCPError) else str(error) or type(error).__name__
        self._reason = clean_text(told, 300)
        if isinstance(error, TimeoutError):
            self._reason = f"no answer within {self._pace.connect_s:g} s"
        self._state = "down"
        self._settled.set()
        log.warning("mcp.server_down", server=self.server.name, reason=self._reason)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        async with asyncio.timeout(self._pace.connect_s) as limit, AsyncExitStack() as stack:
            http = await self._open_http()
            await stack.enter_async_context(http)
            transport = streamable_http_client(str(self.server.url), http_client=http)
            client = Client(transport, message_handler=self._heard, cache=None, read_timeout_seconds=None)
            await stack.enter_async_context(client)
            self.listing = await self._list(client)
            self._protocol = clean_text(client.protocol_version, 20)
            limit.reschedule(None)
            self._client, self._state, self._reason = client, "ready", ""
            self._settled.set()
            yield client

    async def _tend(self, client: Client) -> None:
        """Stay until the connection is to be left; list anew when the server says so, and now and then."""
        listening = asyncio.create_task(self._listen(client), name=f"mcp-listen-{self.server.name}")
        try:
            while True:
                woken = False
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pace.relist_s):
                        woken = await self._wake.wait()
                        self._wake.clear()
                if self._leave:
                    return
                if woken and not self._relist:
                    continue  # ``ready`` woke it for nothing
                if not self._tasks and time.monotonic() - self.used > self._pace.idle_s:
                    self._state = "idle"
                    return
                self._relist = False
                async with asyncio.timeout(self._pace.connect_s):
                    self.listing = await self._list(client)
                await asyncio.sleep(self._pace.settle_s)  # a server that tells of changes without end is not followed
        finally:
            listening.cancel()
            await asyncio.wait({listening})

    async def _listen(self, client: Client) -> None:
        """Hear of changes from a server of the newest protocol; others tell on their own stream."""
        with suppress(Exception):  # not offered, or lost: it is listed now and then anyway
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    self._changed()

    async def _heard(self, message: object) -> None:
        if isinstance(message, wire.ToolListChangedNotification):
            self._changed()

    def _changed(self) -> None:
        self._relist = True
        self._wake.set()

    async def _list(self, client: Client) -> Listing:
        told: list[wire.Tool] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await client.session.list_tools(params=wire.PaginatedRequestParams(cursor=cursor))
            told += page.tools
            if not page.next_cursor or page.next_cursor == cursor or len(told) > MAX_LISTED * 4:
                break
            cursor = page.next_cursor
        raw = [tool.model_dump(by_alias=True, mode="json", exclude_none=True) for tool in told]
        return await asyncio.to_thread(usable, raw, self.server)  # checking many schemas takes long


def _not_looked_at(error: MCPError) -> bool:
    """Tell whether the call did not get there, or to a session that is gone: then it may be sent again."""
    return error.code == UNSENT or (error.code == wire.INVALID_REQUEST and "Session terminated" in error.message)


def usable(told: list[dict[str, JsonValue]], server: McpServer) -> Listing:
    """Return the tools that pass the server's filters, in the listing's order, within its share of context."""
    wanted = [one for one in told if allowed(str(one.get("name", "")), server)]
    listing = read_listing(wanted, source=server.name, kind="server")
    taken: list[ToolSpec] = []
    refused = list(listing.refused)
    used = 0
    for tool in listing.tools:
        size = context_bytes(tool)
        if len(taken) == MAX_LISTED:
            refused.append(Refused(tool.name, f"the server has more than {MAX_LISTED} tools"))
        elif used + size > server.context_bytes:
            refused.append(Refused(tool.name, f"its {size} bytes would pass the server's {server.context_bytes}"))
        else:
            taken.append(tool)
            used += size
    return Listing(tuple(taken), tuple(refused))


def allowed(name: str, server: McpServer) -> bool:
    """Tell whether the filters let a tool through, by the server's own name of it; deny is stronger."""
    if any(fnmatch.fnmatchcase(name, glob) for glob in server.deny):
        return False
    return any(fnmatch.fnmatchcase(name, glob) for glob in server.allow)


def _failed(text: str) -> Outcome:
    return Outcome(text, {"text": text}, is_error=True)
