"""correlate: owns the correlation id of each request: given or made, in its answer and in every log line."""

from __future__ import annotations

import contextlib
import re
import secrets

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loopbox_agent.errors import body_of, error_response

HEADER = "X-Correlation-Id"
_FORM = re.compile(r"[A-Za-z0-9._-]{8,64}")

log = structlog.get_logger("agent.http")


class Correlate:
    """Gives each request a correlation id. Plain ASGI: the framework's own kind hides a client's leaving."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its id bound."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        correlation_id = given if _FORM.fullmatch(given) else secrets.token_hex(8)

        async def send_named(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                MutableHeaders(scope=message)[HEADER] = correlation_id
            await send(message)

        structlog.contextvars.clear_contextvars()
        with structlog.contextvars.bound_contextvars(correlation_id=correlation_id):
            try:
                await self._app(scope, receive, send_named)
            except Exception as error:
                # Here, since the framework's last resort answers outside of this and without the id.
                log.exception("request.failed", path=scope["path"])
                if scope["type"] == "websocket":
                    raise
                with contextlib.suppress(RuntimeError):  # the answer had begun
                    await error_response(500, body_of(error))(scope, receive, send_named)


def correlation_id() -> str:
    """Return the id of the request being answered, '' outside of one."""
    return str(structlog.contextvars.get_contextvars().get("correlation_id", ""))
