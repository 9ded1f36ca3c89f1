"""routes_review: owns the routes of operators: what was held back, and people's data."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from loopbox_agent.addresses import BeforeHeld, HeldPath, UserPath
from loopbox_agent.bodies import parse, read_bytes, schema_of
from loopbox_agent.errors import refusals
from loopbox_agent.parts import Wired
from loopbox_agent.principal import Principal, Role, principal_of
from loopbox_agent.quarantine import Held

router = APIRouter(tags=["review"], responses=refusals(403, 422, 503))

JSON_LINES = {"application/x-ndjson": {"schema": {"type": "string"}}}


class HeldView(BaseModel):
    """One text that was held back."""

    id: str
    run_id: str
    user: str
    kind: str
    score: int
    findings: Any  #: Any: JSON
    text: str
    state: str
    created_at: datetime
    decided_by: str | None
    reason: str | None


class RejectRequest(BaseModel):
    """Why it stays held back."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Annotated[str, Field(max_length=1000)] = ""


@router.get("/agents/quarantine", responses=refusals(404))
async def list_held(
    request: Request,
    parts: Wired,
    state: Literal["waiting", "released", "rejected", "all"] = "waiting",
    before: BeforeHeld = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> dict[str, list[HeldView]]:
    """List what was held back, newest first."""
    _reviewer(request)
    asked = None if state == "all" else state
    return {"held": [_view(h) for h in await parts.store.quarantine.recent(asked, before=before, limit=limit)]}


@router.get("/agents/quarantine/{held_id}", responses=refusals(404))
async def show_held(held_id: HeldPath, request: Request, parts: Wired) -> HeldView:
    """Show one."""
    _reviewer(request)
    return _view(await parts.store.quarantine.get(held_id))


@router.post("/agents/quarantine/{held_id}/release", responses=refusals(404, 409, 507))
async def release_held(held_id: HeldPath, request: Request, parts: Wired) -> HeldView:
    """Let it through: its run is then completed and its user can read the output."""
    principal = _reviewer(request)
    held = await parts.store.quarantine.release(held_id, principal.user)
    await parts.reviews.released(held, principal)
    return _view(held)


@router.post(
    "/agents/quarantine/{held_id}/reject",
    openapi_extra=schema_of(RejectRequest, required=False),
    responses=refusals(404, 408, 409, 413, 507),
)
async def reject_held(held_id: HeldPath, request: Request, parts: Wired) -> HeldView:
    """Keep it back for good."""
    principal = _reviewer(request)
    body = await read_bytes(request, most=8192, within_s=parts.settings.body_timeout_s)
    held = await parts.store.quarantine.reject(held_id, principal.user, parse(RejectRequest, body or b"{}").reason)
    await parts.reviews.rejected(held, principal)
    return _view(held)


@router.get(
    "/agents/users/{user}/export",
    response_class=StreamingResponse,
    responses={200: {"content": JSON_LINES}, **refusals(404)},
)
async def export_user(user: UserPath, request: Request, parts: Wired) -> StreamingResponse:
    """Return everything that is kept about a user, one JSON object a line; oneself, or anybody for an administrator.

    Rows first, then the files of conversations: {"file", "size", "begin", "base64"} for each piece of a tar archive.
    """
    _subject(request, user)

    async def lines() -> AsyncIterator[bytes]:
        async for line in parts.reviews.export(user):
            yield line.encode() + b"\n"

    headers = {"Content-Disposition": f'attachment; filename="{user}.jsonl"'}
    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)


@router.delete("/agents/users/{user}/data", responses=refusals(404, 507))
async def erase_user(user: UserPath, request: Request, parts: Wired) -> dict[str, int]:
    """Erase all that is kept about a user; the answer counts rows by table. Backups keep theirs until they go."""
    principal = _subject(request, user)
    principal.require(Role.USER)
    await parts.hub.end_all(user, "its user's data is erased")
    return await parts.reviews.erase(user, principal)


def _reviewer(request: Request) -> Principal:
    principal = principal_of(request.headers)
    principal.require(Role.OPERATOR)
    return principal


def _subject(request: Request, user: str) -> Principal:
    principal = principal_of(request.headers)
    if principal.user != user:
        principal.require(Role.ADMIN)
    return principal


def _view(held: Held) -> HeldView:
    return HeldView(
        id=held.id,
        run_id=held.run_id,
        user=held.user,
        kind=held.kind,
        score=held.score,
        findings=held.findings,
        text=held.text,
        state=held.state,
        created_at=held.created_at,
        decided_by=held.decided_by,
        reason=held.reason,
    )
