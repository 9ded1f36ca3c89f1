"""server: owns the MCP server and its socket: Streamable HTTP, stateless, answering each POST with plain JSON."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
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
from loopbox_toolrunner.egress import Egress
from loopbox_toolrunner.files import Files
from loopbox_toolrunner.jail import Jail
from loopbox_toolrunner.launcher import Launcher
from loopbox_toolrunner.runner import Runner
from loopbox_toolrunner.settings import Settings
from loopbox_toolrunner.tool import Extension, OpenTools, Seat
from loopbox_toolrunner.tools import Toolbox
from loopbox_toolrunner.workspace import Workspace

SOCKET_MODE = 0o666  # who may connect is decided by the directory
BACKLOG = 128
MAX_CONNECTIONS = 128
MAX_BODY_BYTES = 4 << 20
EXIT_SPOILT = 70
EGRESS_SOCKET = "egress.sock"  # beside ours

log = structlog.get_logger("toolrunner.server")


def build_app(box: Box) -> ASGIApp:
    """Return the application: POST /mcp, GET /health, GET and PUT /workspace."""
    toolbox = box.toolbox

    # Any: the SDK's lifespan state, of which there is none.
    async def list_tools(_ctx: ServerRequestContext[object], _params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=toolbox.tools())

    async def call_tool(_ctx: ServerRequestContext[object], params: CallToolRequestParams) -> CallToolResult:
        return await toolbox.call(params.name, params.arguments or {})

    async def health(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "bubblewrap": box.runner.wrapped, **box.health()})

    server: Server[object] = Server(
        "loopbox-toolrunner", version=__version__, on_list_tools=list_tools, on_call_tool=call_tool
    )
    app = server.streamable_http_app(
        json_response=True,
        stateless_http=True,
        max_request_body_size=MAX_BODY_BYTES,
        # A unix socket has no host names, and no browser reaches it.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        custom_starlette_routes=[Route("/health", health, methods=["GET"]), *box.workspace.routes()],
    )
    return CancelOnDisconnect(app)


@dataclass(frozen=True, slots=True)
class Box:
    """What the application serves."""

    toolbox: Toolbox
    workspace: Workspace
    runner: Runner
    health: Callable[[], dict[str, object]]


@contextlib.asynccontextmanager
async def open_box(settings: Settings, launcher: Launcher, stop: asyncio.Event) -> AsyncIterator[Box]:
    """Have the tools; ``stop`` is set when the sandbox is spoilt."""
    egress = Egress(settings.socket.with_name(EGRESS_SOCKET))
    runner = Runner(settings, launcher, lambda _why: stop.set(), egress)
    jail = Jail(settings.workspace)
    files = Files(
        jail,
        max_read_bytes=settings.max_read_bytes,
        max_write_bytes=settings.max_read_bytes,
        output_bytes=settings.shown_bytes,
    )
    try:
        await runner.probe()
        async with _open_extra(seat := Seat(settings, runner, egress, jail, files)) as extra:
            yield Box(Toolbox(seat, extra.rows), Workspace(settings, runner), runner, extra.health)
    finally:
        await runner.close()
        await egress.close()


@contextlib.asynccontextmanager
async def _open_extra(seat: Seat) -> AsyncIterator[Extension]:
    """Have the further tools of the module that the image names, none where it names none."""
    if not seat.settings.extra:
        yield Extension(())
        return
    open_tools: OpenTools = importlib.import_module(seat.settings.extra).open_tools
    async with open_tools(seat) as extra:
        yield extra


async def serve(settings: Settings, launcher: Launcher) -> int:
    """Serve until a signal or until the sandbox is spoilt; return the exit code."""
    spoilt = asyncio.Event()
    async with open_box(settings, launcher, spoilt) as box:
        config = uvicorn.Config(
            build_app(box),
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
