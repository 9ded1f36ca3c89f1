"""agent_views: owns loopctl's own records of what the agent answers; fields that only a newer agent knows are dropped.

loopd does not import the agent's package: these name what a person is shown, and no more.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, JsonValue


class _View(BaseModel):
    # Built on first use: `--help` need not wait for it.
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class ToldView(_View):
    """Why something failed."""

    code: str = ""
    message: str = ""


class RunView(_View):
    """A run."""

    run_id: str
    status: str
    thread_id: str | None = None
    user: str = ""
    duration_ms: int = 0
    result: JsonValue = None  #: what its client was answered
    error: JsonValue = None  #: why it failed


class RunList(_View):
    """Runs, newest first."""

    runs: list[RunView]


class EndView(_View):
    """How a run ended: its result, or the error it failed of."""

    run_id: str = ""
    status: str = ""
    output: str = ""
    error: ToldView | None = None


class ThreadView(_View):
    """A conversation."""

    thread_id: str
    title: str | None = None
    created_at: datetime
    updated_at: datetime


class ThreadList(_View):
    """Conversations, the last used first."""

    threads: list[ThreadView]


class MessageView(_View):
    """One message of a conversation."""

    seq: int
    run_id: str
    at: datetime
    message: JsonValue


class MessageList(_View):
    """Messages of a conversation."""

    messages: list[MessageView]


class TranscriptView(_View):
    """A conversation with its messages, for --json."""

    thread: ThreadView
    messages: list[MessageView]


class MemoryView(_View):
    """Something that is remembered."""

    id: int
    text: str
    tags: list[str] = []
    source: str = ""
    created_at: datetime
    rank: float = 0.0  #: 0 to 1, in what a search finds


class MemoryList(_View):
    """What is remembered."""

    memories: list[MemoryView]


class DocumentView(_View):
    """A document that the agent may search."""

    name: str
    owner: str
    size: int  #: bytes
    created_at: datetime


class DocumentList(_View):
    """Documents, by name."""

    documents: list[DocumentView]


class PassageView(_View):
    """A part of a document that fits a query."""

    document: str
    owner: str
    position: int
    text: str
    score: float  #: 0 to 1


class PassageList(_View):
    """Passages, the best first."""

    passages: list[PassageView]


class HeldView(_View):
    """A text that was held back for a person to look at."""

    id: str
    run_id: str
    user: str
    kind: str
    score: int  #: 0 to 100
    findings: JsonValue = None
    text: str
    state: str
    created_at: datetime
    decided_by: str | None = None
    reason: str | None = None


class HeldList(_View):
    """Texts that were held back, newest first."""

    held: list[HeldView]


class ErasedView(_View):
    """What was erased of a user."""

    user: str
    rows: dict[str, int]  #: by table


class GoneView(_View):
    """What is gone, for --json."""

    removed: str


class InteractionView(_View):
    """A run that was kept to learn from."""

    number: int = 0
    run_id: str
    thread_id: str | None = None
    messages: JsonValue = None
    tools: JsonValue = None
    outcome: str
    rating: str | None = None
    comment: str = ""
    better: str = ""


class InteractionList(_View):
    """Some of them, oldest first."""

    interactions: list[InteractionView]


class ConsentView(_View):
    """Whether one's runs are kept to learn from."""

    agree: bool
    learn: str
    deleted: int = 0


class SavedView(_View):
    """A file that was written, for --json."""

    file: str
    size: int  #: bytes


class ToolView(_View):
    """A tool that a run could be offered."""

    name: str
    description: str = ""
    source: str = ""  #: builtin, sandbox, or an MCP server's name
    effect: str = ""  #: read, write, execute or network
    level: str = ""  #: what a caller must be allowed
    capabilities: list[str] = []
    available: bool = True
    reason: str | None = None  #: why it cannot be called now


class ConflictView(_View):
    """Two tools that claimed one name."""

    name: str
    winner: str  #: source
    loser: str  #: source
    offered_as: str = ""  #: the loser's tool


class NotTakenView(_View):
    """A tool that a source lists and that is not offered."""

    source: str = ""
    name: str
    reason: str = ""


class AwayView(_View):
    """A source that cannot be asked."""

    source: str
    reason: str = ""


class ToolList(_View):
    """Every tool, and what is not offered."""

    tools: list[ToolView]
    conflicts: list[ConflictView] = []
    refused: list[NotTakenView] = []
    unavailable: list[AwayView] = []


class ServerView(_View):
    """A user's own MCP server."""

    name: str
    url: str = ""
    headers: dict[str, str] = {}  #: header to the name of the secret that holds its value
    allow: list[str] = []
    deny: list[str] = []
    timeout_s: float = 0.0
    state: str = ""
    error: str | None = None


class ServerList(_View):
    """MCP servers, in the order they were added."""

    servers: list[ServerView]


class ServerTest(_View):
    """What an MCP server answered when it was asked for its tools."""

    state: str
    error: str | None = None
    tools: list[str] = []
    refused: list[NotTakenView] = []
