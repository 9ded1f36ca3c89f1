"""tool_spec: owns ToolSpec, what is known of one tool, and the reading of it from an MCP listing.

A listing is somebody else's text. From the sandbox, which is ours, annotations and ``_meta`` are believed. From a
user's server they are hints: a server can't lower its own security level, and its words are marked as its own.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from loopbox_agent.principal import Role
from loopbox_agent.tool_schema import SchemaRefusedError, plain_schema

Effect = Literal["read", "write", "execute", "network"]
Kind = Literal["builtin", "sandbox", "server"]
EFFECTS: tuple[Effect, ...] = ("read", "write", "execute", "network")  # from least to most

MAX_NAME = 64  # characters; the longest that OpenAI-style engines take
MAX_DESCRIPTION = 1024  # characters
MAX_CAPABILITIES = 16
MAX_TOOLS = 256  # of one listing
_WORD = re.compile(r"[a-z0-9]+")
_META_KEY = "loopbox"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a call may use, as its tool tells it; 0 is unknown."""

    memory_mb: int = 0
    seconds: int = 0


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """One tool of one source."""

    name: str  #: fit for a model: letters, digits, "_" and "-"
    description: str
    schema: Mapping[str, JsonValue]  #: of the arguments; JSON Schema 2020-12
    source: str = "sandbox"  #: "builtin", "sandbox" or the server's name
    kind: Kind = "sandbox"
    effect: Effect = "execute"  #: what a call does, for the order of calls
    level: Effect = "execute"  #: what a caller must be allowed
    capabilities: tuple[str, ...] = ()  #: lower-case words
    needs: Needs = Needs()
    minimum_role: Role = Role.VIEWER  #: besides what the role table asks for
    called: str = ""  #: the name its source knows it by, where that differs
    unavailable: str = ""  #: why it can't be called now, and what to do; "" when it can

    @property
    def source_name(self) -> str:
        """The name to send to the source."""
        return self.called or self.name


@dataclass(frozen=True, slots=True)
class Refused:
    """A listed tool that is not taken, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source's listing holds that can be used."""

    tools: tuple[ToolSpec, ...]
    refused: tuple[Refused, ...] = ()


class _Needs(BaseModel):
    model_config = ConfigDict(extra="ignore")
    memory_mb: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    seconds: Annotated[int, Field(ge=0, le=86_400)] = 0


class _Meta(BaseModel):
    model_config = ConfigDict(extra="ignore")
    capabilities: list[str] = []
    level: Effect | None = None
    needs: _Needs = _Needs()


class _Annotations(BaseModel):
    model_config = ConfigDict(extra="ignore")
    read_only: bool | None = Field(default=None, alias="readOnlyHint")
    open_world: bool | None = Field(default=None, alias="openWorldHint")


_OBJECT: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


def read_listing(tools: Sequence[object], *, source: str, kind: Kind) -> Listing:
    """Return what is usable of the ``tools`` of an MCP tools/list answer, as JSON, in its order."""
    taken: list[ToolSpec] = []
    refused: list[Refused] = []
    for told in tools[:MAX_TOOLS]:
        try:
            taken.append(_spec(_OBJECT.validate_python(told), source, kind))
        except (SchemaRefusedError, ValidationError, _NamelessError) as error:
            name = told.get("name") if isinstance(told, dict) else None
            why = str(error) if not isinstance(error, ValidationError) else "it is no JSON object of a tool's form"
            refused.append(Refused(clean_text(str(name), 100), why))
    if len(tools) > MAX_TOOLS:
        refused.append(Refused(f"{len(tools) - MAX_TOOLS} more", f"more than {MAX_TOOLS} tools in one listing"))
    return Listing(tuple(taken), tuple(refused))


class _NamelessError(Exception):
    """A tool whose name holds nothing that can be used."""


def _spec(told: dict[str, JsonValue], source: str, kind: Kind) -> ToolSpec:
    called = told.get("name")
    name = clean_name(called) if isinstance(called, str) else ""
    if not name or not isinstance(called, str):
        raise _NamelessError("its name holds no letter or digit")
    schema = plain_schema(told.get("inputSchema"), trusted=kind != "server")
    effect, level = _levels(told, kind)
    meta = _meta(told)
    text = told.get("description")
    return ToolSpec(
        name=name,
        description=clean_text(text if isinstance(text, str) else "", MAX_DESCRIPTION),
        schema=schema,
        source=source,
        kind=kind,
        effect=effect,
        level=level,
        capabilities=words(meta.capabilities),
        needs=Needs(meta.needs.memory_mb, meta.needs.seconds),
        called=called if called != name else "",
    )


def _meta(told: Mapping[str, JsonValue]) -> _Meta:
    meta = told.get("_meta")
    try:
        return _Meta.model_validate(meta.get(_META_KEY) or {}) if isinstance(meta, dict) else _Meta()
    except ValidationError:
        return _Meta()


def _levels(told: Mapping[str, JsonValue], kind: Kind) -> tuple[Effect, Effect]:
    """Return effect and level. What is not said is taken for the worst."""
    try:
        hints = _Annotations.model_validate(told.get("annotations") or {})
    except ValidationError:
        hints = _Annotations()
    if kind == "server":  # what it is given leaves the appliance, whatever it says of itself
        return ("read" if hints.read_only else "network"), "network"
    level = _meta(told).level
    if level is None:
        level = "network" if hints.open_world else "read" if hints.read_only else "execute"
    return ("read" if hints.read_only else level), level


def words(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the lower-case words in some texts, each once, in order."""
    found = (word for text in texts for word in _WORD.findall(text[:256].lower()))
    return tuple(dict.fromkeys(found))[:MAX_CAPABILITIES]


def clean_name(name: str) -> str:
    """Return a name that models and engines take, "" when nothing of it is left."""
    made = re.sub(r"[^A-Za-z0-9_-]+", "_", name[:256])[:MAX_NAME]
    return made if re.search(r"[A-Za-z0-9]", made) else ""


def clean_text(text: str, most: int) -> str:
    """Return a text of ``most`` characters at most, without control and invisible characters."""
    kept = "".join(c if unicodedata.category(c)[0] != "C" else " " if c in "\n\t" else "" for c in text[: most * 2])
    kept = " ".join(kept.split())
    return kept if len(kept) <= most else kept[: most - 1] + "…"


def context_bytes(spec: ToolSpec) -> int:
    """Return the bytes that offering this tool adds to a model's prompt, roughly."""
    return len(spec.name) + len(spec.description.encode()) + len(json.dumps(spec.schema))
