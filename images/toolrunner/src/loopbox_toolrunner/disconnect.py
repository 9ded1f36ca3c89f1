"""disconnect: owns the end of a request whose client has gone: it is cancelled, and with it what it runs."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class CancelOnDisconnect:
    """ASGI middleware. The MCP transport's plain JSON answers do not look for clients that went away."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: asyncio.Queue[Message] = asyncio.Queue(1)  # a body is read no faster than the application takes it
        answered = False

        async def noting_send(message: Message) -> None:
            nonlocal answered
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body", False)

        async def pump() -> None:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" and not answered:
                    serving.cancel()
                await messages.put(message)

        serving = asyncio.ensure_future(self._app(scope, messages.get, noting_send))
        pumping = asyncio.create_task(pump(), name="pump")
        try:
            # A cancel of ours ends here, since its cause is that nobody listens.
            await asyncio.wait({serving})
            if not serving.cancelled():
                serving.result()
        finally:
            serving.cancel()
            pumping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pumping
