"""The agent's surroundings over real sockets: a scripted engine, a lease broker, a tool runner, and the agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI
from mcp.server.lowlevel.server import Server
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import CallToolResult, ListToolsResult, TextContent, Tool

from loopbox_agent.app import build_app
from loopbox_agent.settings import Settings

Line = Mapping[str, Any]  # Any: JSON
WAIT_S = 10.0


def piece(text: str = "", **more: object) -> Line:
    return {"message": {"role": "assistant", "content": text, **more}, "done": False}


def done(read: int = 7, generated: int = 3, reason: str = "stop") -> Line:
    counts = {"prompt_eval_count": read, "eval_count": generated}
    return {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": reason, **counts}


def calls(name: str, **arguments: object) -> Line:
    return piece(tool_calls=[{"function": {"name": name, "arguments": arguments}}])


@dataclass
class Script:
    """One answer of the engine: lines, then perhaps silence, then perhaps the line goes dead."""

    lines: tuple[Line | bytes, ...] = ()
    status: int = 200
    hold: bool = False  #: say nothing after the lines until the client leaves, or the engine is let go on
    rest: tuple[Line, ...] = ()  #: said then
    cut: bool = False  #: break the connection off after the lines


def says(*texts: str) -> Script:
    return Script((*(piece(text) for text in texts), done()))


@dataclass
class StubEngine:
    """Answers /api/chat from its scripts, the last one for ever."""

    url: str = ""
    scripts: list[Script] = field(default_factory=lambda: [says("Hello", " there")])
    orders: list[dict[str, Any]] = field(default_factory=list)  #: Any: JSON bodies received
    headers: list[Mapping[str, str]] = field(default_factory=list)
    peers: set[object] = field(default_factory=set)  #: connections of clients
    models: tuple[str, ...] = ("agent:latest",)
    probes: int = 0
    counts: bool = False  #: say how long the prompt was, at four characters a token, instead of what the script says
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)  #: a client went away from a held answer

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.orders.append(await request.json())
        self.headers.append(request.headers.copy())
        self.peers.add(request.transport.get_extra_info("peername") if request.transport else None)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        response = web.StreamResponse(status=script.status)
        await response.prepare(request)
        prompt = sum(len(message["content"]) for message in self.orders[-1]["messages"]) // 4
        for told in script.lines:
            line = {**told, "prompt_eval_count": prompt} if self.counts and not isinstance(told, bytes) else told
            await response.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        if script.cut and request.transport:
            request.transport.abort()
        if script.hold:
            self.holding.set()
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.left.set()
                raise
            for line in script.rest:
                await response.write(json.dumps(line).encode() + b"\n")
        return response

    async def tags(self, _: web.Request) -> web.Response:
        self.probes += 1
        return web.json_response({"models": [{"name": name} for name in self.models]})


@dataclass
class StubBroker:
    """Lends one tool runner over and over; knows which leases are out."""

    socket: str = "box/tools.sock"
    lent: list[Any] = field(default_factory=list)  #: Any: JSON bodies received
    out: set[str] = field(default_factory=set)
    empty: bool = False
    told: list[Any] = field(default_factory=list)  #: Any: JSON bodies of the audit trail
    back: asyncio.Condition = field(default_factory=asyncio.Condition)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    answer: asyncio.Event = field(default_factory=asyncio.Event)
    asked_back: asyncio.Event = field(default_factory=asyncio.Event)  #: a lease is being given back
    take: asyncio.Event = field(default_factory=asyncio.Event)  #: it is taken back once this is set

    def __post_init__(self) -> None:
        self.answer.set()
        self.take.set()

    async def lend(self, request: web.Request) -> web.Response:
        self.lent.append(await request.json())
        if self.empty:
            error = {"code": "sandboxes_busy", "message": "no sandbox was free", "details": {}, "timestamp": "now"}
            return web.json_response({"error": error}, status=503)
        lease = f"lease{len(self.lent)}"
        self.out.add(lease)
        self.asked.set()
        await self.answer.wait()
        body = {"lease": lease, "socket": self.socket, "expires_at": "2030-01-01T00:00:00Z"}
        return web.json_response(body, status=201)

    async def take_back(self, request: web.Request) -> web.Response:
        self.asked_back.set()
        await self.take.wait()
        async with self.back:
            self.out.discard(request.match_info["lease"])
            self.back.notify_all()
        return web.Response(status=204)

    async def audit(self, request: web.Request) -> web.Response:
        self.told += (await request.json())["entries"]
        return web.Response(status=204)

    async def all_back(self) -> None:
        """Wait until no lease is out."""
        async with asyncio.timeout(WAIT_S), self.back:
            await self.back.wait_for(lambda: not self.out)


TOOLS = [
    Tool(
        name="python",
        description="Run Python.\nMore words.",
        input_schema={
            "type": "object",
            "properties": {"code": {"type": "string"}, "timeout_s": {"type": "number", "maximum": 60}},
            "required": ["code"],
            "additionalProperties": False,
        },
    ),
    Tool(name="fail", description="Fail.", input_schema={"type": "object", "properties": {}}),
    Tool(name="plain", description="Text alone.", input_schema={"type": "object", "properties": {}}),
    Tool(name="hang", description="Hang.", input_schema={"type": "object", "properties": {}}),
]


@dataclass
class StubTools:
    """A real MCP server with four tools."""

    ran: list[tuple[str, Mapping[str, object]]] = field(default_factory=list)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)

    async def list_tools(self, _ctx: object, _params: object) -> ListToolsResult:
        return ListToolsResult(tools=TOOLS)

    async def call_tool(self, _ctx: object, params: Any) -> CallToolResult:  # Any: the SDK's record
        self.ran.append((params.name, params.arguments or {}))
        if params.name == "python":
            told = {"stdout": f"ran {params.arguments['code']}", "exit_code": 0}
            return CallToolResult(content=[TextContent(text=told["stdout"])], structured_content=told)
        if params.name == "hang":
            self.hanging.set()
            await asyncio.Event().wait()
        return CallToolResult(content=[TextContent(text=f"{params.name} said so")], is_error=params.name == "fail")


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to pytest."""
        yield


@contextlib.asynccontextmanager
async def serving(
    app: Any,  # Any: an ASGI application
    listening: socket.socket,
    *,
    ws_max_size: int = 1 << 20,
) -> AsyncIterator[None]:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        ws="websockets-sansio",
        ws_max_size=ws_max_size,
        timeout_graceful_shutdown=1,
    )
    server = _Uvicorn(config)
    task = asyncio.create_task(server.serve(sockets=[listening]))
    async with asyncio.timeout(WAIT_S):
        while not server.started:
            await asyncio.sleep(0.005)
    try:
        yield
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def answering(*routes: web.RouteDef, path: Path | None = None) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app, shutdown_timeout=0.2, handler_cancellation=True)
    await runner.setup()
    site = web.UnixSite(runner, path) if path else web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield "" if path else f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A short path: a unix socket's has 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="lb-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def engine() -> AsyncIterator[StubEngine]:
    stub = StubEngine()
    async with answering(web.post("/api/chat", stub.chat), web.get("/api/tags", stub.tags)) as url:
        stub.url = url
        yield stub


@pytest.fixture
async def broker(run_dir: Path) -> AsyncIterator[StubBroker]:
    stub = StubBroker()
    routes = (
        web.post("/v1/leases", stub.lend),
        web.delete("/v1/leases/{lease}", stub.take_back),
        web.post("/v1/audit", stub.audit),
    )
    async with answering(*routes, path=run_dir / "broker.sock"):
        yield stub


@pytest.fixture
async def tools(run_dir: Path) -> AsyncIterator[StubTools]:
    stub = StubTools()
    server: Server[object] = Server("stub", on_list_tools=stub.list_tools, on_call_tool=stub.call_tool)
    app = server.streamable_http_app(
        json_response=True,
        stateless_http=True,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    (run_dir / "leases" / "box").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(run_dir / "leases" / "box" / "tools.sock"))
        async with serving(app, listening):
            yield stub


@dataclass
class Agent:
    """The running service and a client of it."""

    http: httpx2.AsyncClient
    settings: Settings
    app: FastAPI

    async def run(self, **body: object) -> httpx2.Response:
        return await self.http.post("/agents/run-agent", json={"instruction": "Say hello.", **body})

    async def events(self, **body: object) -> list[tuple[int, str, dict[str, Any]]]:  # Any: JSON
        response = await self.run(stream=True, **body)
        assert response.headers["Content-Type"].startswith("text/event-stream")
        return parse_events(response.text)


def parse_events(text: str) -> list[tuple[int, str, dict[str, Any]]]:  # Any: JSON
    told = []
    for frame in filter(None, text.split("\n\n")):
        fields = dict(line.split(": ", 1) for line in frame.splitlines() if not line.startswith(":"))
        if fields:
            told.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return told


@dataclass
class Launch:
    """Starts the agent with settings of a test's own."""

    engine_url: str
    run_dir: Path
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def __call__(self, **changes: Any) -> Agent:  # Any: settings
        settings = Settings.model_validate(
            {
                "engine_url": self.engine_url,
                "broker_socket": self.run_dir / "broker.sock",
                "leases_dir": self.run_dir / "leases",
                "engine_silence_s": 5,
                "resume_grace_s": 0,
                "state_dir": self.run_dir / f"state{len(list(self.run_dir.iterdir()))}",
                "backup_every_s": 0,
                **changes,
            }
        )
        # TCP by name: asyncio sets TCP_NODELAY on no other, and each answer would wait 40 ms.
        listening = self.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP))
        listening.bind(("127.0.0.1", 0))
        app = build_app(settings)
        await self.stack.enter_async_context(serving(app, listening, ws_max_size=settings.max_body_bytes))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        http = await self.stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=WAIT_S, trust_env=False))
        return Agent(http, settings, app)

    async def stop(self) -> None:
        """Stop the agents that were started so far."""
        await self.stack.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()


@pytest.fixture
async def launch(engine: StubEngine, broker: StubBroker, tools: StubTools, run_dir: Path) -> AsyncIterator[Launch]:
    async with Launch(engine.url, run_dir) as launching:
        yield launching


@pytest.fixture
async def agent(launch: Launch) -> Agent:
    return await launch()
