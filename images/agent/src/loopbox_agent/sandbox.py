"""sandbox: owns the loan of a sandbox, over one run or several, and calls the tools inside it over its unix socket.

One POST a call, as decision 6 has it for loopd: the MCP SDK's client tells a stateless server of a cancel by another
POST, which nobody there can match with the call; closing the call's own connection ends its processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal, Protocol

import httpx2
import structlog
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from loopbox_agent.errors import AgentError
from loopbox_agent.tool_registry import Tool, UnknownToolError, unknown
from loopbox_agent.tool_spec import read_listing
from loopbox_agent.workspace_file import Workspace

__all__ = ["Broker", "Outcome", "Sandbox", "SandboxUnavailableError", "Tool", "ToolBrokeError", "UnknownToolError"]

BROKER_S = 15.0  # the broker itself waits for a sandbox that is starting
CLOSE_S = 2.0  # for leases to be given back when the agent is stopped
LIST_S = 10.0
MAX_TEXT = 64 << 10  # of one result, to the model
MAX_ANSWER = 8 << 20  # bytes of one answer of a tool runner
PROTOCOL = "2025-11-25"
CONNECTIONS = 64  # to one sandbox; its tool runner takes 128
SLACK_S = 30.0  # a lease outlives the run that it is for

Kind = Literal["tools", "browser"]

log = structlog.get_logger("agent.sandbox")

_ANSWER: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


class SandboxUnavailableError(AgentError):
    """No sandbox could be had; nothing was run."""

    code: ClassVar[str] = "sandbox_unavailable"
    status: ClassVar[int] = 503


class ToolBrokeError(AgentError):
    """The sandbox broke off in the middle of a call."""

    code: ClassVar[str] = "tool_broke_off"
    status: ClassVar[int] = 502


class _Lease(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    lease: str
    socket: str
    expires_at: datetime | None = None


class _Renewed(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call gave."""

    text: str  #: for the model
    result: Mapping[str, JsonValue]  #: structured, else {"text": …}
    is_error: bool


class Sandbox:
    """One leased sandbox. Calls may be made at the same time; cancelling one ends its processes and no other's."""

    def __init__(self, lease: _Lease, socket: Path, timeout_s: float) -> None:
        self.lease = lease.lease
        self.expires_at = lease.expires_at or datetime.now(UTC)
        self.tools: Mapping[str, Tool] = {}
        self.broken = False  #: a call broke off; the next run needs another sandbox
        self._timeout_s = timeout_s
        self._http = _unix_client(
            socket,
            "http://toolrunner",
            timeout=httpx2.Timeout(5.0, read=timeout_s + 5),
            limits=httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=8),
        )
        self.workspace = Workspace(self._http)

    def require(self, name: str) -> Tool:
        """Return a tool by name. Raises UnknownToolError listing the ones there are."""
        if name not in self.tools:
            raise unknown(name, self.tools)
        return self.tools[name]

    async def call(self, name: str, arguments: Mapping[str, JsonValue]) -> Outcome:
        """Run a tool; a cancel ends its processes. Raises ToolBrokeError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await self._post("tools/call", {"name": name, "arguments": dict(arguments)})
        except (httpx2.HTTPError, TimeoutError, ValueError) as error:
            self.broken = True
            why = str(error) or type(error).__name__
            raise ToolBrokeError(f"The tool {name} broke off: {why}; its sandbox is thrown away.") from error
        return outcome_of(result)

    async def open(self) -> None:
        """Learn which tools there are. Raises SandboxUnavailableError."""
        try:
            async with asyncio.timeout(LIST_S):
                result = await self._post("tools/list", {})
        except (httpx2.HTTPError, TimeoutError, ValueError) as error:
            why = str(error) or type(error).__name__
            raise SandboxUnavailableError(
                f"The sandbox does not answer ({why}); nothing was run. Try again.", retry_after_s=1
            ) from error
        self.tools = _tools_of(json.dumps(result.get("tools")))

    async def close(self) -> None:
        """Close every connection; calls in flight end with them."""
        await self._http.aclose()

    async def _post(self, method: str, params: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """Return the result. Raises httpx2.HTTPError, or ValueError for an answer of another form."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        headers = {
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
            "MCP-Protocol-Version": PROTOCOL,
        }
        text = bytearray()
        async with self._http.stream("POST", "/mcp", content=json.dumps(body), headers=headers) as response:
            async for chunk in response.aiter_raw():
                text += chunk
                if len(text) > MAX_ANSWER:
                    raise ValueError(f"it answered with more than {MAX_ANSWER} bytes")
        answer = _ANSWER.validate_json(bytes(text))  # ValidationError is a ValueError
        result = answer.get("result")
        if not isinstance(result, dict):
            error = answer.get("error")
            told = error.get("message") if isinstance(error, dict) else response.status_code
            raise ValueError(f"it was refused ({str(told)[:300]})")  # noqa: TRY004 its own form is wrong, not our type
        return result


@functools.lru_cache(maxsize=8)  # sandboxes of one image tell the same, and checking the schemas takes milliseconds
def _tools_of(told: str) -> Mapping[str, Tool]:
    tools = json.loads(told)
    listing = read_listing(tools if isinstance(tools, list) else [], source="sandbox", kind="sandbox")
    for refused in listing.refused:
        log.warning("tool.refused", tool=refused.name, reason=refused.reason)
    return MappingProxyType({tool.name: tool for tool in listing.tools})


def outcome_of(result: Mapping[str, JsonValue]) -> Outcome:
    """Return what an MCP tools/call result gives the model; pictures and the like are named, not shown."""
    content = result.get("content")
    text = "\n".join(_shown(block) for block in content) if isinstance(content, list) else ""
    # A lone surrogate is legal in JSON and in no UTF-8 that this text goes into.
    text = text[:MAX_TEXT].encode(errors="replace").decode()
    structured = result.get("structuredContent")
    return Outcome(text, structured if isinstance(structured, dict) else {"text": text}, bool(result.get("isError")))


def _shown(block: JsonValue) -> str:
    match block:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "resource_link", "uri": str(uri)}:
            return f"[link: {uri[:500]}]"
        case {"type": "resource", "resource": {"text": str(text)}}:
            return text
        case {"type": str(kind), "data": str(data)}:
            return f"[{kind[:40]}, {len(data) * 3 // 4} bytes, not shown]"
        case _:
            return "[content of another kind, not shown]"


def _unix_client(socket: Path, base_url: str, *, timeout: httpx2.Timeout, limits: httpx2.Limits) -> httpx2.AsyncClient:
    # verify=False: nothing on a unix socket speaks TLS here, and loading the CA bundle takes 20 ms of each client.
    transport = httpx2.AsyncHTTPTransport(uds=str(socket), verify=False, trust_env=False, limits=limits)
    return httpx2.AsyncClient(transport=transport, base_url=base_url, timeout=timeout, trust_env=False)


def _below(path: str) -> str:
    if ".." in Path(path).parts or Path(path).is_absolute():
        raise SandboxUnavailableError("The lease broker named a socket outside the leases; it is not used.")
    return path


class BrokerPlaces(Protocol):
    """Where the broker is and how long things take; the service's settings, or BrokerSettings."""

    @property
    def broker_socket(self) -> Path:
        """Of loopd's lease broker."""

    @property
    def leases_dir(self) -> Path:
        """Where lent sandboxes' sockets appear."""

    @property
    def run_timeout_s(self) -> float:
        """Of a run, and so of a lease that is not asked for longer."""

    @property
    def tool_timeout_s(self) -> float:
        """Of one tool call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """What a Broker needs to know."""

    broker_socket: Path = Path("/run/broker/broker.sock")
    leases_dir: Path = Path("/run/leases")
    run_timeout_s: float = 300.0
    tool_timeout_s: float = 120.0


class Broker:
    """Borrows sandboxes from the daemon."""

    def __init__(self, settings: BrokerPlaces) -> None:
        self._settings = settings
        self._http = _unix_client(
            settings.broker_socket, "http://broker", timeout=httpx2.Timeout(BROKER_S), limits=httpx2.Limits()
        )
        self._returns: set[asyncio.Task[None]] = set()  # leases on their way back

    async def close(self) -> None:
        """Wait for the leases on their way back, then close every connection."""
        if self._returns:
            await asyncio.wait(self._returns, timeout=CLOSE_S)  # one that is not back then expires by itself
        await self._http.aclose()

    def is_there(self) -> bool:
        """Tell whether the broker's socket exists."""
        return self._settings.broker_socket.exists()

    @asynccontextmanager
    async def borrow(
        self, session: str, ttl_s: float | None = None, kind: Kind = "tools", hosts: Sequence[str] = ()
    ) -> AsyncIterator[Sandbox]:
        """Yield a sandbox with its tools; it is given back whatever happens. Raises SandboxUnavailableError."""
        sandbox = await self.acquire(session, ttl_s, kind, hosts)
        try:
            yield sandbox
        finally:
            await self.release(sandbox)

    async def acquire(
        self, session: str, ttl_s: float | None = None, kind: Kind = "tools", hosts: Sequence[str] = ()
    ) -> Sandbox:
        """Return a sandbox to hold until ``release``; it expires by itself after ``ttl_s``.

        hosts: names that the sandbox may reach through the egress proxy; none by default.
        Raises SandboxUnavailableError; then, and when this is cancelled, nothing stays lent.
        """
        ttl_s = self._settings.run_timeout_s + SLACK_S if ttl_s is None else ttl_s
        lease = await self._acquire_whole(session, ttl_s, kind, hosts)
        try:
            socket = self._settings.leases_dir / _below(lease.socket)
        except SandboxUnavailableError:
            await asyncio.shield(self._returning(self._release(lease.lease)))
            raise
        if lease.expires_at is None:
            lease = lease.model_copy(update={"expires_at": datetime.now(UTC) + timedelta(seconds=ttl_s)})
        sandbox = Sandbox(lease, socket, self._settings.tool_timeout_s)
        try:
            await sandbox.open()
        except BaseException:
            await self.release(sandbox)
            raise
        return sandbox

    async def renew(self, sandbox: Sandbox, ttl_s: float) -> datetime:
        """Keep a sandbox for another ``ttl_s`` from now; return when it expires. Raises SandboxUnavailableError."""
        try:
            response = await self._http.post(f"/v1/leases/{sandbox.lease}/renew", json={"ttl_s": ttl_s})
            response.raise_for_status()
            sandbox.expires_at = _Renewed.model_validate_json(response.content).expires_at
        except (httpx2.HTTPError, ValidationError) as error:
            raise SandboxUnavailableError(
                f"The sandbox could not be kept longer ({type(error).__name__}); it may be gone soon. "
                "What is in its workspace can be exported until then.",
            ) from error
        return sandbox.expires_at

    async def release(self, sandbox: Sandbox) -> None:
        """Give a sandbox back; never fails, and is not stopped by a cancel."""
        # In a task of its own: whoever cancels the run may do so again while it tidies up.
        await asyncio.shield(self._returning(self._close_and_release(sandbox)))

    async def _close_and_release(self, sandbox: Sandbox) -> None:
        await sandbox.close()
        await self._release(sandbox.lease)

    async def _acquire_whole(self, session: str, ttl_s: float, kind: Kind, hosts: Sequence[str]) -> _Lease:
        """Acquire; a lease that is granted to a run cancelled meanwhile is given back as soon as its name is known."""
        asking = asyncio.create_task(self._acquire(session, ttl_s, kind, hosts), name=f"lease-{session}")
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._returning(self._release_once_lent(asking))
            raise

    async def _release_once_lent(self, asking: asyncio.Task[_Lease]) -> None:
        with contextlib.suppress(SandboxUnavailableError):  # nothing was lent
            await self._release((await asking).lease)

    def _returning(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="lease-return")
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)
        return task

    async def _acquire(self, session: str, ttl_s: float, kind: Kind, hosts: Sequence[str]) -> _Lease:
        body: dict[str, JsonValue] = {"session": session, "ttl_s": ttl_s}
        if kind != "tools":
            body["kind"] = kind
        if hosts:
            body["hosts"] = list(hosts)
        try:
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

    async def _release(self, lease: str) -> None:
        try:
            await self._http.delete(f"/v1/leases/{lease}")
        except httpx2.HTTPError as error:
            log.warning("lease.not_given_back", lease=lease, error=str(error))  # it expires by itself
