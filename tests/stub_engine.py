"""stub_engine: a stand-in engine or agent: says its name, streams until told to end, remembers what it was sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Stub:
    """One server. ``/api/chat`` streams "begin", and "end" once ``hold`` is set; all else answers at once."""

    name: str
    address: str = ""
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    streaming: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)  #: a client went away in the middle of a stream
    mute: bool = False  #: streams send nothing before ``hold``
    healthy: bool = True
    answered: int = 0
    body_bytes: int = 0  #: of the last request
    headers: Mapping[str, str] = field(default_factory=dict)  #: of the last request

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        if request.path in ("/api/version", "/health"):
            return web.Response(status=200 if self.healthy else 500)
        self.body_bytes = len(await request.read())
        self.headers = request.headers.copy()
        self.answered += 1
        if request.path == "/agents/ws":
            return await self._echo(request)
        if request.path != "/api/chat":
            return web.json_response({"server": self.name, "path": request.path})
        response = web.StreamResponse()
        try:
            if not self.mute:
                await response.prepare(request)
                await response.write(b"begin ")
            self.streaming.set()
            await self.hold.wait()
            if self.mute:
                await response.prepare(request)
            await response.write(b"end")
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return response

    @staticmethod
    async def _echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket


@contextlib.asynccontextmanager
async def serving(*stubs: Stub) -> AsyncIterator[None]:
    """Serve stubs on loopback."""
    async with contextlib.AsyncExitStack() as stack:
        for stub in stubs:
            app = web.Application(client_max_size=64 << 20)
            app.router.add_route("*", "/{path:.*}", stub.answer)
            runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            stack.callback(stub.hold.set)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            stub.address = f"127.0.0.1:{runner.addresses[0][1]}"
        yield
