"""socket_proxy: owns a unix socket before Docker's that delays, breaks off, lies or falls silent when told to."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

DOCKER = "/var/run/docker.sock"
HEAD_BYTES = 64 << 10
REFUSED = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: 41\r\n"
    b'Connection: close\r\n\r\n{"message": "the test had this go wrong"}\n'
)

T = TypeVar("T")


@dataclass
class SocketProxy:
    """One connection to Docker for each request. The fields that are public are the faults, to be set at any time."""

    path: Path
    delay_s: float = 0.0  #: before each request is passed on
    reset_before: int = 0  #: so many next requests that change something are cut before Docker sees them
    reset_after: int = 0  #: so many next ones are cut when Docker has done them
    refuse_after: str = ""  #: a request whose line has this in it is done, and answered with 500; once
    silent: bool = False  #: event streams stay open and say nothing
    seen: list[str] = field(default_factory=list)  #: request lines
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _server: asyncio.Server | None = None
    _streams: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def listen(self) -> None:
        """Take connections."""

        async def begin() -> None:
            self._server = await asyncio.start_unix_server(self._serve, str(self.path), limit=HEAD_BYTES)

        self._run(begin())

    def close(self) -> None:
        """Refuse connections from now on, and cut event streams."""

        async def end() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None
            self.path.unlink(missing_ok=True)

        self._run(end())
        self.end_streams()

    def end_streams(self) -> None:
        """Have every event stream end as if Docker had nothing more to say."""

        async def end() -> None:
            for writer in tuple(self._streams):
                writer.close()

        self._run(end())

    @property
    def streams(self) -> int:
        """How many event streams are open."""
        return len(self._streams)

    def _run(self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            await self._pass_on(head, body, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client went, or Docker did
        finally:
            self._streams.discard(writer)
            writer.close()

    async def _pass_on(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        line = head.split(b"\r\n", 1)[0].decode()
        self.seen.append(line)
        changes = not line.startswith(("GET", "HEAD"))
        if "/events" in line:
            return await self._stream(head, writer)
        await asyncio.sleep(self.delay_s)
        if changes and self.reset_before:
            self.reset_before -= 1
            return reset(writer)
        answer = await ask_docker(head, body)
        if changes and self.reset_after:
            self.reset_after -= 1
            return reset(writer)
        if self.refuse_after and self.refuse_after in line:
            self.refuse_after = ""
            answer = REFUSED
        writer.write(answer)
        await writer.drain()
        return None

    async def _stream(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        self._streams.add(writer)
        reader, upstream = await asyncio.open_unix_connection(DOCKER)
        try:
            upstream.write(head)
            while chunk := await reader.read(65536):
                if not self.silent:
                    writer.write(chunk)
                    await writer.drain()
        finally:
            upstream.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the peer sees the connection break off."""
    sock: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def ask_docker(head: bytes, body: bytes) -> bytes:
    """Return Docker's whole answer to one request, which ends its connection."""
    reader, writer = await asyncio.open_unix_connection(DOCKER)
    try:
        writer.write(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1) + body)
        answer = bytearray()
        while chunk := await reader.read(65536):
            answer += chunk
        return bytes(answer)
    finally:
        writer.close()


@contextlib.contextmanager
def open_proxy(path: Path) -> Iterator[SocketProxy]:
    """Serve until the end of the block, on a thread of its own."""
    proxy = SocketProxy(path)
    ended: Callable[[], object] = proxy._loop.stop
    thread = threading.Thread(target=proxy._loop.run_forever, name="socket-proxy", daemon=True)
    thread.start()
    try:
        proxy.listen()
        yield proxy
    finally:
        proxy.close()
        proxy._run(_cancel_all())
        proxy._loop.call_soon_threadsafe(ended)
        thread.join()
        proxy._loop.close()


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
