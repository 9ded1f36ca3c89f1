"""agent_client: owns how loopctl speaks with the agent through the gateway: what each call asks and answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import BinaryIO, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, TypeAdapter, ValidationError

from loopd.cli.agent_views import (
    ConsentView,
    DocumentList,
    DocumentView,
    EndView,
    ErasedView,
    HeldList,
    HeldView,
    InteractionList,
    InteractionView,
    MemoryList,
    MemoryView,
    MessageList,
    PassageList,
    RunList,
    RunView,
    ServerList,
    ServerTest,
    ServerView,
    ThreadList,
    ThreadView,
    ToolList,
)
from loopd.cli.client import parse
from loopd.cli.exits import AnswerError, MissingError
from loopd.cli.sse import Message
from loopd.cli.wire import Answer, Begun, Request, Wire

ANSWER_S = 30.0
ERASE_S = 600.0  # the search index is written anew
IMPORT_S = 600.0
SILENCE_S = 60.0  # the agent sends a comment every 15 s
TEST_S = 120.0  # a server that somebody else runs, and its limits are its own
HELD_PAGE = 20  # a text that was held back has up to 1 MiB
LEARN_PAGE = 50  # a run has up to 0.5 MiB
MOST_PAGES = 500
STATES = ("waiting", "released", "rejected")

RUN_PATH = "/agents/run-agent"

M = TypeVar("M", bound=BaseModel)

_COUNTS = TypeAdapter(dict[str, int])


class AgentClient:
    """Calls of the agent's API. Each raises UnreachableError, ApiError or AnswerError."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    # runs

    def start(self, body: bytes) -> RunView:
        """Start a run that goes on without a client."""
        return self._call("POST", RUN_PATH, RunView, body=body)

    def run(self, body: bytes, named: Callable[[str], object]) -> Generator[Message | None]:
        """Start a run and yield its events; ``named`` is told its id first."""
        return self._stream(Request("POST", RUN_PATH, body), lambda headers: named(headers.get("X-Run-Id", "")))

    def follow(self, run_id: str, after: int) -> Generator[Message | None]:
        """Yield a run's events after a number."""
        return self._stream(Request("GET", f"{_run(run_id)}/events", headers={"Last-Event-ID": str(after)}))

    def runs(self, *, live: bool, limit: int) -> RunList:
        """List one's own runs; with ``live`` everybody's that are under way."""
        return self._call("GET", f"/agents/runs?{_query(live=live, limit=limit)}", RunList)

    def show_run(self, run_id: str) -> RunView:
        """Show one."""
        return self._call("GET", _run(run_id), RunView)

    def cancel(self, run_id: str) -> EndView:
        """End one; answered when nothing of it is left."""
        return self._call("POST", f"{_run(run_id)}/cancel", EndView)

    def steer(self, run_id: str, text: str) -> RunView:
        """Put a message into one."""
        return self._call("POST", f"{_run(run_id)}/steer", RunView, body=_json(text=text))

    def rate(self, run_id: str, rating: str, *, comment: str, better: str) -> InteractionView:
        """Say what one was."""
        body = _json(rating=rating, comment=comment or None, better=better or None)
        return self._call("POST", f"{_run(run_id)}/feedback", InteractionView, body=body)

    def interactions(self, *, after: int) -> InteractionList:
        """List the runs that were kept to learn from, from the one after a number on."""
        return self._call("GET", f"/agents/interactions?{_query(after=after, limit=LEARN_PAGE)}", InteractionList)

    def consent(self) -> ConsentView:
        """Show whether one's runs are kept to learn from."""
        return self._call("GET", "/agents/consent", ConsentView)

    def decide_consent(self, *, agree: bool) -> ConsentView:
        """Say whether they may."""
        return self._call("PUT", "/agents/consent", ConsentView, body=_json(agree=agree))

    # threads

    def threads(self, *, before: str | None, limit: int) -> ThreadList:
        """List one's own conversations."""
        return self._call("GET", f"/agents/threads?{_query(before=before, limit=limit)}", ThreadList)

    def new_thread(self, title: str | None) -> ThreadView:
        """Begin one."""
        return self._call("POST", "/agents/threads", ThreadView, body=_json(title=title))

    def thread(self, thread_id: str) -> ThreadView:
        """Show one."""
        return self._call("GET", _thread(thread_id), ThreadView)

    def messages(self, thread_id: str, *, dropped: bool, query: str | None, limit: int) -> MessageList:
        """List its messages."""
        asked = _query(dropped=dropped, query=query, limit=limit)
        return self._call("GET", f"{_thread(thread_id)}/messages?{asked}", MessageList)

    def rename_thread(self, thread_id: str, title: str) -> ThreadView:
        """Give it another title."""
        return self._call("PATCH", _thread(thread_id), ThreadView, body=_json(title=title))

    def delete_thread(self, thread_id: str) -> None:
        """Delete it with its messages and files."""
        self._fetch(Request("DELETE", _thread(thread_id)))

    def export_thread(self, thread_id: str, sink: BinaryIO) -> int:
        """Write its files as a tar archive; return the bytes."""
        return self._wire.save(Request("GET", f"{_thread(thread_id)}/workspace"), sink, silence_s=SILENCE_S)

    def import_thread(self, thread_id: str, source: BinaryIO) -> None:
        """Put a tar archive in the place of its files."""
        path = f"{_thread(thread_id)}/workspace"
        self._fetch(Request("PUT", path, source, kind="application/x-tar"), timeout_s=IMPORT_S)

    # memory and knowledge

    def memories(self, *, limit: int) -> MemoryList:
        """List what is remembered."""
        return self._call("GET", f"/agents/memory?{_query(limit=limit)}", MemoryList)

    def remember(self, text: str, tags: list[str]) -> MemoryView:
        """Remember something."""
        return self._call("POST", "/agents/memory", MemoryView, body=_json(text=text, tags=tags))

    def recall(self, query: str, *, limit: int) -> MemoryList:
        """Find what fits best."""
        return self._call("GET", f"/agents/memory/search?{_query(query=query, limit=limit)}", MemoryList)

    def forget(self, memory_id: int) -> None:
        """Forget one thing."""
        self._fetch(Request("DELETE", f"/agents/memory/{memory_id}"))

    def documents(self, *, shared: bool) -> DocumentList:
        """List one's own documents, or the shared ones."""
        return self._call("GET", f"/agents/knowledge?{_query(shared=shared)}", DocumentList)

    def add_document(self, name: str, text: bytes, *, shared: bool) -> DocumentView:
        """Add one, in the place of the one of that name."""
        path = f"/agents/knowledge/{quote(name, safe='')}?{_query(shared=shared)}"
        request = Request("PUT", path, text, kind="text/plain; charset=utf-8")
        return parse(DocumentView, self._fetch(request).body, str(request), who="the agent")

    def search_documents(self, query: str, *, limit: int) -> PassageList:
        """Find passages in one's own documents and the shared ones."""
        return self._call("GET", f"/agents/knowledge/search?{_query(query=query, limit=limit)}", PassageList)

    def delete_document(self, name: str, *, shared: bool) -> None:
        """Delete one."""
        self._fetch(Request("DELETE", f"/agents/knowledge/{quote(name, safe='')}?{_query(shared=shared)}"))

    # review and people

    def held(self, state: str, *, before: str | None = None, limit: int = HELD_PAGE) -> HeldList:
        """List what was held back, newest first."""
        asked = _query(state=state, before=before, limit=limit)
        return self._call("GET", f"/agents/quarantine?{asked}", HeldList)

    def find_held(self, held_id: str) -> HeldView:
        """Find one by its id, whatever its state. Raises MissingError."""
        for state in STATES:
            before: str | None = None
            for _ in range(MOST_PAGES):
                page = self.held(state, before=before).held
                for held in page:
                    if held.id == held_id:
                        return held
                if len(page) < HELD_PAGE:
                    break
                before = page[-1].id
        raise MissingError(f"nothing that was held back has the id {held_id!r}; `loopctl quarantine list` shows them")

    def release(self, held_id: str) -> HeldView:
        """Let it through."""
        return self._call("POST", f"{_held(held_id)}/release", HeldView)

    def reject(self, held_id: str, reason: str) -> HeldView:
        """Keep it back for good."""
        return self._call("POST", f"{_held(held_id)}/reject", HeldView, body=_json(reason=reason))

    def export_person(self, user: str, sink: BinaryIO) -> int:
        """Write everything that is kept about a user, one JSON object a line; return the bytes."""
        return self._wire.save(Request("GET", f"{_user(user)}/export"), sink, silence_s=SILENCE_S)

    def erase_person(self, user: str) -> ErasedView:
        """Erase everything that is kept about a user."""
        request = Request("DELETE", f"{_user(user)}/data")
        body = self._fetch(request, timeout_s=ERASE_S).body
        try:
            return ErasedView(user=user, rows=_COUNTS.validate_json(body))
        except ValidationError as error:
            raise AnswerError(
                f"the answer to {request} cannot be read, but it was not refused: the data is most likely erased. "
                f"`loopctl people export {user}` shows what is left"
            ) from error

    # tools

    def tools(self) -> ToolList:
        """List every tool."""
        return self._call("GET", "/agents/tools", ToolList, timeout_s=TEST_S)

    def servers(self) -> ServerList:
        """List one's own MCP servers."""
        return self._call("GET", "/agents/mcp-servers", ServerList)

    def add_server(self, server: Mapping[str, object]) -> ServerView:
        """Add one, or change the one by that name."""
        return self._call("POST", "/agents/mcp-servers", ServerView, body=_json(**server))

    def remove_server(self, name: str) -> None:
        """Remove one."""
        self._fetch(Request("DELETE", _server(name)))

    def test_server(self, name: str) -> ServerTest:
        """Ask one for its tools."""
        return self._call("POST", f"{_server(name)}/test", ServerTest, timeout_s=TEST_S)

    def _call(
        self, method: str, path: str, model: type[M], *, body: bytes | None = None, timeout_s: float = ANSWER_S
    ) -> M:
        request = Request(method, path, body)
        return parse(model, self._fetch(request, timeout_s=timeout_s).body, str(request), who="the agent")

    def _fetch(self, request: Request, *, timeout_s: float = ANSWER_S) -> Answer:
        return self._wire.fetch(request, timeout_s=timeout_s)

    def _stream(self, request: Request, begun: Begun | None = None) -> Generator[Message | None]:
        with closing(self._wire.stream(request, silence_s=SILENCE_S, tick_s=SILENCE_S, begun=begun)) as messages:
            yield from messages


def _run(run_id: str) -> str:
    return f"/agents/runs/{quote(run_id, safe='')}"


def _thread(thread_id: str) -> str:
    return f"/agents/threads/{quote(thread_id, safe='')}"


def _held(held_id: str) -> str:
    return f"/agents/quarantine/{quote(held_id, safe='')}"


def _user(user: str) -> str:
    return f"/agents/users/{quote(user, safe='')}"


def _server(name: str) -> str:
    return f"/agents/mcp-servers/{quote(name, safe='')}"


def _json(**body: object) -> bytes:
    return json.dumps({key: value for key, value in body.items() if value is not None}).encode()


def _query(**asked: str | int | None) -> str:
    """Return a query; what is None is left out, a bool is true or false."""
    words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in asked.items()}
    return urlencode({key: value for key, value in words.items() if value is not None})
