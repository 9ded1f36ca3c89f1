"""server: owns the MCP server and its socket: Streamable HTTP, stateless, answering each POST with plain JSON."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import structlog
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from loopbox_toolrunner import __version__
from loopbox_toolrunner.disconnect import CancelOnDisconnect
from loopbox_toolrunner.launcher import Launcher
from loopbox_toolrunner.runner import Runner
from loopbox_toolrunner.settings import Settings
from loopbox_toolrunner.tools import Toolbox

SOCKET_MODE = 0o666  # who may connect is decided by the directory
BACKLOG = 128
MAX_CONNECTIONS = 128
MAX_BODY_BYTES = 4 << 20
EXIT_SPOILT = 70

log = structlog.get_logger("toolrunner.server")


def build_app(toolbox: Toolbox) -> ASGIApp:
    """Return the application: POST /mcp and GET /health."""

    # Any: the SDK's lifespan state, of which there is none.
    async def list_tools(_ctx: ServerRequestContext[object], _params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=toolbox.tools())

    async def call_tool(_ctx: ServerRequestContext[object], params: CallToolRequestParams) -> CallToolResult:
        return await toolbox.call(params.name, params.arguments or {})

    async def health(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    server: Server[object] = Server(
        "loopbox-toolrunner", version=__version__, on_list_tools=list_tools, on_call_tool=call_tool
    )
    app = server.streamable_http_app(
        json_response=True,
        stateless_http=True,
        max_request_body_size=MAX_BODY_BYTES,
        # A unix socket has no host names, and no browser reaches it.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        custom_starlette_routes=[Route("/health", health, methods=["GET"])],
    )
    return CancelOnDisconnect(app)


@contextlib.asynccontextmanager
async def open_toolbox(settings: Settings, launcher: Launcher, stop: asyncio.Event) -> AsyncIterator[Toolbox]:
    """Have a toolbox; ``stop`` is set when the sandbox is spoilt."""
    runner = Runner(settings, launcher, lambda _why: stop.set())
    try:
        yield Toolbox(settings, runner)
    finally:
        await runner.close()


async def serve(settings: Settings, launcher: Launcher) -> int:
    """Serve until a signal or until the sandbox is spoilt; return the exit code."""
    spoilt = asyncio.Event()
    async with open_toolbox(settings, launcher, spoilt) as toolbox:
        config = uvicorn.Config(
            build_app(toolbox),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        server = _Server(config)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        watching = asyncio.create_task(server.stop_after(stop, spoilt), name="stop")
        listening = listen(settings.socket)
        log.info("server.ready", socket=str(settings.socket), zygote=launcher.pid)
        try:
            await server.serve(sockets=[listening])
        finally:
            watching.cancel()
            with contextlib.suppress(OSError):
                settings.socket.unlink()
    return EXIT_SPOILT if spoilt.is_set() else 0


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to ``serve``: uvicorn raises them again at its end, and nothing after that would be run."""
        yield

    async def stop_after(self, *events: asyncio.Event) -> None:
        """End when any of these is set."""
        waits = [asyncio.create_task(event.wait()) for event in events]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            self.should_exit = True
        finally:
            for wait in waits:
                wait.cancel()


def listen(path: Path) -> socket.socket:
    """Return a listening socket that appears at ``path`` complete: with its mode, taking connections."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(fresh))
        fresh.chmod(SOCKET_MODE)
        listening.listen(BACKLOG)
        fresh.replace(path)
    except OSError:
        listening.close()
        raise
    return listening
