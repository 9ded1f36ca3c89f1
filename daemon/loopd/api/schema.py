"""schema: owns the wire types of the control API; the OpenAPI document is made from them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, SecretStr

from loopd.egress_rules import MOST_HOSTS
from loopd.principal import USER_PATTERN, Role


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


class AuditRecord(Body):
    """One thing the agent did."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,96}$")]
    at: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(\+00:00|Z)$")]
    event: Annotated[str, Field(pattern=r"^[a-z_]{1,32}\.[a-z_]{1,32}$")]
    user: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{0,64}$")] = ""
    subject: Annotated[str, Field(max_length=300)] = ""
    correlation_id: Annotated[str, Field(max_length=64)] = ""
    detail: Annotated[
        dict[
            Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")],
            Annotated[str, Field(max_length=1000)] | int | float | bool | None,
        ],
        Field(max_length=32),
    ] = {}


class AuditBatch(Body):
    """Entries for the audit trail."""

    entries: Annotated[list[AuditRecord], Field(min_length=1, max_length=500)]


class AuditEntryView(Body):
    """One entry of the audit trail."""

    seq: int
    at: str
    source: str = Field(description="who wrote it down: gateway, agent or loopd")
    event: str
    user: str
    subject: str
    correlation_id: str
    detail: dict[str, str | int | float | bool | None]
    hash: str


class AuditList(Body):
    """A page of the audit trail."""

    entries: list[AuditEntryView]
    next_after: int


class AuditVerdict(Body):
    """Whether the audit trail and the ledger are as they were written."""

    ok: bool
    entries: int = Field(description="entries of the trail that were looked at")
    first_bad: int | None = Field(description="sequence number of the first entry that does not fit")
    why: str
    ledger_first_bad: int | None


UserName = Annotated[str, Field(pattern=f"^{USER_PATTERN}$")]
Password = Annotated[SecretStr, Field(max_length=256)]
NewPassword = Annotated[SecretStr, Field(min_length=12, max_length=256)]


class LoginRequest(Body):
    """Log in."""

    username: Annotated[str, Field(max_length=64)]
    password: Password


class RefreshRequest(Body):
    """Exchange a refresh token for the next pair; it is good once."""

    refresh_token: Annotated[SecretStr, Field(max_length=4096)]


class PairView(Body):
    """Tokens of a login. Seconds from now."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 a kind of token
    expires_in: int
    refresh_token: str
    refresh_expires_in: int
    user: str
    role: Role


class WhoView(Body):
    """Who asks."""

    user: str
    role: Role
    kind: Literal["access", "service", "control", "socket"]
    expires_at: datetime | None


class JwkView(Body):
    """One public key (RFC 7517)."""

    kty: str
    use: str
    alg: str
    kid: str
    n: str
    e: str


class JwkSetView(Body):
    """The keys that verify our tokens, newest first."""

    keys: list[JwkView]


class UserView(Body):
    """One user."""

    name: str
    role: Role
    disabled: bool
    can_log_in: bool
    created_at: datetime
    changed_at: datetime


class UserList(Body):
    """All users, by name."""

    users: list[UserView]


class AddUserRequest(Body):
    """Add a user."""

    name: UserName
    role: Role
    password: NewPassword


class ChangeUserRequest(Body):
    """Change what is given. Whatever is changed ends the user's tokens."""

    role: Role | None = None
    password: NewPassword | None = None
    disabled: bool | None = None


class IssueRequest(Body):
    """Make a token without a password, for a program."""

    user: UserName
    role: Role
    ttl_s: Annotated[float, Field(ge=60, le=366 * 86400)]
    name: Annotated[str, Field(max_length=80, pattern=r"^[A-Za-z0-9 ._@/-]*$")] = ""
    short: bool = Field(
        default=False, description="an access token, not counted as a service token; at most 30 minutes"
    )


class IssuedView(Body):
    """A new token; it is told once."""

    token: str
    jti: str
    user: str
    role: Role
    expires_at: datetime


class TokenView(Body):
    """A token, without its text."""

    jti: str
    kind: Literal["access", "service", "refresh"]
    family: str = Field(description="of one login; revoked together")
    user: str
    role: Role
    name: str
    issued_at: datetime
    expires_at: datetime


class TokenList(Body):
    """The newest tokens that live."""

    tokens: list[TokenView]


class RevokeRequest(Body):
    """Revoke one token (one of a login with its login), a login by its family, or all of a user."""

    of: Literal["token", "login", "user"]
    id: UserName


class RevokedView(Body):
    """What was revoked."""

    tokens: int
    in_force: bool = Field(description="false: the gateway does not answer; it learns it when it does")


class RotateRequest(Body):
    """Sign with a new key."""

    revoke: bool = Field(default=False, description="all tokens there are end at once")


class KeyView(Body):
    """The key that signs from now on."""

    kid: str
    verifying: int = Field(description="keys that verify, this one included")


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)  # 64.0 is a whole number in JSON, too

DataName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
DataPath = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._-]{0,99})?$")]


Form = Literal[
    "auto",
    "row",
    "interaction",
    "chat",
    "sharegpt",
    "instruction",
    "question",
    "completion",
    "dump",
    "bfcl",
    "grade_school_math",
]


class SourceRequest(Body):
    """One file of training/data to make a data set of."""

    path: DataPath
    form: Literal[
        "auto", "rows", "interactions", "openai", "sharegpt", "alpaca", "ollama", "dump", "bfcl", "grade_school_math"
    ] = "auto"
    weight: Annotated[float, Field(ge=0, le=1000, description="share beside the others")] = 1.0
    held_out: bool = Field(default=False, description="for the test split alone")


class CurateRequest(Body):
    """Make a data set: one form, no duplicates, no leaks between its splits, with counts of what was left out."""

    name: DataName
    sources: Annotated[list[SourceRequest], Field(max_length=64)] = []
    synthetic: Annotated[int, Field(ge=0, le=200_000, description="rows made up over the own tools"), WHOLE] = 0
    synthetic_held_out: Annotated[int, Field(ge=0, le=20_000), WHOLE] = 0
    total: Annotated[int, Field(ge=1, le=2_000_000, description="training rows; all if left out"), WHOLE] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31), WHOLE] = 0


class DataView(Body):
    """One file that the trainer can read."""

    path: str
    size_bytes: int
    changed_at: datetime


class DataList(Body):
    """What there is to learn from."""

    folder: str
    files: list[DataView]


class TrainRequest(Body):
    """What to train, and how. The figures are the trainer's defaults for a small model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    train: Annotated[list[DataPath], Field(min_length=1, max_length=64, description="files in training/data")]
    evaluate: Annotated[list[DataPath], Field(max_length=64)] = []
    base: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, description="the release to train; the one that serves if left out"
    )
    hand_over: Literal["adapter", "model"] = Field(
        default="adapter", description="a LoRA adapter for the base, or a model of its own"
    )
    r: Annotated[int, Field(ge=1, le=512), WHOLE] = 16
    alpha: Annotated[float, Field(gt=0, le=4096)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]], Field(max_length=32)] = []
    tokens: Annotated[int, Field(ge=64, le=131_072, description="of one packed sequence"), WHOLE] = 1024
    batch: Annotated[int, Field(ge=1, le=1024), WHOLE] = 1
    accumulation: Annotated[int, Field(ge=1, le=1024), WHOLE] = 1
    epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    seed: Annotated[int, Field(ge=0, lt=2**31), WHOLE] = 1
    quantise: Literal["auto", "nf4", "none"] = "auto"
    gradient_checkpointing: bool = False


class JobView(Body):
    """One job of the trainer."""

    id: str
    kind: Literal["curate", "train", "score"]
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    cause: str = Field(description="who or what asked for it")
    name: str
    spec: dict[str, JsonValue]
    starts: int = Field(description="of its container")
    stopping: str = Field(description="why it is to end, '' when it is not")
    code: str = Field(description="a stable word for why it failed")
    reason: str
    figures: dict[str, str | int | float | bool | None]
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class JobList(Body):
    """The newest jobs, newest first."""

    jobs: list[JobView]


class JobEventView(Body):
    """One thing that a job told."""

    number: int
    body: dict[str, JsonValue]


class JobEventList(Body):
    """How a job stands, and what it told after a number."""

    job: JobView
    events: list[JobEventView]
