"""proxy: owns one listener and its connections: who may go where, to which very address, how much; and the record.

The name is resolved here, once; the address that was found public is the one that is connected to.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field

from loopbox_egress.addresses import Address, is_public, resolve
from loopbox_egress.limits import Limits
from loopbox_egress.request import BadRequestError, Request, parse_request
from loopbox_egress.rules import Rule, find_literal

CHUNK = 64 << 10
TRIES = 3  # addresses of one name

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Resolve = Callable[[str, int], Awaitable[list[Address]]]


class RefusedError(Exception):
    """The request is not let through; the text is told to the client and recorded."""

    def __init__(self, verdict: str, text: str, status: int = 403) -> None:
        super().__init__(text)
        self.verdict = verdict
        self.status = status


@dataclass(slots=True, kw_only=True)
class Record:
    """One connection, as loopd logs it."""

    listener: str
    method: str = ""
    host: str = ""
    port: int = 0
    address: str = ""  #: that was connected to
    up: int = 0  #: bytes from the sandbox
    down: int = 0
    ms: int = 0
    verdict: str = "allowed"  #: or why not, or what ended it


@dataclass(kw_only=True)
class Listener:
    """One socket that loopd handed over, and what may be asked on it."""

    id: str
    rules: tuple[Rule, ...]
    limits: Limits
    record: Callable[[dict[str, str | int]], None]
    resolve: Resolve = resolve
    used: int = 0  #: bytes of all its connections so far
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self, listening: socket.socket) -> None:
        """Begin to take connections."""
        self._server = await asyncio.start_unix_server(self._accept, sock=listening, limit=self.limits.head_bytes)

    def close(self) -> None:
        """Take no more, and end those there are."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 a stream's callback runs in a task
        self._tasks.add(task)
        record, began = Record(listener=self.id), time.monotonic()
        try:
            async with asyncio.timeout(self.limits.connection_s):
                await self._serve(reader, writer, record)
        except RefusedError as error:
            record.verdict = error.verdict
            if not record.address:  # else the answer has begun, and these words would be part of it
                await _answer(writer, error.status, str(error))
        except BadRequestError as error:
            record.verdict = "malformed"
            await _answer(writer, error.status, str(error))
        except TimeoutError:
            record.verdict = "out_of_time"
            if not record.address:
                await _answer(writer, 504, f"{record.host or 'the request'} took too long")
        except (OSError, EOFError) as error:
            record.verdict = "broken" if record.address else "unreachable"
            if not record.address:
                await _answer(writer, 502, f"{record.host or 'the host'} does not answer: {type(error).__name__}")
        except asyncio.CancelledError:
            record.verdict = "closed"  # its lease is over
        finally:
            self._tasks.discard(task)
            record.ms = int((time.monotonic() - began) * 1e3)
            self.record(asdict(record))
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: Record) -> None:
        if len(self._tasks) > self.limits.connections:
            raise RefusedError("too_many", f"more than {self.limits.connections} connections at once", 429)
        request = await self._read(reader)
        record.method, record.host, record.port = request.method, request.host, request.port
        if self.used >= self.limits.listener_bytes:
            raise RefusedError("spent", f"this session's {self.limits.listener_bytes} bytes are spent")
        async with asyncio.timeout(self.limits.connect_s):
            far_reader, far_writer = await self._connect(request, record)
        try:
            if request.tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            far_writer.write(request.head)
            await self._pump_both(request, record, (reader, writer), (far_reader, far_writer))
        finally:
            far_writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> Request:
        try:
            async with asyncio.timeout(self.limits.head_s):
                return parse_request(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.LimitOverrunError as error:
            raise BadRequestError(f"the head has more than {self.limits.head_bytes} bytes", 431) from error
        except asyncio.IncompleteReadError as error:
            raise BadRequestError("the head of the request does not end") from error

    async def _connect(self, request: Request, record: Record) -> Streams:
        literal = find_literal(request.host)
        if not any(rule.allows(request.host, request.port, literal=literal is not None) for rule in self.rules):
            raise RefusedError("not_granted", f"{request.host}:{request.port} was not granted to this session")
        if literal is not None:  # named by the operator as an address: private or not is decided
            addresses = [literal]
        else:
            found = await self.resolve(request.host, request.port)
            addresses = [address for address in found if is_public(address)]
            if not addresses:
                raise RefusedError("not_public", f"{request.host} has no public address, so it is not connected to")
        last: OSError = OSError("no address")
        for address in addresses[:TRIES]:
            try:
                streams = await asyncio.open_connection(str(address), request.port)
            except OSError as error:
                last = error
            else:
                record.address = str(address)
                return streams
        raise last

    async def _pump_both(self, request: Request, record: Record, near: Streams, far: Streams) -> None:
        """Carry bytes until both sides ended, or the answer did."""
        active = _Clock(self.limits.idle_s)

        async def up() -> None:
            async for chunk in active.chunks(near[0], None if request.tunnel else request.length):
                record.up += len(chunk)
                self._count(len(chunk), record)
                await active.write(far[1], chunk)
            if request.tunnel and far[1].can_write_eof():
                far[1].write_eof()

        async def down() -> None:
            async for chunk in active.chunks(far[0], None):
                record.down += len(chunk)
                self._count(len(chunk), record)
                await active.write(near[1], chunk)
            if not request.tunnel:
                sending.cancel()  # the answer is whole: what is left of the body interests nobody
            elif near[1].can_write_eof():
                near[1].write_eof()

        sending, receiving = asyncio.create_task(up()), asyncio.create_task(down())
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            sending.cancel()
            receiving.cancel()
            outcomes = await asyncio.gather(sending, receiving, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    def _count(self, count: int, record: Record) -> None:
        self.used += count
        if self.used > self.limits.listener_bytes or record.up + record.down > self.limits.connection_bytes:
            raise RefusedError("too_big", "more bytes than one connection or this session may carry")


@dataclass
class _Clock:
    """When something last went either way; a side may be silent as long as the other is not."""

    idle_s: float
    last: float = field(default_factory=time.monotonic)

    async def chunks(self, reader: asyncio.StreamReader, left: int | None) -> AsyncIterator[bytes]:
        """Yield what comes; ``left`` bytes at most where given: a second request is never read."""
        while left is None or left > 0:
            chunk = await self._read(reader, CHUNK if left is None else min(CHUNK, left))
            if not chunk:
                return
            left = None if left is None else left - len(chunk)
            self.last = time.monotonic()
            yield chunk

    async def write(self, writer: asyncio.StreamWriter, chunk: bytes) -> None:
        """Pass on. Raises TimeoutError when it is not taken."""
        writer.write(chunk)
        async with asyncio.timeout(self.idle_s):
            await writer.drain()

    async def _read(self, reader: asyncio.StreamReader, most: int) -> bytes:
        while True:
            try:
                async with asyncio.timeout(self.idle_s):
                    return await reader.read(most)
            except TimeoutError:
                if time.monotonic() - self.last >= self.idle_s:
                    raise


async def _answer(writer: asyncio.StreamWriter, status: int, text: str) -> None:
    """Say why not; the client may be gone."""
    body = f"{text}\n".encode()
    fields = f"content-type: text/plain\r\ncontent-length: {len(body)}\r\nconnection: close"
    with contextlib.suppress(OSError):
        writer.write(f"HTTP/1.1 {status} Refused\r\n{fields}\r\n\r\n".encode() + body)
        async with asyncio.timeout(1):
            await writer.drain()
