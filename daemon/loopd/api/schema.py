"""schema: owns the wire types of the control API; the OpenAPI document is made from them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from loopd.egress_rules import MOST_HOSTS


class Body(BaseModel):
    """A body of the control API."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ErrorDetail(Body):
    """What went wrong."""

    code: str
    message: str
    details: dict[str, str | int | float | bool | None] = {}
    timestamp: datetime


class ErrorBody(Body):
    """Every answer from 400 on."""

    error: ErrorDetail


class ServiceView(Body):
    """One supervised container."""

    name: str
    state: Literal["absent", "created", "running", "stopped"]
    ready: bool
    reason: str = Field(description="why it is not ready, '' when it is")
    container: str | None = Field(description="container id, 12 digits")
    image: str | None
    address: str | None
    started_at: datetime | None
    restarts: int = Field(description="since the state was made")
    last_restart_cause: str | None
    last_restart_code: str | None = Field(default=None, description="a stable word for the cause")
    last_restart_at: datetime | None


class AdapterView(Body):
    """A LoRA adapter put on a release's weights."""

    sha256: str
    size_bytes: int


class LineageView(Body):
    """Where a release came from, in its maker's words."""

    base: str = ""
    data: str = ""
    job: str = ""
    scores: dict[str, float] = {}


class ReleaseView(Body):
    """One release."""

    id: str
    short: str
    name: str
    architecture: str
    size_bytes: int
    num_ctx: int
    gguf_sha256: str
    engine_image: str
    source: str
    created_at: datetime
    system: str = Field(default="", description="said before chats that bring no system message")
    adapters: list[AdapterView] = []
    lineage: LineageView = Field(default_factory=LineageView)
    signer: str = Field(default="", description="public key that its file was signed with, '' for none")
    pinned: bool = Field(default=False, description="never collected")
    collected_at: datetime | None = Field(default=None, description="its weights went then; null: they are here")
    role: Literal["champion", "candidate", "previous", "draining", "idle"]
    share_percent: int = Field(description="traffic it should have")
    weight: int | None = Field(description="gateway weight it has, 0..256; null: not at the gateway")
    sessions: int = Field(description="requests in flight on it")
    container: str | None
    ready: bool


class StepView(Body):
    """One journaled step of a rollout."""

    step: str
    detail: str = Field(default="", description="what it is about besides, e.g. the share of a shift")
    state: Literal["planned", "begun", "done", "failed"]
    begun_at: datetime | None
    finished_at: datetime | None
    error: str


class RolloutView(Body):
    """One rollout."""

    id: int
    kind: Literal["rollout", "rollback"]
    candidate: str
    candidate_name: str
    champion: str | None
    phase: Literal["waiting", "active", "aborting", "promoted", "rolled_back", "superseded"]
    policy: Literal["instant", "canary", "blue-green"]
    strategy: Literal["", "beside", "in_place"] = Field(description="'' until it is admitted")
    reason: str
    created_at: datetime
    finished_at: datetime | None
    steps: list[StepView] = []


class SandboxView(Body):
    """The sandbox pool."""

    warm: int
    leased: int
    most: int
    runtime: str = Field(default="", description="container runtime of the sandboxes, '' for the engine's default")


class StatusView(Body):
    """What `loopctl status` shows."""

    instance: str
    version: str
    state: Literal["serving", "degraded", "starting", "down"]
    reason: str = Field(description="why it is not serving, '' when it is")
    started_at: datetime
    public_url: str
    home: str
    services: list[ServiceView]
    releases: list[ReleaseView] = Field(description="those with traffic, a container or a part in a rollout")
    rollout: RolloutView | None = Field(description="the one under way")
    sandboxes: SandboxView


class EventView(Body):
    """One ledger entry."""

    seq: int
    at: datetime
    event: str
    subject: str
    cause: str
    correlation_id: str
    detail: dict[str, str | int | float | bool | None]
    hash: str


class ReleaseList(Body):
    """Releases, newest first."""

    releases: list[ReleaseView]


class CollectRequest(Body):
    """Remove the weights of releases beyond the disk budget."""

    dry_run: bool = Field(default=False, description="say what would go, and remove nothing")


class CollectView(Body):
    """What went, or would go."""

    dry_run: bool
    releases: list[str] = Field(description="short ids, oldest first")
    freed_bytes: int
    kept_bytes: int = Field(description="of weights that stay; more than the budget when nothing else may go")
    budget_bytes: int


class BackupView(Body):
    """One backup; null where a damaged one cannot tell."""

    name: str
    created_at: datetime
    reason: str = Field(description="scheduled, command or upgrade")
    size_bytes: int
    version: str | None = Field(description="of the loopd that made it")
    state_schema: int | None
    ledger_length: int | None
    ledger_head: str | None = Field(description="hash of the ledger's last entry")
    releases: int | None
    champion: str | None
    problem: str = Field(default="", description="why it cannot be used, '' when its manifest reads")


class BackupList(Body):
    """Backups, newest first."""

    folder: str
    backups: list[BackupView]


class RolloutList(Body):
    """Rollouts, newest first."""

    rollouts: list[RolloutView]


class EventList(Body):
    """Ledger entries, oldest first; ``after`` of the next page is ``next_after``."""

    events: list[EventView]
    next_after: int


class ExecRequest(Body):
    """Run a command in a fresh sandbox."""

    argv: Annotated[list[Annotated[str, Field(max_length=65536)]], Field(min_length=1, max_length=256)]
    timeout_s: Annotated[float, Field(gt=0, le=120)] = 30.0


class ExecResult(Body):
    """How the command ended."""

    exit_code: int
    stdout: str
    stderr: str
    timed_out: bool
    truncated: bool
    duration_ms: int
    sandbox: str


class LeaseRequest(Body):
    """Ask for a sandbox."""

    session: Annotated[str, Field(min_length=1, max_length=128)]
    ttl_s: Annotated[float, Field(gt=0, le=86400)] = 600.0
    kind: Literal["tools", "browser"] = "tools"
    hosts: Annotated[list[Annotated[str, Field(min_length=1, max_length=300)]], Field(max_length=MOST_HOSTS)] = Field(
        default=[], description="what it may reach: example.org, *.example.org, :port; within the setting egress.allow"
    )


class RenewRequest(Body):
    """Keep a sandbox for longer."""

    ttl_s: Annotated[float, Field(gt=0, le=86400)] = 600.0


class LeaseView(Body):
    """A sandbox lent."""

    lease: str
    socket: str = Field(description="path of the tool runner's socket below the lease directory")
    expires_at: datetime
    kind: Literal["tools", "browser"] = "tools"
    hosts: list[str] = []
    egress: str | None = Field(default=None, description="inside the sandbox: the socket of the proxy to its hosts")


class HealthView(Body):
    """loopd itself answers."""

    status: Literal["ok"] = "ok"
    version: str
