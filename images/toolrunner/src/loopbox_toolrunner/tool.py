"""tool: owns what a tool is: its row in the table, its answer, and the seam by which an image adds rows of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mcp_types import Tool, ToolAnnotations
from pydantic import BaseModel

from loopbox_toolrunner import arguments as given
from loopbox_toolrunner.egress import Egress
from loopbox_toolrunner.files import Files
from loopbox_toolrunner.jail import Jail
from loopbox_toolrunner.runner import Runner
from loopbox_toolrunner.settings import Settings

Level = Literal["read", "write", "execute", "network"]
META = "loopbox"  #: the key of ours in a tool's _meta


class ToolError(Exception):
    """The tool did not do what was asked; the text says why, what was not harmed and what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call came to."""

    what: BaseModel  #: structured
    text: str  #: how a model reads it
    failed: bool = False
    images: tuple[bytes, ...] = ()  #: PNG


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What is known of a tool before it is called."""

    level: Level
    capabilities: tuple[str, ...]
    memory_mb: int = 16
    seconds: int = 5
    destructive: bool = False  #: may take away what is there
    idempotent: bool = False  #: a second call with the same arguments changes nothing more
    reaches_out: bool = False  #: comes to the outside where the session was granted hosts


@dataclass(frozen=True, slots=True)
class Row:
    """One tool of the table."""

    name: str
    description: str
    accepts: type[given.Arguments]
    returns: type[BaseModel]
    call: Callable[[Any], Awaitable[Answer]]  # Any: what ``accepts`` says; a table cannot tell that row by row
    traits: Traits


@dataclass(frozen=True, slots=True)
class Seat:
    """What tools stand on."""

    settings: Settings
    runner: Runner
    egress: Egress
    jail: Jail
    files: Files


@dataclass(frozen=True, slots=True)
class Extension:
    """Further tools."""

    rows: Sequence[Row]
    health: Callable[[], dict[str, object]] = field(default=dict)  #: told by /health


class OpenTools(Protocol):
    """What the module named by ``TOOLRUNNER_EXTRA`` has as ``open_tools``."""

    def __call__(self, seat: Seat, /) -> AbstractAsyncContextManager[Extension]:
        """Have further tools; what they keep running ends with the context."""


def describe(row: Row, settings: Settings, *, granted: bool) -> Tool:
    """Return what a tool says of itself. granted: hosts outside can be reached."""
    traits = row.traits
    read_only = traits.level == "read"
    times = {"timeout_s": settings.timeout_s, "max_timeout_s": settings.max_timeout_s}
    needs = {"memory_mb": traits.memory_mb, "seconds": traits.seconds}
    return Tool(
        name=row.name,
        description=row.description,
        input_schema=given.schema_of(row.accepts, **times),
        output_schema=given.schema_of(row.returns),
        annotations=ToolAnnotations(
            read_only_hint=read_only,
            destructive_hint=traits.destructive,
            idempotent_hint=read_only or traits.idempotent,
            open_world_hint=traits.reaches_out and granted,
        ),
        _meta={META: {"capabilities": list(traits.capabilities), "level": traits.level, "needs": needs}},
    )
