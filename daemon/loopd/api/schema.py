"""schema: owns the wire types of the control API; the OpenAPI document is made from them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


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
    last_restart_at: datetime | None


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
    role: Literal["champion", "candidate", "previous", "draining", "idle"]
    share_percent: int = Field(description="traffic it should have")
    weight: int | None = Field(description="gateway weight it has, 0..256; null: not at the gateway")
    sessions: int = Field(description="requests in flight on it")
    container: str | None
    ready: bool


class StepView(Body):
    """One journaled step of a rollout."""

    step: str
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
    reason: str
    created_at: datetime
    finished_at: datetime | None
    steps: list[StepView] = []


class SandboxView(Body):
    """The sandbox pool."""

    warm: int
    leased: int
    most: int


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


class LeaseView(Body):
    """A sandbox lent."""

    lease: str
    socket: str = Field(description="path of the tool runner's socket below the lease directory")
    expires_at: datetime


class HealthView(Body):
    """loopd itself answers."""

    status: Literal["ok"] = "ok"
    version: str
