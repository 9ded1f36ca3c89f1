"""events: owns the control API's endpoints about the ledger, read by the page or followed as it grows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web

from loopd.api.schema import EventList, EventView
from loopd.api.web import Endpoint, Query, json_response, read_query
from loopd.errors import NotFoundError
from loopd.ledger import PAGE, Entry, Ledger

KEEPALIVE_S = 15.0
MOST_STREAMS = 64  # followers of the ledger at once
MAX_ID_DIGITS = 16  # of Last-Event-ID: more than any ledger has

AFTER = Query(name="after", description="entries after this sequence number")
LIMIT = Query(name="limit", description="at most so many", least=1, most=PAGE, default=100)


class TooManyStreamsError(NotFoundError):
    """Too many follow the ledger already."""

    code = "too_many_streams"
    status = 429


@dataclass(kw_only=True)
class EventRoutes:
    """Handlers over the ledger."""

    ledger: Ledger
    streams: int = 0

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints."""
        return (
            Endpoint(
                method="GET",
                path="/v1/events",
                handler=self.list_events,
                summary="The ledger",
                answer=EventList,
                query=(AFTER, LIMIT),
            ),
            Endpoint(
                method="GET",
                path="/v1/events/stream",
                handler=self.stream_events,
                summary="Follow the ledger (SSE; resumes by Last-Event-ID)",
                query=(AFTER,),
                media="text/event-stream",
                errors=(429,),
            ),
        )

    async def list_events(self, request: web.Request) -> web.Response:
        """Read a page of the ledger."""
        after = read_query(request, AFTER)
        entries = await self.ledger.read(after=after, limit=read_query(request, LIMIT))
        return json_response(
            EventList(events=[event_view(e) for e in entries], next_after=entries[-1].seq if entries else after)
        )

    async def stream_events(self, request: web.Request) -> web.StreamResponse:
        """Follow the ledger until the client goes."""
        last = request.headers.get("Last-Event-ID", "")
        after = (
            int(last)
            if last.isascii() and last.isdigit() and len(last) <= MAX_ID_DIGITS
            else read_query(request, AFTER)
        )
        if self.streams >= MOST_STREAMS:
            raise TooManyStreamsError(f"{MOST_STREAMS} clients follow the ledger already; close one")
        self.streams += 1
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
            await response.prepare(request)
            await response.write(b": loopd\n\n")
            await self._send(response, after)
        except ConnectionResetError:
            pass
        finally:
            self.streams -= 1
        return response

    async def _send(self, response: web.StreamResponse, after: int) -> None:
        entries = self.ledger.follow(after)
        waiting = asyncio.ensure_future(anext(entries))
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=KEEPALIVE_S)
                if not done:
                    await response.write(b": alive\n\n")
                    continue
                entry = waiting.result()
                text = f"id: {entry.seq}\nevent: {entry.event}\ndata: {event_view(entry).model_dump_json()}\n\n"
                await response.write(text.encode())
                waiting = asyncio.ensure_future(anext(entries))
        finally:
            waiting.cancel()


def event_view(entry: Entry) -> EventView:
    """Return an entry as the API shows it."""
    return EventView.model_validate(entry, from_attributes=True)
