"""routes_memory: owns the routes of what is remembered for a user, and of documents the agent may search."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from loopbox_agent.addresses import DocumentPath, MemoryPath
from loopbox_agent.bodies import bytes_of, parse, read_bytes, schema_of
from loopbox_agent.errors import refusals
from loopbox_agent.knowledge import SHARED, Document, Passage
from loopbox_agent.memory import Memory
from loopbox_agent.parts import Wired
from loopbox_agent.principal import Principal, Role, principal_of

router = APIRouter(tags=["memory"], responses=refusals(403, 422, 503))

Text = Annotated[str, Query(min_length=1, max_length=2000)]
Limit = Annotated[int, Query(ge=1, le=100)]
Tag = Annotated[str, Field(min_length=1, max_length=64)]


class MemoryRequest(BaseModel):
    """Something to remember."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Annotated[str, Field(min_length=1, max_length=8000)]
    tags: Annotated[list[Tag], Field(max_length=16)] = []


class MemoryView(BaseModel):
    """Something that is remembered."""

    id: int
    text: str
    tags: list[str]
    source: str
    created_at: datetime
    rank: float


class DocumentView(BaseModel):
    """A document that can be searched."""

    name: str
    owner: str
    size: int
    created_at: datetime


class PassageView(BaseModel):
    """A part of a document that fits a query."""

    document: str
    owner: str
    position: int
    text: str
    score: float


@router.get("/agents/memory")
async def list_memories(
    request: Request, parts: Wired, before: Annotated[int | None, Query(ge=0, lt=1 << 62)] = None, limit: Limit = 50
) -> dict[str, list[MemoryView]]:
    """List what is remembered for oneself, newest first."""
    user = principal_of(request.headers).user
    return {"memories": [_memory(m) for m in await parts.store.memories.all(user, before=before, limit=limit)]}


@router.get("/agents/memory/search")
async def search_memories(request: Request, parts: Wired, query: Text, limit: Limit = 5) -> dict[str, list[MemoryView]]:
    """Find what fits best."""
    user = principal_of(request.headers).user
    return {"memories": [_memory(m) for m in await parts.store.memories.recall(user, query, limit)]}


@router.post(
    "/agents/memory",
    status_code=201,
    openapi_extra=schema_of(MemoryRequest),
    responses=refusals(408, 413, 507),
)
async def remember(request: Request, parts: Wired) -> MemoryView:
    """Remember something; what is known already is not kept twice."""
    principal = _writer(request)
    body = await read_bytes(request, most=64 << 10, within_s=parts.settings.body_timeout_s)
    asked = parse(MemoryRequest, body)
    return _memory(await parts.store.memories.remember(principal.user, asked.text, tags=asked.tags, source="api"))


@router.delete("/agents/memory/{memory_id:number}", status_code=204, responses=refusals(404, 507))
async def forget(memory_id: MemoryPath, request: Request, parts: Wired) -> Response:
    """Forget one thing."""
    await parts.store.memories.forget(_writer(request).user, memory_id)
    return Response(status_code=204)


@router.get("/agents/knowledge")
async def list_documents(request: Request, parts: Wired, *, shared: bool = False) -> dict[str, list[DocumentView]]:
    """List one's own documents, or the shared ones."""
    owner = SHARED if shared else principal_of(request.headers).user
    return {"documents": [_document(d) for d in await parts.store.knowledge.all(owner)]}


@router.get("/agents/knowledge/search")
async def search_documents(
    request: Request, parts: Wired, query: Text, limit: Limit = 5
) -> dict[str, list[PassageView]]:
    """Find passages in one's own documents and the shared ones."""
    user = principal_of(request.headers).user
    return {"passages": [_passage(p) for p in await parts.store.knowledge.search(user, query, limit)]}


@router.put(
    "/agents/knowledge/{name}",
    status_code=201,
    openapi_extra=bytes_of("text/plain", required=False),
    responses=refusals(404, 408, 409, 413, 507),
)
async def add_document(name: DocumentPath, request: Request, parts: Wired, *, shared: bool = False) -> DocumentView:
    """Add a text (UTF-8, the whole body), in the place of the one of that name. Shared ones take an operator."""
    owner = _owner(request, shared=shared)
    body = await read_bytes(request, most=parts.settings.max_body_bytes, within_s=parts.settings.send_timeout_s)
    return _document(await parts.store.knowledge.add(owner, name, body.decode(errors="replace")))


@router.delete("/agents/knowledge/{name}", status_code=204, responses=refusals(404, 507))
async def delete_document(name: DocumentPath, request: Request, parts: Wired, *, shared: bool = False) -> Response:
    """Delete one."""
    await parts.store.knowledge.delete(_owner(request, shared=shared), name)
    return Response(status_code=204)


def _writer(request: Request) -> Principal:
    principal = principal_of(request.headers)
    principal.require(Role.USER)
    return principal


def _owner(request: Request, *, shared: bool) -> str:
    principal = _writer(request)
    if not shared:
        return principal.user
    principal.require(Role.OPERATOR)
    return SHARED


def _memory(memory: Memory) -> MemoryView:
    return MemoryView(
        id=memory.id,
        text=memory.text,
        tags=list(memory.tags),
        source=memory.source,
        created_at=memory.created_at,
        rank=memory.rank,
    )


def _document(document: Document) -> DocumentView:
    return DocumentView(name=document.name, owner=document.owner, size=document.size, created_at=document.created_at)


def _passage(passage: Passage) -> PassageView:
    return PassageView(
        document=passage.document,
        owner=passage.owner,
        position=passage.position,
        text=passage.text,
        score=passage.score,
    )
