"""builtin_tools: owns the tools that the agent itself has: memory, documents, what was compressed, the web.

Each acts for the user of the run and for its thread alone; none can name another's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from loopbox_agent.errors import AgentError
from loopbox_agent.read_back import MOST, Asked, read_back, tell_back
from loopbox_agent.sandbox import Outcome
from loopbox_agent.store import Store
from loopbox_agent.threads import MOST_MESSAGES
from loopbox_agent.tool_spec import Effect, ToolSpec
from loopbox_agent.web_search import NAME as WEB_SEARCH
from loopbox_agent.web_search import WebSearch

Text = Annotated[str, Field(min_length=1, max_length=2000)]
Most = Annotated[int, Field(ge=1, le=20)]
Number = Annotated[int, Field(ge=0, le=MOST_MESSAGES)]


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Remember(_Arguments):
    text: Text = Field(description="One fact, in a sentence that is clear on its own.")


class _Find(_Arguments):
    query: Text = Field(description="Words to look for.")
    limit: Most = 5


class _ReadBack(_Arguments):
    query: str = Field(default="", max_length=400, description="Words that all must occur; may be empty.")
    first: Number = Field(default=0, description="Number of the first message, as [n] in a summary.")
    last: Number = Field(default=MOST_MESSAGES, description="Number of the last message.")
    limit: Most = 5


class _Note(_Arguments):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$")]
    text: Annotated[str, Field(max_length=2000)]


A = TypeVar("A", bound=_Arguments)
Call = Callable[[ToolSpec, Mapping[str, JsonValue]], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Place:
    """For whom and where a run's calls act."""

    user: str
    run: str
    thread: str | None


@dataclass(frozen=True, slots=True)
class _Tool:
    spec: ToolSpec
    accepts: type[_Arguments]
    work: Callable[[Builtins, Place, Any], Awaitable[str]]  #: Any: the arguments it accepts


class Builtins:
    """The table of them."""

    def __init__(self, store: Store, web: WebSearch, more: Sequence[ToolSpec] = ()) -> None:
        """more: tools whose calls each run makes itself."""
        self._store = store
        self._web = web
        self._more = tuple(more)

    def specs(self) -> tuple[ToolSpec, ...]:
        """Return what there is."""
        return (*(tool.spec for tool in _TABLE), self._web.spec(), *self._more)

    def calls(self, place: Place) -> dict[str, Call]:
        """Return the calls of one run, by name."""
        made = {tool.spec.name: self._bound(tool, place) for tool in _TABLE}

        async def search(_: ToolSpec, arguments: Mapping[str, JsonValue]) -> Outcome:
            return await self._web.call(arguments)

        return {**made, WEB_SEARCH: search}

    def _bound(self, tool: _Tool, place: Place) -> Call:
        async def call(_: ToolSpec, arguments: Mapping[str, JsonValue]) -> Outcome:
            try:
                text = await tool.work(self, place, tool.accepts.model_validate(dict(arguments)))
            except ValidationError as error:
                fault = error.errors()[0]
                where = ".".join(map(str, fault["loc"]))
                return _outcome(f"{tool.spec.name} was not run. {where}: {fault['msg']}", failed=True)
            except AgentError as error:
                return _outcome(str(error), failed=True)
            return _outcome(text)

        return call

    async def remember(self, place: Place, asked: _Remember) -> str:
        """Keep a fact over all of the user's conversations."""
        kept = await self._store.memories.remember(place.user, asked.text, source=place.run)
        return f"remembered as {kept.id}"

    async def recall(self, place: Place, asked: _Find) -> str:
        """Find what was remembered."""
        found = await self._store.memories.recall(place.user, asked.query, asked.limit)
        return "\n".join(f"[{memory.id}] {memory.text}" for memory in found) or "nothing is remembered about that"

    async def search_knowledge(self, place: Place, asked: _Find) -> str:
        """Find passages of documents."""
        found = await self._store.knowledge.search(place.user, asked.query, asked.limit)
        passages = [f"[{p.document}, passage {p.position}]\n{p.text}" for p in found]
        return "\n\n".join(passages) or "no document has anything about that"

    async def read_back(self, place: Place, asked: _ReadBack) -> str:
        """Read earlier messages of the conversation word for word: by their numbers, else the newest that fit."""
        if place.thread is None:
            return "this run has no conversation that could have been compressed"
        numbers = {"first": asked.first, "last": asked.last} if asked.model_fields_set & {"first", "last"} else {}
        wanted = Asked(**numbers, query=asked.query, most=MOST if numbers else asked.limit)
        return tell_back(await read_back(self._store.database, place.thread, wanted))

    async def note(self, place: Place, asked: _Note) -> str:
        """Keep a note: for this conversation, else for this run."""
        notes = self._store.memories.session if place.thread else self._store.memories.working
        await notes.set(place.thread or place.run, asked.name, asked.text)
        return f"noted under {asked.name}"

    async def notes(self, place: Place, _: _Arguments) -> str:
        """Return the notes."""
        kept = self._store.memories.session if place.thread else self._store.memories.working
        found = await kept.all(place.thread or place.run)
        return "\n".join(f"{name}: {text}" for name, text in found.items() if name[0] != "_") or "there is no note"


def _tool(
    name: str,
    description: str,
    accepts: type[A],
    work: Callable[[Builtins, Place, A], Awaitable[str]],
    effect: Effect,
    *capabilities: str,
) -> _Tool:
    schema = accepts.model_json_schema()
    schema.pop("title", None)
    spec = ToolSpec(
        name, description, schema, source="builtin", kind="builtin", effect=effect, level=effect,
        capabilities=capabilities,
    )  # fmt: skip
    return _Tool(spec, accepts, work)


def _outcome(text: str, *, failed: bool = False) -> Outcome:
    return Outcome(text, {"text": text}, is_error=failed)


_TABLE = (
    _tool(
        "remember", "Remember a fact about the user for later conversations.", _Remember, Builtins.remember, "write",
        "memory", "remember", "facts",
    ),
    _tool(
        "recall", "Find facts remembered earlier.", _Find, Builtins.recall, "read", "memory", "recall", "facts"
    ),
    _tool(
        "search_knowledge", "Search the user's documents.", _Find, Builtins.search_knowledge, "read",
        "knowledge", "documents", "search",
    ),
    _tool(
        "read_back", "Read earlier messages of this conversation word for word, by number or by words.", _ReadBack,
        Builtins.read_back, "read", "history", "conversation", "memory",
    ),
    _tool("note", "Keep a note for this conversation.", _Note, Builtins.note, "write", "notes", "memory"),
    _tool("notes", "Read the notes of this conversation.", _Arguments, Builtins.notes, "read", "notes", "memory"),
)  # fmt: skip
