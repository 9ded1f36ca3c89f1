"""egress_link: owns the link to the egress proxy: orders out, with the listening sockets themselves, and records in.

One message is one packet of a SOCK_SEQPACKET socket: JSON, and with ``open`` one file descriptor. So the proxy can
neither make a socket nor see where it lies, and a listener lives on in it while loopd is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import structlog

from loopd.engine import EngineDownError
from loopd.loading import own

PACKET = 64 << 10
BACKLOG = 4
ANSWER_S = 5.0

Message = dict[str, Any]  # Any: JSON

log = structlog.get_logger("loopd.egress")


class EgressDownError(EngineDownError):
    """The egress proxy does not answer; sandboxes without hosts are not affected."""

    code = "egress_down"


class EgressLink:
    """One proxy, by its socket."""

    def __init__(self, link: socket.socket, record: Callable[[Message], None]) -> None:
        self._link = link
        self._record = record
        self._number = 0
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._sending = asyncio.Lock()

    async def order(self, op: str, *handles: int, **more: object) -> None:
        """Have an order obeyed. Raises EgressDownError."""
        self._number += 1
        number = self._number
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        packet = json.dumps({"op": op, "number": number, **more}).encode()
        try:
            async with asyncio.timeout(ANSWER_S):
                async with self._sending:
                    await self._send(packet, handles)
                told = await answer
        except (TimeoutError, OSError) as error:
            raise EgressDownError(f"the egress proxy does not answer ({type(error).__name__}); try again") from error
        finally:
            self._answers.pop(number, None)
        if "error" in told:
            raise EgressDownError(f"the egress proxy refuses: {str(told['error'])[:200]}")

    async def read_forever(self) -> None:
        """Take answers and records until the proxy is gone."""
        loop = asyncio.get_running_loop()
        try:
            while packet := await loop.sock_recv(self._link, PACKET):
                self._take(packet)
        finally:
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(ConnectionResetError("it is gone"))

    def _take(self, packet: bytes) -> None:
        try:
            message = json.loads(packet)
            if "record" in message:
                self._record(dict(message["record"]))
            elif (answer := self._answers.get(message["done"])) is not None and not answer.done():
                answer.set_result(message)
        except (ValueError, KeyError, TypeError):
            log.warning("egress.nonsense", packet=packet[:200].decode(errors="replace"))

    async def _send(self, packet: bytes, handles: tuple[int, ...]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                socket.send_fds(self._link, [packet], list(handles))
            except BlockingIOError:
                room = asyncio.Event()
                loop.add_writer(self._link, room.set)
                try:
                    await room.wait()
                finally:
                    loop.remove_writer(self._link)
            else:
                return


@contextlib.contextmanager
def listening(path: Path, uid: int) -> Iterator[socket.socket]:
    """Listen for the proxy."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        old = os.umask(0o177)
        try:
            door.bind(str(path))
        finally:
            os.umask(old)
        own(path, uid)
        door.listen(BACKLOG)
        door.setblocking(False)
        yield door


def peer_uid(link: socket.socket) -> int:
    """Return who is at the other end, as the kernel says."""
    told = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", told)[1])


def listen_at(path: Path, mode: int, uid: int = 0) -> socket.socket:
    """Return a listening socket that appears at ``path`` complete, in the place of an older one."""
    fresh = path.with_name(f".{path.name}")
    fresh.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(str(fresh))
        own(fresh, uid)
        fresh.chmod(mode)
        made.listen(64)
        fresh.replace(path)
    except OSError:
        made.close()
        raise
    return made
