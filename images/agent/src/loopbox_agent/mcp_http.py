"""mcp_http: owns the HTTP below the MCP SDK's client, so that one bad answer ends one call, not the connection.

The SDK lets an error of one POST end its whole task group, with all calls in it. Here such an error becomes that
request's own JSON-RPC answer.
"""

from __future__ import annotations

import json

import httpx2

from loopbox_agent.tool_spec import clean_text

# Codes of our own, in the range left to implementations.
GONE = -32098  # no answer of the server's was had
UNSENT = -32097  # and the request did not get there either
NOTE_S = 2.0  # for a notification: the SDK sends nothing else until it is taken


class ServerTransport(httpx2.AsyncBaseTransport):
    """Sends POSTs, and turns what breaks on the way into answers."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        if request.method == "DELETE" or _is_notification(await request.aread()):
            request.extensions = {**request.extensions, "timeout": dict.fromkeys(_PHASES, NOTE_S)}
        if request.method != "POST":
            return await self._inner.handle_async_request(request)
        try:
            response = await self._inner.handle_async_request(request)
            if not response.headers.get("content-type", "").lower().startswith("application/json"):
                return response  # a stream: the SDK ends that request alone when it breaks
            try:
                body = await response.aread()
            finally:
                await response.aclose()
        except httpx2.TransportError as error:
            return _gone(request, error)
        return httpx2.Response(response.status_code, headers=_plain(response.headers), content=body)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()


_PHASES = ("connect", "read", "write", "pool")


def _is_notification(body: bytes) -> bool:
    start = body[:200]  # the SDK writes the method first, and arguments after it
    return b'"notifications/' in start and b'"id"' not in start


def _gone(request: httpx2.Request, error: httpx2.TransportError) -> httpx2.Response:
    why = clean_text(str(error), 300) or type(error).__name__
    code = UNSENT if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError) else GONE
    told = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": why}}
    return httpx2.Response(
        502, headers={"Content-Type": "application/json"}, content=json.dumps(told).encode(), request=request
    )


def _plain(headers: httpx2.Headers) -> list[tuple[str, str]]:
    dropped = {"content-length", "transfer-encoding", "content-encoding"}
    return [(name, value) for name, value in headers.multi_items() if name.lower() not in dropped]
