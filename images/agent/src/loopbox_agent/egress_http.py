"""egress_http: owns HTTP clients that leave the appliance: through its CONNECT proxy, with limits on every answer.

The agent has no other way out, and no name resolution: the proxy resolves names, checks them against what was granted,
and logs. All targets are tunnelled, plain http ones as well, since the proxy knows CONNECT only.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpcore2
import httpx2

MAX_HEAD = 8 << 10  # bytes of the proxy's answer
CONNECT_S = 10.0
CONNECTIONS = 16  # of one client


class TooMuchError(httpx2.TransportError):
    """An answer is longer than it may be; the rest was not read."""


async def egress_client(
    proxy: str | None,
    *,
    timeout_s: float,
    headers: Mapping[str, str] | None = None,
    most_bytes: int,
    wrap: Callable[[httpx2.AsyncBaseTransport], httpx2.AsyncBaseTransport] | None = None,
) -> httpx2.AsyncClient:
    """Return a client; the caller closes it. Raises ValueError for a proxy that is neither unix:/path nor http://host.

    proxy: None connects directly. most_bytes: of one answer, streams too. wrap: puts a layer on the transport.
    """
    context = await asyncio.to_thread(_tls_context)
    limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=4)
    transport: httpx2.AsyncBaseTransport = BoundedTransport(_Tunnelled(proxy, context, limits), most_bytes)
    if wrap is not None:
        transport = wrap(transport)
    return httpx2.AsyncClient(
        transport=transport,
        timeout=httpx2.Timeout(timeout_s, connect=CONNECT_S),
        # What is packed could unpack to anything; so nothing packed is asked for, or taken.
        headers={**(headers or {}), "Accept-Encoding": "identity"},
        trust_env=False,
        follow_redirects=False,
    )


@functools.cache  # 20 ms each, and the same for all
def _tls_context() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


class _Tunnelled(httpx2.AsyncHTTPTransport):
    def __init__(self, proxy: str | None, context: ssl.SSLContext, limits: httpx2.Limits) -> None:
        super().__init__(verify=context, limits=limits, trust_env=False)
        if proxy is not None:
            # httpx2 takes a unix socket or a proxy, not a proxy on a unix socket; its own pool takes any network.
            self._pool = httpcore2.AsyncConnectionPool(
                ssl_context=context,
                max_connections=limits.max_connections,
                max_keepalive_connections=limits.max_keepalive_connections,
                keepalive_expiry=limits.keepalive_expiry,
                network_backend=_Through(proxy),
            )


class _Through(httpcore2.AnyIOBackend):
    """A network whose only road is the proxy."""

    def __init__(self, proxy: str) -> None:
        parts = urlsplit(proxy)
        self._socket = parts.path if parts.scheme == "unix" else ""
        self._host, self._port = parts.hostname or "", parts.port or 3128
        if not self._socket and (parts.scheme != "http" or not self._host):
            raise ValueError("the egress proxy must be unix:/path/of.sock or http://host:port")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 the signature is the library's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,  # Any: the library's own union
    ) -> httpcore2.AsyncNetworkStream:
        """Return a stream to the target, through the proxy."""
        if self._socket:
            stream = await super().connect_unix_socket(self._socket, timeout)
        else:
            stream = await super().connect_tcp(self._host, self._port, timeout, local_address, socket_options)
        try:
            await self._tunnel(stream, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", timeout)
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def _tunnel(self, stream: httpcore2.AsyncNetworkStream, target: str, seconds: float | None) -> None:
        await stream.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("ascii"), seconds)
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = await stream.read(MAX_HEAD, seconds)
            head += chunk
            if not chunk or len(head) > MAX_HEAD:
                raise httpcore2.ProxyError("the egress proxy closed the connection, or its answer is too long")
        head, _, early = head.partition(b"\r\n\r\n")
        status = head.split(b"\r\n", 1)[0].split(b" ")
        if len(status) < 2 or status[1] != b"200" or early:  # noqa: PLR2004 "HTTP/1.1 200 …"
            told = head.split(b"\r\n", 1)[0].decode(errors="replace")[:100]
            raise httpcore2.ProxyError(f"the egress proxy refused {target} ({told}); grant this host to reach it")


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Breaks off answers that are packed, or longer than ``most_bytes``."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, most_bytes: int) -> None:
        self._inner = inner
        self._most = most_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        response = await self._inner.handle_async_request(request)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await response.aclose()
            raise TooMuchError("the answer is packed, which was not asked for")
        assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101 it is an async transport's
        return httpx2.Response(
            response.status_code,
            headers=response.headers,
            stream=_Bounded(response.stream, self._most),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, most: int) -> None:
        self._inner = inner
        self._left = most
        self._most = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._left -= len(chunk)
            if self._left < 0:
                raise TooMuchError(f"the answer has more than {self._most} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
