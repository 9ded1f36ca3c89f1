"""egress: owns the commands' way to a granted proxy: a loopback port that passes bytes on to the proxy's socket.

The socket appears beside ours when the session was granted hosts. Without it there is no port and no variable.
"""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import Mapping
from pathlib import Path

import structlog

HOST = "127.0.0.1"
PORT = 3128
MAX_CONNECTIONS = 64
CHUNK = 64 << 10
CONNECT_S = 10.0
LOCAL = "localhost,127.0.0.1,::1"

log = structlog.get_logger("toolrunner.egress")


class Egress:
    """Listens while the proxy's socket is there."""

    def __init__(self, socket: Path, port: int = PORT) -> None:
        self._socket = socket
        self._port = port  #: 0: any, for tests
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    @property
    def granted(self) -> bool:
        """Whether the session may reach anything."""
        with contextlib.suppress(OSError):
            return stat.S_ISSOCK(self._socket.lstat().st_mode)
        return False

    async def environment(self) -> Mapping[str, str]:
        """Return the variables for a command that starts now; the port is open when there are any."""
        if not self.granted:
            await self.close()
            return {}
        if self._server is None:
            try:
                self._server = await asyncio.start_server(self._serve, HOST, self._port, limit=CHUNK)
            except OSError as error:  # a command of the session has the port; its end frees it
                log.warning("egress.port_taken", port=self._port, error=str(error))
                return {}
            self._port = self._server.sockets[0].getsockname()[1]
            log.info("egress.open", port=self._port)
        address = f"http://{HOST}:{self._port}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        told = {**dict.fromkeys(names, address), "NO_PROXY": LOCAL}
        return told | {name.lower(): value for name, value in told.items()}

    async def close(self) -> None:
        """Close the port and every connection."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._open) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._open.add(task)
        try:
            await self._forward(reader, writer)
        except (OSError, TimeoutError):
            pass  # either side went away; both are closed below
        except asyncio.CancelledError:
            if self._server is not None:  # not ours: the server is being closed from outside
                raise
        finally:
            self._open.discard(task)
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(CONNECT_S):
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._socket), limit=CHUNK)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, far_writer))
                both.create_task(_pump(far_reader, writer))
        except* OSError:
            pass  # one side broke off, which ends both
        finally:
            far_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK):
        writer.write(chunk)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
