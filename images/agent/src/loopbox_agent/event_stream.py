"""event_stream: owns the sending of a run's events to a client that may be slow, or gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

import anyio
import structlog
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from loopbox_agent.live_run import Event

KEEPALIVE_S = 15.0

log = structlog.get_logger("agent.events")

Following = AbstractAsyncContextManager[AsyncIterator[Sequence[Event]]]


class EventStream(StreamingResponse):
    """Server-sent events to a client that must take each one in time, or is taken for gone."""

    def __init__(self, request: Request, following: Following, *, run_id: str, send_timeout_s: float) -> None:
        self._events = _frames(request, following)
        self._send_timeout_s = send_timeout_s
        headers = {"Cache-Control": "no-store", "X-Run-Id": run_id}
        super().__init__(self._events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, and stop following on every way out."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._send_timeout_s):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            log.warning("stream.client_stalled", seconds=self._send_timeout_s)
        finally:
            await self._events.aclose()


async def gone(request: Request) -> None:
    """Return once the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _frames(request: Request, following: Following) -> AsyncGenerator[bytes]:
    leaving = asyncio.create_task(gone(request), name="client-leaving")
    step: asyncio.Task[Sequence[Event] | None] | None = None
    try:
        async with following as events:
            try:
                while True:
                    # A model may be silent for long, and the client gone all that time.
                    step = step or asyncio.ensure_future(_next(events))
                    await asyncio.wait({step, leaving}, timeout=KEEPALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                    if leaving.done():
                        return
                    if not step.done():
                        yield b": still running\n\n"
                        continue
                    events_told, step = step.result(), None
                    if events_told is None:
                        return
                    yield b"".join(event.frame() for event in events_told)
            finally:
                if step is not None:
                    await _drop(step)
    finally:
        leaving.cancel()


async def _next(events: AsyncIterator[Sequence[Event]]) -> Sequence[Event] | None:
    return await anext(events, None)


async def _drop(step: asyncio.Task[Sequence[Event] | None]) -> None:
    step.cancel()
    with anyio.CancelScope(shield=True):  # the server's own scope cancels again at every wait
        await asyncio.wait({step})
    if not step.cancelled():
        step.exception()  # looked at, so that it is not told of as forgotten
