"""serving: owns the server's end: the runs end first, while their clients are still connected to be told.

uvicorn by itself waits for open streams, and only after that for what they wait for.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import structlog
import uvicorn

log = structlog.get_logger("agent.serving")


class Serving(uvicorn.Server):
    """A server that calls ``stop`` once it is to end, and closes its connections after that."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._stop = stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open everything and listen."""
        await super().startup(sockets)
        log.info("agent.listening", port=self.config.port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop what is under way; whoever asks meanwhile still gets an answer. Then close."""
        log.info("agent.stopping")
        await self._stop()
        await super().shutdown(sockets)
