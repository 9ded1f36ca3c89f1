"""server_store: owns what is kept of a user's own MCP servers: the record, the seam to its store, the one in memory."""

from __future__ import annotations

import re
from typing import Annotated, Protocol

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, StringConstraints, field_validator

ServerName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=128)]
MAX_SERVERS = 16  # of one user

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_OURS = re.compile(r"(?i)host|content-.*|transfer-encoding|connection|accept.*|mcp-.*|last-event-id|te|trailer|upgrade")
_RESERVED = frozenset({"builtin", "sandbox"})


class McpServer(BaseModel):
    """One MCP server of one user, as added. Holds names of secrets, never secrets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ServerName
    url: AnyHttpUrl
    #: header → name of the file in the secrets directory that holds its value
    headers: Annotated[dict[str, SecretName], Field(max_length=8)] = {}
    allow: Annotated[tuple[Glob, ...], Field(max_length=64)] = ("*",)  #: of the server's own tool names
    deny: Annotated[tuple[Glob, ...], Field(max_length=64)] = ()  #: stronger than allow
    timeout_s: Annotated[float, Field(ge=1, le=600, allow_inf_nan=False)] = 60.0  #: of one call
    context_bytes: Annotated[int, Field(ge=256, le=1 << 18)] = 32 << 10  #: of all its tools' descriptions and schemas

    @field_validator("name")
    @classmethod
    def _free(cls, value: str) -> str:
        if value in _RESERVED:
            raise ValueError(f"{value!r} is the name of a source of our own")
        if "__" in value:
            raise ValueError("'__' stands between a server's name and its tool's")
        return value

    @field_validator("url")
    @classmethod
    def _without_secrets(cls, value: AnyHttpUrl) -> AnyHttpUrl:
        if value.username or value.password:
            raise ValueError("the address must not hold a name or password; use headers with a secret's name")
        return value

    @field_validator("headers")
    @classmethod
    def _allowed(cls, value: dict[str, str]) -> dict[str, str]:
        for header in value:
            if not _HEADER.fullmatch(header) or _OURS.fullmatch(header):
                raise ValueError(f"{header[:64]!r} is no header that can be set")
        return value


class ServerStore(Protocol):
    """Keeps users' servers, in the order they were added."""

    async def list(self, user: str) -> tuple[McpServer, ...]:
        """Return a user's servers, first added first."""

    async def put(self, user: str, server: McpServer) -> None:
        """Add a server, or replace the one by its name in its place."""

    async def delete(self, user: str, name: str) -> bool:
        """Remove a server; tell whether it was there."""


class MemoryServerStore:
    """The store for tests, and for an agent without a state directory."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, McpServer]] = {}

    async def list(self, user: str) -> tuple[McpServer, ...]:
        """Return a user's servers, first added first."""
        return tuple(self._kept.get(user, {}).values())

    async def put(self, user: str, server: McpServer) -> None:
        """Add a server, or replace the one by its name in its place."""
        self._kept.setdefault(user, {})[server.name] = server

    async def delete(self, user: str, name: str) -> bool:
        """Remove a server; tell whether it was there."""
        return self._kept.get(user, {}).pop(name, None) is not None
