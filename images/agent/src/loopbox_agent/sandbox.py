"""sandbox: owns a run's loan of a sandbox, and calls the tools inside it by MCP over its unix socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import httpx2
import structlog
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from loopbox_agent.errors import AgentError
from loopbox_agent.settings import Settings

BROKER_S = 15.0  # the broker itself waits for a sandbox that is starting
MAX_TEXT = 64 << 10  # of one result, to the model

log = structlog.get_logger("agent.sandbox")


class SandboxUnavailableError(AgentError):
    """No sandbox could be had; nothing was run."""

    code: ClassVar[str] = "sandbox_unavailable"
    status: ClassVar[int] = 503


class UnknownToolError(AgentError):
    """A tool by that name is not offered."""

    code: ClassVar[str] = "unknown_tool"
    status: ClassVar[int] = 400


class ToolBrokeError(AgentError):
    """The sandbox broke off in the middle of a call."""

    code: ClassVar[str] = "tool_broke_off"
    status: ClassVar[int] = 502


class _Lease(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    lease: str
    socket: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as the sandbox offers it."""

    name: str
    description: str
    schema: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call gave."""

    text: str  #: for the model
    result: Mapping[str, JsonValue]  #: structured, else {"text": …}
    is_error: bool


class Sandbox:
    """One leased sandbox."""

    def __init__(self, session: ClientSession, tools: Mapping[str, Tool], timeout_s: float) -> None:
        self._session = session
        self.tools = tools
        self._timeout_s = timeout_s

    def require(self, name: str) -> Tool:
        """Return a tool by name. Raises UnknownToolError listing the ones there are."""
        if name not in self.tools:
            known = sorted(self.tools)
            raise UnknownToolError(
                f"There is no tool {name[:100]!r}; nothing was run. There are: {', '.join(known)}.",
                details={"tools": list[JsonValue](known)},
            )
        return self.tools[name]

    async def call(self, name: str, arguments: Mapping[str, JsonValue]) -> Outcome:
        """Run a tool. Raises ToolBrokeError."""
        try:
            answer = await self._session.call_tool(name, dict(arguments), read_timeout_seconds=self._timeout_s)
        except Exception as error:
            raise ToolBrokeError(f"The tool {name} broke off: {error}; its sandbox is thrown away.") from error
        if not isinstance(answer, CallToolResult):
            raise ToolBrokeError(f"The tool {name} asked for more input, which no tool here may.")
        text = "\n".join(block.text for block in answer.content if isinstance(block, TextContent))[:MAX_TEXT]
        structured = answer.structured_content
        return Outcome(text, structured if isinstance(structured, dict) else {"text": text}, bool(answer.is_error))


def _below(path: str) -> str:
    if ".." in Path(path).parts or Path(path).is_absolute():
        raise SandboxUnavailableError("The lease broker named a socket outside the leases; it is not used.")
    return path


class Broker:
    """Borrows sandboxes from the daemon."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._http = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=str(settings.broker_socket)),
            base_url="http://broker",
            timeout=BROKER_S,
            trust_env=False,
        )
        self._returns: set[asyncio.Task[None]] = set()  # leases on their way back

    async def close(self) -> None:
        """Wait for the leases on their way back, then close every connection."""
        if self._returns:
            await asyncio.wait(self._returns, timeout=BROKER_S)
        await self._http.aclose()

    def is_there(self) -> bool:
        """Tell whether the broker's socket exists."""
        return self._settings.broker_socket.exists()

    @asynccontextmanager
    async def borrow(self, run_id: str) -> AsyncIterator[Sandbox]:
        """Yield a sandbox with its tools; it is given back whatever happens. Raises SandboxUnavailableError."""
        lease = await self._acquire_whole(run_id)
        kept: Exception | None = None
        try:
            async with self._connect(self._settings.leases_dir / _below(lease.socket)) as sandbox:
                # What the run raises must not pass the connection's task group, which would wrap it in a group.
                try:
                    yield sandbox
                except Exception as error:  # noqa: BLE001 raised again below
                    kept = error
        except BaseExceptionGroup as group:
            if group.subgroup(asyncio.CancelledError) is not None:
                raise
            raise SandboxUnavailableError(
                f"The sandbox broke off ({group.exceptions[0]!r}); it is thrown away. Try again.", retry_after_s=1
            ) from group
        finally:
            # In a task of its own: whoever cancels the run may do so again while it tidies up.
            await asyncio.shield(self._returning(self._release(lease)))
        if kept is not None:
            raise kept

    async def _acquire_whole(self, run_id: str) -> _Lease:
        """Acquire; a lease that is granted to a run cancelled meanwhile is given back as soon as its name is known."""
        asking = asyncio.create_task(self._acquire(run_id), name=f"lease-{run_id}")
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._returning(self._release_once_lent(asking))
            raise

    async def _release_once_lent(self, asking: asyncio.Task[_Lease]) -> None:
        with contextlib.suppress(SandboxUnavailableError):  # nothing was lent
            await self._release(await asking)

    def _returning(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="lease-return")
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)
        return task

    async def _acquire(self, run_id: str) -> _Lease:
        try:
            body = {"session": run_id, "ttl_s": self._settings.run_timeout_s + 30}
            response = await self._http.post("/v1/leases", json=body)
        except httpx2.HTTPError as error:
            raise SandboxUnavailableError(
                f"The lease broker does not answer ({type(error).__name__}); nothing was run. See `loopctl status`.",
                retry_after_s=2,
            ) from error
        if response.status_code != httpx2.codes.CREATED:
            raise SandboxUnavailableError(
                f"No sandbox is free ({response.status_code}); nothing was run. Try again in a moment.", retry_after_s=2
            )
        try:
            return _Lease.model_validate_json(response.content)
        except ValidationError as error:
            raise SandboxUnavailableError("The lease broker answered in another form; nothing was run.") from error

    async def _release(self, lease: _Lease) -> None:
        try:
            await self._http.delete(f"/v1/leases/{lease.lease}")
        except httpx2.HTTPError as error:
            log.warning("lease.not_given_back", lease=lease.lease, error=str(error))  # it expires by itself

    @asynccontextmanager
    async def _connect(self, socket: Path) -> AsyncIterator[Sandbox]:
        transport = httpx2.AsyncHTTPTransport(uds=str(socket))
        timeout = httpx2.Timeout(5.0, read=self._settings.tool_timeout_s + 5)
        async with (
            httpx2.AsyncClient(transport=transport, timeout=timeout, trust_env=False) as http,
            streamable_http_client("http://toolrunner/mcp", http_client=http) as streams,
            ClientSession(streams[0], streams[1]) as session,
        ):
            await session.initialize()
            listed = await session.list_tools()
            tools = {t.name: Tool(t.name, t.description or "", t.input_schema) for t in listed.tools}
            yield Sandbox(session, tools, self._settings.tool_timeout_s)
