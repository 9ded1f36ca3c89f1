"""routes_threads: owns the routes of conversations: their list, messages and files."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic_ai.messages import ModelMessagesTypeAdapter

from loopbox_agent.addresses import BeforeThread, ThreadPath
from loopbox_agent.bodies import bytes_of, parse, read_bytes, schema_of
from loopbox_agent.errors import refusals
from loopbox_agent.parts import Wired
from loopbox_agent.principal import Role, principal_of
from loopbox_agent.records import NotFoundError
from loopbox_agent.threads import StoredMessage, Thread
from loopbox_agent.workspaces import save_tar

router = APIRouter(tags=["threads"], responses=refusals(403, 422, 503))

Limit = Annotated[int, Query(ge=1, le=200)]
TAR = "application/x-tar"
IMPORT_S = 120.0  # for a client to send its files


class ThreadRequest(BaseModel):
    """The body of a thread that is made or renamed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Annotated[str, Field(max_length=100)] | None = None


class ThreadView(BaseModel):
    """A conversation."""

    thread_id: str
    title: str | None
    created_at: datetime
    updated_at: datetime


class MessageView(BaseModel):
    """One message, in pydantic-ai's form."""

    seq: int
    run_id: str
    at: datetime
    message: Any  #: Any: JSON of a ModelMessage


@router.post(
    "/agents/threads",
    status_code=201,
    openapi_extra=schema_of(ThreadRequest, required=False),
    responses=refusals(408, 409, 413, 507),
)
async def create_thread(request: Request, parts: Wired) -> ThreadView:
    """Begin a conversation."""
    principal = principal_of(request.headers)
    principal.require(Role.USER)
    body = await read_bytes(request, most=4096, within_s=parts.settings.body_timeout_s)
    asked = parse(ThreadRequest, body or b"{}")
    return _view(await parts.store.threads.create(principal.user, asked.title))


@router.get("/agents/threads", responses=refusals(404))
async def list_threads(
    request: Request, parts: Wired, before: BeforeThread = None, limit: Limit = 50
) -> dict[str, list[ThreadView]]:
    """List one's own, the last used first."""
    user = principal_of(request.headers).user
    return {"threads": [_view(thread) for thread in await parts.store.threads.recent(user, before, limit)]}


@router.get("/agents/threads/{thread_id}", responses=refusals(404))
async def show_thread(thread_id: ThreadPath, request: Request, parts: Wired) -> ThreadView:
    """Show one."""
    return _view(await parts.store.threads.get(principal_of(request.headers).user, thread_id))


@router.patch(
    "/agents/threads/{thread_id}", openapi_extra=schema_of(ThreadRequest), responses=refusals(404, 408, 413, 507)
)
async def rename_thread(thread_id: ThreadPath, request: Request, parts: Wired) -> ThreadView:
    """Give it another title."""
    principal = principal_of(request.headers)
    principal.require(Role.USER)
    body = await read_bytes(request, most=4096, within_s=parts.settings.body_timeout_s)
    await parts.store.threads.rename(principal.user, thread_id, parse(ThreadRequest, body).title)
    return _view(await parts.store.threads.get(principal.user, thread_id))


@router.delete("/agents/threads/{thread_id}", status_code=204, responses=refusals(404, 409, 507))
async def delete_thread(thread_id: ThreadPath, request: Request, parts: Wired) -> Response:
    """Delete it with its messages and files."""
    principal = principal_of(request.headers)
    principal.require(Role.USER)
    await parts.store.threads.delete(principal.user, thread_id)
    await asyncio.to_thread(parts.store.workspace(thread_id).unlink, missing_ok=True)
    return Response(status_code=204)


@router.get("/agents/threads/{thread_id}/messages", responses=refusals(404))
async def list_messages(  # noqa: PLR0913 each is a part of the address
    thread_id: ThreadPath,
    request: Request,
    parts: Wired,
    *,
    dropped: bool = False,
    query: Annotated[str | None, Query(max_length=400)] = None,
    limit: Limit = 50,
) -> dict[str, list[MessageView]]:
    """List its messages: what the model still sees, or with "dropped" what was compressed, newest first."""
    threads = parts.store.threads
    thread = await threads.get(principal_of(request.headers).user, thread_id)
    found = await (threads.dropped(thread.id, query, limit) if dropped else threads.active(thread.id))
    return {"messages": [_message(stored) for stored in (found if dropped else found[-limit:])]}


@router.get(
    "/agents/threads/{thread_id}/workspace",
    response_class=FileResponse,
    responses={200: {"content": {TAR: {"schema": {"type": "string", "format": "binary"}}}}, **refusals(404)},
)
async def export_workspace(thread_id: ThreadPath, request: Request, parts: Wired) -> Response:
    """Return its files as a tar archive, as the last run left them."""
    thread = await parts.store.threads.get(principal_of(request.headers).user, thread_id)
    path = parts.store.workspace(thread.id)
    if not await asyncio.to_thread(path.is_file):
        raise NotFoundError(f"{thread.id} has no files yet: a run with tools keeps what it leaves in its workspace.")
    return FileResponse(path, media_type=TAR, filename=f"{thread.id}.tar")


@router.put(
    "/agents/threads/{thread_id}/workspace",
    status_code=204,
    openapi_extra=bytes_of(TAR),
    responses=refusals(404, 408, 409, 413, 507),
)
async def import_workspace(thread_id: ThreadPath, request: Request, parts: Wired) -> Response:
    """Put a tar archive in the place of its files; its next run finds them. Refused while a run holds the thread."""
    principal = principal_of(request.headers)
    principal.require(Role.USER)
    thread = await parts.store.threads.get(principal.user, thread_id)
    body = await read_bytes(request, most=parts.settings.max_workspace_bytes, within_s=IMPORT_S)
    async with parts.store.threads.lease(thread.id, f"import_{thread.id}", 60.0):
        await save_tar(parts.store.workspace(thread.id), body)
    return Response(status_code=204)


def _view(thread: Thread) -> ThreadView:
    return ThreadView(
        thread_id=thread.id, title=thread.title, created_at=thread.created_at, updated_at=thread.updated_at
    )


def _message(stored: StoredMessage) -> MessageView:
    [message] = ModelMessagesTypeAdapter.dump_python([stored.message], mode="json")
    return MessageView(seq=stored.seq, run_id=stored.run_id, at=stored.at, message=message)
