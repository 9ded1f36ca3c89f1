"""routes_learning: owns the routes about what the model may learn from: feedback, consent, what was kept."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from loopbox_agent.addresses import RunPath
from loopbox_agent.bodies import parse, read_bytes, schema_of
from loopbox_agent.errors import refusals
from loopbox_agent.interactions import Interaction
from loopbox_agent.mask import mask
from loopbox_agent.parts import Wired
from loopbox_agent.principal import Role, principal_of

router = APIRouter(tags=["learning"], responses=refusals(403, 422, 503))


class FeedbackRequest(BaseModel):
    """What somebody says of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rating: Literal["good", "bad"]
    comment: Annotated[str, Field(max_length=4000)] = ""
    better: Annotated[str, Field(max_length=8000, description="what the answer should have been")] = ""


class ConsentRequest(BaseModel):
    """Whether one's runs may be kept to learn from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agree: bool


class ConsentView(BaseModel):
    """How it stands."""

    agree: bool = Field(description="whether your runs are kept to learn from")
    learn: Literal["off", "asked", "everyone"] = Field(description="the operator's setting")
    deleted: int = Field(default=0, description="runs that were kept and are deleted now")


class InteractionView(BaseModel):
    """A run that was kept, masked, and what was said of it."""

    number: int
    run_id: str
    user: str
    thread_id: str | None
    outcome: str
    messages: Any  #: Any: JSON
    tools: Any  #: Any: JSON
    rating: Literal["good", "bad"] | None
    comment: str
    better: str
    created_at: datetime


@router.post(
    "/agents/runs/{run_id}/feedback", openapi_extra=schema_of(FeedbackRequest), responses=refusals(404, 408, 413, 507)
)
async def rate_run(run_id: RunPath, request: Request, parts: Wired) -> InteractionView:
    """Say of a run of yours whether it was good, and what would have been better; the last word counts."""
    principal = principal_of(request.headers)
    principal.require(Role.USER)
    said = parse(FeedbackRequest, await read_bytes(request, most=65_536, within_s=parts.settings.body_timeout_s))
    comment, better = mask(said.comment).text, mask(said.better).text
    return _view(await parts.store.interactions.rate(principal.user, run_id, said.rating, comment, better))


@router.get("/agents/consent")
async def show_consent(request: Request, parts: Wired) -> ConsentView:
    """Show whether your runs are kept to learn from."""
    kept = parts.store.interactions
    return ConsentView(agree=await kept.agrees(principal_of(request.headers).user), learn=kept.learn)


@router.put("/agents/consent", openapi_extra=schema_of(ConsentRequest), responses=refusals(408, 413, 507))
async def decide_consent(request: Request, parts: Wired) -> ConsentView:
    """Agree that your runs are kept to learn from, or not; a no deletes those that were kept."""
    principal = principal_of(request.headers)
    principal.require(Role.USER)
    asked = parse(ConsentRequest, await read_bytes(request, most=4096, within_s=parts.settings.body_timeout_s))
    kept = parts.store.interactions
    deleted = await kept.decide(principal.user, agree=asked.agree)
    return ConsentView(agree=await kept.agrees(principal.user), learn=kept.learn, deleted=deleted)


@router.get("/agents/interactions")
async def list_interactions(
    request: Request,
    parts: Wired,
    after: Annotated[int, Query(ge=0, lt=1 << 62)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> dict[str, list[InteractionView]]:
    """List the runs that were kept to learn from, oldest first, from the one after a number on."""
    principal_of(request.headers).require(Role.OPERATOR)
    return {"interactions": [_view(one) for one in await parts.store.interactions.after(after, limit)]}


def _view(one: Interaction) -> InteractionView:
    return InteractionView(
        number=one.number,
        run_id=one.run_id,
        user=one.user,
        thread_id=one.thread_id,
        outcome=one.outcome,
        messages=one.messages,
        tools=one.tools,
        rating=one.rating,
        comment=one.comment,
        better=one.better,
        created_at=one.created_at,
    )
