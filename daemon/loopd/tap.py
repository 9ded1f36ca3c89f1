"""tap: owns hearing how requests end at the gateway, and telling everybody who wants to know.

HAProxy sends a datagram for each request to a socket beside its own. While loopd is away nobody has it open, nothing is
read and nothing waits; more than can be read is dropped by the kernel, so requests never wait for loopd.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from loopd.analysis import Answer
from loopd.audit import Record

SOCKET = "answers.sock"
LINE_BYTES = 8192  # of the access log; HAProxy cuts what is longer, which is then no JSON and not counted
BROKEN_BY_SERVER = ("S", "s")  # HAProxy's termination states: the server closed, or its time was over
FAILED = 500


class Tap:
    """What the gateway tells, for as many as listen."""

    def __init__(self) -> None:
        self._listening: list[Callable[[bytes], object]] = []

    @contextlib.asynccontextmanager
    async def listen(self, heard: Callable[[bytes], object]) -> AsyncIterator[None]:
        """Call ``heard`` with each line of the access log until left."""
        self._listening.append(heard)
        try:
            yield
        finally:
            self._listening.remove(heard)

    @contextlib.asynccontextmanager
    async def answers(self, heard: Callable[[Answer], object]) -> AsyncIterator[None]:
        """Call ``heard`` for each answer of an engine until left."""

        def parse(line: bytes) -> None:
            if (answer := parse_answer(line)) is not None:
                heard(answer)

        async with self.listen(parse):
            yield

    def tell(self, line: bytes) -> None:
        """Tell everybody of one line."""
        for heard in tuple(self._listening):
            heard(line)


@contextlib.asynccontextmanager
async def open_tap(directory: Path, *, uid: int | None) -> AsyncIterator[Tap]:
    """Open the socket. ``uid``: who may send; None: anyone who is root."""
    path = directory / SOCKET
    path.unlink(missing_ok=True)
    tap = Tap()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.bind(str(path))
        path.chmod(0o600)
        if uid is not None and os.geteuid() == 0:
            os.chown(path, uid, uid)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: _Ear(tap), sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        yield tap
    finally:
        transport.close()
        path.unlink(missing_ok=True)


class _Ear(asyncio.DatagramProtocol):
    def __init__(self, tap: Tap) -> None:
        self._tap = tap

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Pass one line on."""
        del addr
        self._tap.tell(data)


def parse_answer(line: bytes) -> Answer | None:
    """Return what an access log line says of an engine's answer; None for other requests, and for no such line.

    A request that reached no server (its name is then in angle brackets) is nobody's fault.
    """
    if len(line) > LINE_BYTES:
        return None
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or entry["pool"] != "engine":
            return None
        server, status = str(entry["server"]), int(entry["status"])
        first_byte_ms, end = int(entry["first_byte_ms"]), str(entry["end"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if server.startswith("<"):
        return None
    failed = status >= FAILED or end.startswith(BROKEN_BY_SERVER)
    if first_byte_ms < 0 and not failed:  # the client left before an answer began
        return None
    return Answer(server=server, failed=failed, first_byte_ms=max(0, first_byte_ms))


def parse_request(line: bytes) -> Record | None:
    """Return what an access log line says of a request, for the audit trail; None for no such line."""
    if len(line) > LINE_BYTES:
        return None
    try:
        told = json.loads(line)
        path, user = str(told["path"]), str(told.get("user", ""))
        return Record(
            event="request.answered",
            user="" if user == "-" else user[:64],
            subject=f"{told['method']} {path[:200]}",
            correlation_id=str(told["correlation_id"])[:64],
            detail={
                "frontend": str(told["frontend"]),
                "client": str(told["client"]),
                "status": int(told["status"]),
                "server": str(told["server"])[:64],
                "ms": int(told["total_ms"]),
                "bytes": int(told["bytes"]),
                "end": str(told["end"])[:4],
            },
            source="gateway",
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
