"""tap: owns hearing how requests end at the gateway, while somebody wants to know.

HAProxy sends a datagram for each request to a socket beside its own. While nobody has it open, nothing is read and
nothing waits; more than can be read is dropped by the kernel, so requests never wait for loopd.
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

SOCKET = "answers.sock"
LINE_BYTES = 8192  # of the access log; HAProxy cuts what is longer, which is then no JSON and not counted
BROKEN_BY_SERVER = ("S", "s")  # HAProxy's termination states: the server closed, or its time was over
FAILED = 500


@contextlib.asynccontextmanager
async def open_tap(directory: Path, heard: Callable[[Answer], object], *, uid: int | None) -> AsyncIterator[None]:
    """Call ``heard`` for each answer of an engine until left. ``uid``: who may send; None: anyone who is root."""
    path = directory / SOCKET
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.bind(str(path))
        path.chmod(0o600)
        if uid is not None and os.geteuid() == 0:
            os.chown(path, uid, uid)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: _Ear(heard), sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        yield
    finally:
        transport.close()
        path.unlink(missing_ok=True)


class _Ear(asyncio.DatagramProtocol):
    def __init__(self, heard: Callable[[Answer], object]) -> None:
        self._heard = heard

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Parse one line."""
        del addr
        if (answer := parse_answer(data)) is not None:
            self._heard(answer)


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
