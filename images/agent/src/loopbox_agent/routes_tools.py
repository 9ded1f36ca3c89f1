"""routes_tools: owns the routes of tools: which there are, and MCP servers of the user's own."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from loopbox_agent.addresses import ServerPath
from loopbox_agent.bodies import parse, read_bytes, schema_of
from loopbox_agent.errors import refusals
from loopbox_agent.mcp_servers import Discovery, UnknownServerError
from loopbox_agent.parts import Wired
from loopbox_agent.principal import Principal, Role, principal_of
from loopbox_agent.server_store import McpServer
from loopbox_agent.toolkit import views

MOST_BYTES = 64 << 10

router = APIRouter(tags=["tools"], responses=refusals(403, 422, 503))


class ServerView(BaseModel):
    """An MCP server and how it is."""

    name: str
    url: str
    headers: dict[str, str]  #: header to the name of the secret it holds
    allow: list[str]
    deny: list[str]
    timeout_s: float
    state: str
    error: str


@router.get("/agents/tools", responses=refusals(502))
async def list_tools(request: Request, parts: Wired) -> dict[str, Any]:  # Any: JSON
    """List every tool that a run could be offered, from the agent, the sandbox and one's own MCP servers."""
    return dict(views(await parts.toolkit.registry(principal_of(request.headers).user)))


@router.get("/agents/mcp-servers")
async def list_servers(request: Request, parts: Wired) -> dict[str, list[ServerView]]:
    """List one's own MCP servers."""
    user = principal_of(request.headers).user
    known = {health.name: health for health in parts.servers.health(user)}
    views_ = []
    for server in await parts.servers.list(user):
        health = known.get(server.name)
        views_.append(_view(server, health.state if health else "unused", health.reason if health else ""))
    return {"servers": views_}


@router.post(
    "/agents/mcp-servers",
    status_code=201,
    openapi_extra=schema_of(McpServer),
    responses=refusals(408, 413, 507),
)
async def add_server(request: Request, parts: Wired) -> ServerView:
    """Add a server, or change the one by that name. It is asked nothing yet: see "test"."""
    principal = _owner(request)
    body = await read_bytes(request, most=MOST_BYTES, within_s=parts.settings.body_timeout_s)
    server = parse(McpServer, body)
    await parts.servers.add(principal.user, server)
    parts.audit.tell("server.added", principal, server.name, url=str(server.url))
    return _view(server, "unused", "")


@router.delete("/agents/mcp-servers/{name}", status_code=204, responses=refusals(404, 507))
async def remove_server(name: ServerPath, request: Request, parts: Wired) -> Response:
    """Remove one."""
    principal = _owner(request)
    await parts.servers.remove(principal.user, name)
    parts.audit.tell("server.removed", principal, name)
    return Response(status_code=204)


@router.post("/agents/mcp-servers/{name}/test", responses=refusals(404))
async def test_server(name: ServerPath, request: Request, parts: Wired) -> dict[str, Any]:  # Any: JSON
    """Connect to one and say what it offers, or why it cannot be asked."""
    principal = _owner(request)
    for server in await parts.servers.list(principal.user):
        if server.name == name:
            return _found(await parts.servers.discover(server))
    raise UnknownServerError(f"You have no MCP server {name[:40]!r}; nothing was asked.")


def _owner(request: Request) -> Principal:
    principal = principal_of(request.headers)
    principal.require(Role.USER)
    return principal


def _found(found: Discovery) -> dict[str, Any]:  # Any: JSON
    return {
        "state": found.health.state,
        "error": found.health.reason,
        "tools": [tool.name for tool in found.listing.tools],
        "refused": [{"name": refused.name, "reason": refused.reason} for refused in found.listing.refused],
    }


def _view(server: McpServer, state: str, error: str) -> ServerView:
    return ServerView(
        name=server.name,
        url=str(server.url),
        headers=dict(server.headers),
        allow=list(server.allow),
        deny=list(server.deny),
        timeout_s=server.timeout_s,
        state=state,
        error=error,
    )
