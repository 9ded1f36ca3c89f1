"""routes_runs: owns the routes that start runs, follow them, and reach into them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from loopbox_agent.addresses import RunPath
from loopbox_agent.bodies import parse, read_bytes, schema_of
from loopbox_agent.correlate import correlation_id
from loopbox_agent.errors import AgentError, ClientGoneError, ErrorBody, refusals, response_of
from loopbox_agent.event_stream import EventStream, gone
from loopbox_agent.hub import Hub
from loopbox_agent.live_run import Event, LiveRun
from loopbox_agent.parts import Parts, Wired
from loopbox_agent.principal import Role, principal_of
from loopbox_agent.recorder import unpack
from loopbox_agent.run_log import Run, RunLog
from loopbox_agent.run_records import RunRequest, RunResult, RunView, SteerRequest

MOST_DIGITS = 9  # of an event's number

EVENT = {
    "type": "object",
    "description": "One of the events; data is JSON: what run.completed tells is the body of a blocking answer.",
    "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["id", "event", "data"],
}
EVENTS = {"text/event-stream": {"schema": EVENT}}

router = APIRouter(tags=["runs"], responses=refusals(403, 422, 503))


@router.post(
    "/agents/run-agent",
    response_model=RunResult,
    openapi_extra=schema_of(RunRequest),
    responses={
        200: {"content": EVENTS},
        202: {"model": RunView},
        **refusals(400, 404, 408, 409, 413, 429, 502, 504, 507),
    },
)
async def run_agent(request: Request, parts: Wired) -> Response:
    """Run an instruction. With "stream" true the answer is a stream of server-sent events, with "background" an id."""
    principal = principal_of(request.headers)
    principal.require(Role.USER)
    settings = parts.settings
    asked = parse(RunRequest, await read_bytes(request, most=settings.max_body_bytes, within_s=settings.body_timeout_s))
    if "text/event-stream" in request.headers.get("Accept", ""):
        asked = asked.model_copy(update={"stream": True})
    run = parts.hub.start(asked, principal, correlation_id())
    if asked.stream:
        return _stream(request, parts, run)
    if asked.background:
        return JSONResponse(_view(run).model_dump(mode="json"), 202, headers={"Location": f"/agents/runs/{run.id}"})
    last = await _last(request, parts.hub, run)
    if last.name == "run.failed":
        error = run.error
        return response_of(error) if isinstance(error, AgentError) else JSONResponse(last.body, 500)
    return JSONResponse(last.body)


@router.get("/agents/runs")
async def list_runs(
    request: Request, parts: Wired, *, live: bool = False, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> dict[str, list[RunView]]:
    """List one's own runs, newest first; with "live" those under way, of everybody for an operator."""
    principal = principal_of(request.headers)
    if live:
        return {"runs": [_view(run) for run in reversed(parts.hub.live(principal)) if not run.ended]}
    return {"runs": [_past(run) for run in await parts.store.run_log.recent(principal.user, limit=limit)]}


@router.get("/agents/runs/{run_id}", responses=refusals(404))
async def show_run(run_id: RunPath, request: Request, parts: Wired) -> RunView:
    """Show one, with its result once it has one."""
    principal = principal_of(request.headers)
    if run := parts.hub.find(run_id, principal):
        return _view(run)
    return _past(await parts.store.run_log.get(principal.user, run_id))


@router.get(
    "/agents/runs/{run_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": EVENTS}, **refusals(404)},
)
async def follow_run(run_id: RunPath, request: Request, parts: Wired) -> Response:
    """Follow a run as server-sent events, from the one after Last-Event-ID on."""
    principal = principal_of(request.headers)
    after = last_event_id(request.headers.get("Last-Event-ID", ""))
    if run := parts.hub.find(run_id, principal):
        return _stream(request, parts, run, after=after)
    past = await parts.store.run_log.get(principal.user, run_id)
    following = nullcontext(_stored(parts.store.run_log, past.id, after))
    return EventStream(request, following, run_id=past.id, send_timeout_s=parts.settings.send_timeout_s)


@router.post("/agents/runs/{run_id}/cancel", response_model=RunResult | ErrorBody, responses=refusals(404))
async def cancel_run(run_id: RunPath, request: Request, parts: Wired) -> Response:
    """End a run; answered once nothing of it is left. The body is what it had so far."""
    principal = principal_of(request.headers)
    principal.require(Role.USER)
    run = parts.hub.get(run_id, principal)
    run.cancel(f"{principal.user} asked for it")
    if run.task is not None:
        await asyncio.wait({run.task})
    return JSONResponse(run.events[-1].body)


@router.post(
    "/agents/runs/{run_id}/steer",
    status_code=202,
    openapi_extra=schema_of(SteerRequest),
    responses=refusals(404, 408, 409, 413, 429),
)
async def steer_run(run_id: RunPath, request: Request, parts: Wired) -> RunView:
    """Put a message into a run; the model reads it before its next turn."""
    principal = principal_of(request.headers)
    principal.require(Role.USER)
    run = parts.hub.get(run_id, principal)
    body = await read_bytes(request, most=parts.settings.max_body_bytes, within_s=parts.settings.body_timeout_s)
    run.steer(parse(SteerRequest, body).text)
    return _view(run)


def _stream(request: Request, parts: Parts, run: LiveRun, after: int = 0) -> EventStream:
    following = parts.hub.attached(run, after=after)
    return EventStream(request, following, run_id=run.id, send_timeout_s=parts.settings.send_timeout_s)


async def _last(request: Request, hub: Hub, run: LiveRun) -> Event:
    """Return the event that ends a run; a client that goes away ends it."""
    assert run.task is not None  # noqa: S101 it was started
    leaving = asyncio.create_task(gone(request))
    try:
        async with hub.attached(run):
            await asyncio.wait({run.task, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not run.task.done():
                raise ClientGoneError("The client went away; its run was ended.")
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    return run.events[-1]


def _view(run: LiveRun) -> RunView:
    status = run.events[-1].name.removeprefix("run.") if run.ended else "running"
    return RunView(
        run_id=run.id,
        status=status,
        thread_id=run.thread,
        user=run.principal.user,
        duration_ms=round((time.monotonic() - run.begun) * 1000),
        result=run.events[-1].body if run.ended and run.error is None else None,
        error=run.events[-1].body if run.ended and run.error is not None else None,
    )


def _past(run: Run) -> RunView:
    ended = run.finished_at or run.created_at
    return RunView(
        run_id=run.id,
        status=run.status,
        thread_id=run.thread_id,
        user=run.user,
        duration_ms=round((ended - run.created_at).total_seconds() * 1000),
        result=run.result,
        error=run.error,
    )


async def _stored(run_log: RunLog, run_id: str, after: int) -> AsyncIterator[Sequence[Event]]:
    """Yield the events of a run that ended."""
    while page := await run_log.events(run_id, after=after):
        yield list(unpack(page, after))
        after = page[-1].seq


def last_event_id(given: str) -> int:
    """Return the number after which a client wants to go on; 0 for none that we gave."""
    return int(given) if given.isascii() and given.isdigit() and len(given) <= MOST_DIGITS else 0
