"""routes: owns the control API's endpoints and the narrower broker API that the agent is given."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass

from aiohttp import web

from loopd import version
from loopd.api.schema import (
    EventList,
    EventView,
    ExecRequest,
    ExecResult,
    HealthView,
    LeaseRequest,
    LeaseView,
    ReleaseList,
    ReleaseView,
    RolloutList,
    RolloutView,
    StatusView,
)
from loopd.api.web import Endpoint, Query, dumps, json_response, openapi, read_body, read_query
from loopd.errors import NotFoundError
from loopd.ledger import PAGE, Entry, Ledger
from loopd.metrics import Metrics
from loopd.registry import Registry
from loopd.rollout import Rollouts
from loopd.sandbox import Broker
from loopd.status import Status
from loopd.toolbox import Toolbox, ToolCallError
from loopd.units import TOOL_SOCKET, Layout

KEEPALIVE_S = 15.0
MOST_STREAMS = 64  # followers of the ledger at once
EXEC_LEASE_SLACK_S = 60.0

AFTER = Query(name="after", description="entries after this sequence number")
LIMIT = Query(name="limit", description="at most so many", least=1, most=PAGE, default=100)


class TooManyStreamsError(NotFoundError):
    """Too many follow the ledger already."""

    code = "too_many_streams"
    status = 429


@dataclass(kw_only=True)
class Routes:
    """Handlers over the parts of loopd."""

    status: Status
    registry: Registry
    rollouts: Rollouts
    ledger: Ledger
    broker: Broker
    toolbox: Toolbox
    metrics: Metrics
    layout: Layout
    streams: int = 0

    def control(self) -> tuple[Endpoint, ...]:
        """Return every endpoint of the control API."""
        release = "/v1/releases/{reference:[A-Za-z0-9._ -]{1,80}}"
        return (
            Endpoint(
                method="GET",
                path="/healthz",
                handler=self.health,
                summary="loopd answers",
                answer=HealthView,
                public=True,
            ),
            Endpoint(
                method="GET",
                path="/openapi.json",
                handler=self.document,
                summary="This document",
                public=True,
            ),
            Endpoint(
                method="GET",
                path="/metrics",
                handler=self.prometheus,
                summary="Prometheus metrics",
                media="text/plain",
            ),
            Endpoint(
                method="GET",
                path="/v1/status",
                handler=self.get_status,
                summary="How everything is",
                answer=StatusView,
            ),
            Endpoint(
                method="GET",
                path="/v1/releases",
                handler=self.list_releases,
                summary="All releases",
                answer=ReleaseList,
            ),
            Endpoint(
                method="POST",
                path="/v1/releases/rollback",
                handler=self.rollback,
                summary="Return to the release that served before",
                answer=RolloutView,
                status=202,
                errors=(409,),
            ),
            Endpoint(
                method="GET",
                path=release,
                handler=self.get_release,
                summary="One release",
                answer=ReleaseView,
                errors=(404, 409),
            ),
            Endpoint(
                method="POST",
                path=release + "/promote",
                handler=self.promote,
                summary="Roll a known release out",
                answer=RolloutView,
                status=202,
                errors=(404, 409),
            ),
            Endpoint(
                method="GET",
                path="/v1/rollouts",
                handler=self.list_rollouts,
                summary="All rollouts",
                answer=RolloutList,
            ),
            Endpoint(
                method="GET",
                path=r"/v1/rollouts/{id:\d{1,15}}",
                handler=self.get_rollout,
                summary="One rollout with its steps",
                answer=RolloutView,
                errors=(404,),
            ),
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
            Endpoint(
                method="POST",
                path="/v1/exec",
                handler=self.execute,
                summary="Run a command in a fresh sandbox",
                body=ExecRequest,
                answer=ExecResult,
                errors=(503,),
            ),
            *self.leases(),
        )

    def leases(self) -> tuple[Endpoint, ...]:
        """Return the endpoints that the agent may use, too."""
        return (
            Endpoint(
                method="POST",
                path="/v1/leases",
                handler=self.lease,
                summary="Borrow a sandbox",
                body=LeaseRequest,
                answer=LeaseView,
                status=201,
                errors=(503,),
            ),
            Endpoint(
                method="DELETE",
                path="/v1/leases/{lease:[0-9a-f]{32}}",
                handler=self.unlease,
                summary="Give a sandbox back",
                status=204,
                errors=(404,),
            ),
        )

    async def health(self, _: web.Request) -> web.Response:
        """Answer while the loop runs."""
        return json_response(HealthView(version=version()))

    async def document(self, _: web.Request) -> web.Response:
        """Serve the OpenAPI document."""
        document = openapi(self.control(), version=version())
        return web.Response(text=dumps(document), content_type="application/json")

    async def prometheus(self, _: web.Request) -> web.Response:
        """Serve the metrics."""
        self.metrics.ledger_length.set(await self.ledger.newest())
        return web.Response(
            body=self.metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def get_status(self, _: web.Request) -> web.Response:
        """Look and tell."""
        return json_response(await self.status.view())

    async def list_releases(self, _: web.Request) -> web.Response:
        """List releases."""
        return json_response(ReleaseList(releases=await self.status.releases()))

    async def get_release(self, request: web.Request) -> web.Response:
        """Show one."""
        release = await self.registry.find(request.match_info["reference"])
        for view in await self.status.releases():
            if view.id == release.id:
                return json_response(view)
        raise NotFoundError(f"release {release.short} is older than the newest 200")

    async def promote(self, request: web.Request) -> web.Response:
        """Ask for a rollout of a known release."""
        release = await self.registry.find(request.match_info["reference"])
        rollout = await self.rollouts.request(release, kind="rollout", reason="asked for by the operator")
        return json_response(await self.status.rollout(rollout), 202)

    async def rollback(self, _: web.Request) -> web.Response:
        """Ask for the return to the previous release."""
        return json_response(await self.status.rollout(await self.rollouts.request_rollback()), 202)

    async def list_rollouts(self, _: web.Request) -> web.Response:
        """List rollouts without their steps."""
        views = [await self.status.rollout(rollout, steps=False) for rollout in await self.rollouts.newest()]
        return json_response(RolloutList(rollouts=views))

    async def get_rollout(self, request: web.Request) -> web.Response:
        """Show one with its steps."""
        rollout = await self.rollouts.get(int(request.match_info["id"]))
        return json_response(await self.status.rollout(rollout))

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
        after = int(last) if last.isdigit() and len(last) <= 16 else read_query(request, AFTER)  # noqa: PLR2004
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

    async def execute(self, request: web.Request) -> web.Response:
        """Run a command in a sandbox of its own, which is gone afterwards."""
        asked = await read_body(request, ExecRequest)
        lease = await self.broker.acquire("exec", asked.timeout_s + EXEC_LEASE_SLACK_S)
        try:
            await self.ledger.append(
                "sandbox.exec", lease.sandbox, f"{asked.argv[0][:80]} was run", arguments=len(asked.argv)
            )
            result = await self.toolbox.call(
                self.layout.sandboxes / lease.sandbox / TOOL_SOCKET,
                "bash",
                {"command": shlex.join(asked.argv), "timeout_s": asked.timeout_s},
                timeout_s=asked.timeout_s,
            )
        finally:
            await asyncio.shield(self.broker.release(lease.id))
        try:
            return json_response(ExecResult(**result, sandbox=lease.sandbox))
        except (TypeError, ValueError) as error:
            raise ToolCallError(f"the tool runner's result has another form: {str(result)[:200]}") from error

    async def lease(self, request: web.Request) -> web.Response:
        """Lend a sandbox."""
        asked = await read_body(request, LeaseRequest)
        lease = await self.broker.acquire(asked.session, asked.ttl_s)
        return json_response(LeaseView(lease=lease.id, socket=lease.socket, expires_at=lease.expires_at), 201)

    async def unlease(self, request: web.Request) -> web.Response:
        """Take it back."""
        await self.broker.release(request.match_info["lease"])
        return web.Response(status=204)


def event_view(entry: Entry) -> EventView:
    """Return an entry as the API shows it."""
    return EventView.model_validate(entry, from_attributes=True)
