"""link: owns the link to loopd: its orders in, with the listening sockets themselves, and records out.

One message is one packet of a SOCK_SEQPACKET socket: JSON, and with ``open`` one file descriptor. A listener lives on
when loopd is away; on each new link loopd says all anew, and what it does not name by ``synced`` is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopbox_egress.limits import Limits
from loopbox_egress.proxy import Listener
from loopbox_egress.rules import parse_rules

PACKET = 64 << 10
KEPT = 1000  # records while loopd is away; older ones are on stdout
RETRY_S = 0.2

Message = dict[str, Any]  # Any: JSON


@dataclass(kw_only=True)
class Proxy:
    """All listeners, and the link."""

    path: Path  #: of loopd's socket
    limits: Limits
    make: Callable[..., Listener] = Listener
    listeners: dict[str, Listener] = field(default_factory=dict)
    _named: set[str] = field(default_factory=set)  #: since the link was made
    _records: deque[Message] = field(default_factory=lambda: deque(maxlen=KEPT))
    _sending: asyncio.Lock = field(default_factory=asyncio.Lock)
    _heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def run_forever(self) -> None:
        """Keep the link; loopd may come and go."""
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
                link.setblocking(False)
                await asyncio.get_running_loop().sock_connect(link, str(self.path))
                await self._talk(link)
            await asyncio.sleep(RETRY_S)

    async def _talk(self, link: socket.socket) -> None:
        self._named.clear()
        sending = asyncio.create_task(self._send_records(link))
        try:
            while (packet := await _receive(link)) is not None:
                message, handles = packet
                answer = await self._obey(message, handles)
                await self._send(link, answer)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _obey(self, message: Message, handles: list[int]) -> Message:
        """Do what loopd says; the answer carries its number."""
        answer: Message = {"done": message.get("number")}
        try:
            match message["op"], handles:
                case "open", [handle]:
                    handles.clear()
                    await self._open(message, socket.socket(fileno=handle))
                case "close", []:
                    self._close(str(message["id"]))
                case "synced", []:
                    for name in set(self.listeners) - self._named:
                        self._close(name)
                case _:
                    answer["error"] = "no such order"
        except (KeyError, TypeError, ValueError, OSError) as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        finally:
            for handle in handles:
                socket.close(handle)
        return answer

    async def _open(self, message: Message, listening: socket.socket) -> None:
        name = str(message["id"])
        listener = self.make(id=name, rules=parse_rules(message["rules"]), limits=self.limits, record=self._record)
        listener.used = self.listeners[name].used if name in self.listeners else 0
        self._close(name)
        await listener.start(listening)
        self.listeners[name] = listener
        self._named.add(name)

    def _close(self, name: str) -> None:
        if (listener := self.listeners.pop(name, None)) is not None:
            listener.close()

    def _record(self, record: dict[str, str | int]) -> None:
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()
        self._records.append({"record": record})
        self._heard.set()

    async def _send_records(self, link: socket.socket) -> None:
        while True:
            self._heard.clear()
            while self._records:
                await self._send(link, self._records[0])
                self._records.popleft()
            await self._heard.wait()

    async def _send(self, link: socket.socket, message: Message) -> None:
        async with self._sending:  # two writers would wait for one socket, and one of them for ever
            await asyncio.get_running_loop().sock_sendall(link, json.dumps(message).encode())


async def _receive(link: socket.socket) -> tuple[Message, list[int]] | None:
    """Return the next message and the descriptors with it, None at the link's end. Raises OSError."""
    loop = asyncio.get_running_loop()
    while True:
        readable = asyncio.Event()
        loop.add_reader(link, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(link)
        try:
            packet, handles, _, _ = socket.recv_fds(link, PACKET, 1)
        except BlockingIOError:
            continue
        if not packet:
            return None
        return json.loads(packet), list(handles)
