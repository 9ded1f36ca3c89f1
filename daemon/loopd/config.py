"""config: owns Settings, everything an operator may set, read once and frozen.

Sources, strongest first: environment (``LOOPBOX_*``), the TOML file (``LOOPBOX_CONFIG`` or ``<home>/loopbox.toml``),
defaults. A setting that is misspelt or out of range stops the start and names the key, the value and the range.
"""

from __future__ import annotations

import os
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from loopd.egress_rules import MOST_HOSTS, parse_rules
from loopd.errors import LoopdError

PREFIX = "LOOPBOX_"

# Read before Settings exists, because they say where its file is.
_OUTSIDE_SETTINGS = frozenset({"LOOPBOX_CONFIG"})

Port = Annotated[int, Field(ge=1, le=65535)]

# A unix socket's path is limited to 108 bytes by Linux (unix(7)); ours add at most 60 to the run directory.
MAX_RUN_DIR_BYTES = 48


class ConfigError(LoopdError):
    """The configuration cannot be used; nothing was started or changed."""

    code = "config_invalid"


def default_home() -> Path:
    """Return where state and models live: system-wide for root, else the user's data directory."""
    if os.geteuid() == 0:
        return Path("/var/lib/loopbox")
    return Path(os.environ.get("XDG_DATA_HOME", "~/.local/share")).expanduser() / "loopbox"


def default_run_dir() -> Path:
    """Return where sockets live; empty after a reboot."""
    if os.geteuid() == 0:
        return Path("/run/loopbox")
    return Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")) / "loopbox"


class SandboxSettings(BaseModel):
    """The warm pool and the limits of each sandbox container."""

    model_config = {"frozen": True, "extra": "forbid"}

    warm: Annotated[int, Field(ge=0, le=64)] = 2  #: containers kept ready
    most: Annotated[int, Field(ge=1, le=512)] = 16  #: containers at once, leased or warm
    browser_warm: Annotated[int, Field(ge=0, le=64)] = 0  #: of those with a browser
    starting: Annotated[int, Field(ge=1, le=16)] = 2  #: started at the same time
    per_session: Annotated[int, Field(ge=1, le=512)] = 4  #: leases of one session at once
    lease_s: Annotated[float, Field(gt=0, le=86400)] = (
        600.0  #: longest lease, and longest time a renewal gives, seconds
    )
    life_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 86400.0  #: a lease ends then, however often renewed
    memory_bytes: Annotated[int, Field(ge=64 << 20)] = 512 << 20
    browser_memory_bytes: Annotated[int, Field(ge=256 << 20)] = 1 << 30
    cpus: Annotated[float, Field(gt=0, le=256)] = 1.0
    pids: Annotated[int, Field(ge=16, le=4096)] = 128
    browser_pids: Annotated[int, Field(ge=64, le=4096)] = 256
    workspace_bytes: Annotated[int, Field(ge=1 << 20)] = 256 << 20  #: disk of a session; counts into its memory
    tmp_bytes: Annotated[int, Field(ge=1 << 20)] = 64 << 20  #: of /tmp, and of /dev/shm
    open_files: Annotated[int, Field(ge=64, le=1 << 20)] = 1024  #: of each process
    runtime: Literal["auto", "runc", "runsc"] = "auto"  #: auto: runsc (gVisor) where the engine has it


class EgressSettings(BaseModel):
    """What sandboxes and the agent may reach outside, through the proxy. Nothing, unless the operator says so.

    ``example.org``, ``*.example.org``, ``*``, an address; each with ``:port`` for another port than 80 and 443.
    """

    model_config = {"frozen": True, "extra": "forbid"}

    allow: Annotated[tuple[str, ...], Field(max_length=1000)] = ()  #: what sessions may ask to be granted
    agent: Annotated[tuple[str, ...], Field(max_length=MOST_HOSTS)] = ()  #: what the agent itself may reach
    connections: Annotated[int, Field(ge=1, le=1024)] = 32  #: of one session at once
    connection_bytes: Annotated[int, Field(ge=1 << 10)] = 256 << 20
    session_bytes: Annotated[int, Field(ge=1 << 10)] = 1 << 30  #: of one lease, all connections, both ways
    connection_s: Annotated[int, Field(ge=1, le=86400)] = 600

    @field_validator("allow", "agent")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_rules(value)
        return value


class AgentSettings(BaseModel):
    """The agent's own settings, handed on to its container. Seconds and bytes."""

    model_config = {"frozen": True, "extra": "forbid"}

    memory_bytes: Annotated[int, Field(ge=256 << 20)] = 512 << 20
    max_turns: Annotated[int, Field(ge=1, le=100)] = 8  #: model turns of one run
    max_tool_calls: Annotated[int, Field(ge=1, le=1000)] = 32  #: of one run
    run_timeout_s: Annotated[float, Field(gt=0, le=86400)] = 300.0
    max_concurrent_runs: Annotated[int, Field(ge=1, le=10_000)] = 128
    database_url: Annotated[str, Field(pattern=r"^(|postgresql\+asyncpg://[^\s]{1,500})$")] = ""  #: empty: SQLite
    search_url: Annotated[str, Field(pattern=r"^(|https?://[^\s]{1,500})$")] = ""  #: a SearxNG; '': no web search
    #: score of moderation from which an answer waits for a review; 90: what is about minors; 101: none
    hold_output_from: Annotated[int, Field(ge=1, le=101)] = 90
    learn: Literal["off", "asked", "everyone"] | None = None  #: of whom runs are kept; None: see Settings.learn
    learn_days: Annotated[int, Field(ge=1, le=3650)] = 90  #: how long they stay
    threats: Literal["on", "observe", "off"] = "on"  #: what instructions score: is acted on, logged alone, not asked
    secrets_dir: Path | None = None  #: files that it may read: database-password, headers of MCP servers


class CanaryStep(BaseModel):
    """One stage of a canary: this share of the traffic, until enough was seen or its time is over."""

    model_config = {"frozen": True, "extra": "forbid"}

    percent: Annotated[int, Field(ge=1, le=99)]
    seconds: Annotated[float, Field(ge=0, le=86400)] = 10.0  #: at most so long
    requests: Annotated[int, Field(ge=1, le=1_000_000)] = 50  #: answered by the candidate: enough


class AnalysisSettings(BaseModel):
    """What a candidate must show while it takes traffic, beside the champion in the same time."""

    model_config = {"frozen": True, "extra": "forbid"}

    samples: Annotated[int, Field(ge=5, le=10_000)] = 20  #: answers of each release before latencies are compared
    error_rate: Annotated[float, Field(ge=0, le=1)] = 0.02  #: more than the champion's by so much is too much
    errors: Annotated[int, Field(ge=1, le=10_000)] = 2  #: fewer failed answers than these are never too many
    latency_factor: Annotated[float, Field(ge=1, le=100)] = 2.0  #: candidate's p95 to the champion's
    latency_floor_ms: Annotated[int, Field(ge=0, le=600_000)] = 250  #: a p95 below is never too slow
    speed_factor: Annotated[float, Field(gt=0, le=1)] = 0.25  #: tokens/s of the probe, to those of the first check
    probe_s: Annotated[float, Field(gt=0, le=600)] = 0.5  #: between two golden probes
    probe_deadline_s: Annotated[float, Field(gt=0, le=600)] = 3.0  #: for one


class RolloutSettings(BaseModel):
    """How a candidate takes over, how long each step may take, in seconds, and what a candidate must show.

    ``instant`` flips all traffic; ``canary`` gives shares step by step and looks; ``blue-green`` flips all traffic and
    keeps the old release loaded for ``bake_s``, so that going back is a flip, too.
    """

    model_config = {"frozen": True, "extra": "forbid"}

    policy: Literal["instant", "canary", "blue-green"] = "canary"
    canary: Annotated[tuple[CanaryStep, ...], Field(min_length=1, max_length=20)] = (
        CanaryStep(percent=10, seconds=3.0, requests=30),
        CanaryStep(percent=50, seconds=3.0, requests=50),
    )
    bake_s: Annotated[float, Field(ge=0, le=86400)] = 10.0  #: blue-green: how long the old one stays loaded
    swap_in_place: bool = False  #: where two engines do not fit: stop the old one first, hold requests meanwhile
    reserve_bytes: Annotated[int, Field(ge=0)] = 256 << 20  #: host memory that no engine may take
    start_s: Annotated[float, Field(gt=0, le=3600)] = 60.0  #: container start to engine answering
    load_s: Annotated[float, Field(gt=0, le=7200)] = 600.0  #: weights into memory, first token
    check_s: Annotated[float, Field(gt=0, le=3600)] = 120.0  #: all golden prompts together
    drain_s: Annotated[float, Field(gt=0, le=86400)] = 600.0  #: streams in flight on the old release
    analysis: AnalysisSettings = AnalysisSettings()

    @field_validator("canary")
    @classmethod
    def _rising(cls, value: tuple[CanaryStep, ...]) -> tuple[CanaryStep, ...]:
        if any(later.percent <= earlier.percent for earlier, later in pairwise(value)):
            raise ValueError("each step's percent must be more than the one's before")
        return value


class SuperviseSettings(BaseModel):
    """When a unit that runs is taken for broken, and when restarting it is given up for a rollback. Seconds."""

    model_config = {"frozen": True, "extra": "forbid"}

    probe_s: Annotated[float, Field(gt=0, le=600)] = 3.0  #: between two one-token generations of the champion
    probe_deadline_s: Annotated[float, Field(gt=0, le=600)] = 3.0  #: unanswered so long and idle: wedged
    stuck_s: Annotated[float, Field(gt=0, le=86400)] = 300.0  #: busy without an answer to any probe: wedged, too
    unhealthy_s: Annotated[float, Field(gt=0, le=3600)] = 10.0  #: the gateway's probe fails so long: restarted
    grace_s: Annotated[float, Field(gt=0, le=3600)] = 60.0  #: after a start, no health verdict before it was healthy
    crashes: Annotated[int, Field(ge=2, le=30)] = 5  #: restarts within ``crash_window_s`` are a crash loop
    crash_window_s: Annotated[float, Field(gt=0, le=86400)] = 300.0


class RegistrySettings(BaseModel):
    """What may become a release, and how much of the disk releases may take."""

    model_config = {"frozen": True, "extra": "forbid"}

    public_key: Annotated[str, Field(pattern=r"^(|[A-Za-z0-9+/]{43}=)$")] = ""  #: Ed25519, base64; '': unsigned is fine
    budget_bytes: Annotated[int, Field(ge=0)] = 0  #: of weights kept; 0: half of the file system
    keep: Annotated[int, Field(ge=1, le=1000)] = 5  #: newest releases kept whatever the budget says


class BackupSettings(BaseModel):
    """Backups of state, registry and settings; never of weights."""

    model_config = {"frozen": True, "extra": "forbid"}

    every_s: Annotated[float, Field(ge=0, le=30 * 86400)] = 86400.0  #: 0: only by command
    keep: Annotated[int, Field(ge=1, le=1000)] = 7


class AuditSettings(BaseModel):
    """How long the audit trail is kept."""

    model_config = {"frozen": True, "extra": "forbid"}

    keep_days: Annotated[int, Field(ge=1, le=3650)] = 30
    most_entries: Annotated[int, Field(ge=1000, le=1_000_000_000)] = 2_000_000  #: older ones go earlier; 0.4 KB each


MailAddress = Annotated[str, Field(pattern=r"^[^@\s,]{1,64}@[^@\s,]{1,253}$")]


class AlertSettings(BaseModel):
    """Who is told of what needs a person. Secrets are in files that root reads."""

    model_config = {"frozen": True, "extra": "forbid"}

    webhook_url: Annotated[str, Field(pattern=r"^(|https?://[^\s]{1,500})$")] = ""  #: '': no webhook
    webhook_secret_file: Path | None = None  #: key of the HMAC that signs each call
    smtp_host: Annotated[str, Field(max_length=253)] = ""  #: '': no mail
    smtp_port: Port = 587
    smtp_tls: Literal["starttls", "tls", "none"] = "starttls"
    smtp_user: Annotated[str, Field(max_length=200)] = ""
    smtp_password_file: Path | None = None
    mail_from: MailAddress | None = None
    mail_to: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[^@\s,]{1,64}@[^@\s,]{1,253}$")], ...], Field(max_length=20)
    ] = ()

    @model_validator(mode="after")
    def _whole(self) -> AlertSettings:
        if self.smtp_host and not (self.mail_from and self.mail_to):
            raise ValueError("smtp_host needs mail_from and mail_to")
        return self


class AuthSettings(BaseModel):
    """Who is let in at the gateway. Seconds."""

    model_config = {"frozen": True, "extra": "forbid"}

    mode: Literal["required", "off"] = (
        "required"  #: off: whoever reaches the gateway, which only this host does, may all
    )
    access_s: Annotated[int, Field(ge=60, le=86400)] = 1800  #: life of an access token
    refresh_s: Annotated[int, Field(ge=60, le=30 * 86400)] = 86400  #: life of a refresh token
    rotate_s: Annotated[float, Field(ge=0, le=3650 * 86400)] = 90 * 86400.0  #: life of a signing key; 0: by command


class LimitSettings(BaseModel):
    """Token buckets at the gateway: requests a second, and at once. A rate of 0 is no limit."""

    model_config = {"frozen": True, "extra": "forbid"}

    user_rate: Annotated[float, Field(ge=0, le=1_000_000)] = 200.0
    user_burst: Annotated[float, Field(ge=1, le=1_000_000)] = 400.0
    address_rate: Annotated[float, Field(ge=0, le=1_000_000)] = 1000.0
    address_burst: Annotated[float, Field(ge=1, le=1_000_000)] = 2000.0
    login_rate: Annotated[float, Field(ge=0, le=1_000_000)] = 1.0  #: logins and exchanges of one address
    login_burst: Annotated[float, Field(ge=1, le=1_000_000)] = 20.0


class TrainingSettings(BaseModel):
    """The trainer's jobs. One runs at a time, behind everything that serves."""

    model_config = {"frozen": True, "extra": "forbid"}

    memory_bytes: Annotated[int, Field(ge=512 << 20)] = 8 << 30
    cpus: Annotated[float, Field(gt=0, le=1024)] | None = None  #: None: what others leave
    threads: Annotated[int, Field(ge=0, le=1024)] = 0  #: of the computation; 0: one for each core
    gpu: bool = False  #: it may have every NVIDIA GPU
    longest_s: Annotated[float, Field(ge=60, le=30 * 86400)] = 86400.0
    keep: Annotated[int, Field(ge=1, le=1000)] = 20  #: jobs whose files stay


class Settings(BaseSettings):
    """Everything an operator may set. Bytes and seconds unless the name says else."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid")

    home: Path = Field(default_factory=default_home)
    run_dir: Path = Field(default_factory=default_run_dir)
    instance: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")] = "loopbox"
    public_port: Port = 8080
    internal_port: Port = 8081
    control_port: Port = 8090
    docker_host: str | None = None  #: a unix:// URL; None: DOCKER_HOST or the default socket
    model_alias: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = "agent"
    num_ctx: Annotated[int, Field(ge=256, le=1 << 20)] = 2048  #: tokens
    engine_threads: Annotated[int, Field(ge=1, le=1024)] | None = None  #: per engine; None: half of the cores
    engine_gpu: bool = False  #: the engine image computes on NVIDIA GPUs, and may have all of them
    engine_parallel: Annotated[int, Field(ge=1, le=64)] = 2  #: requests generated at once by one engine
    max_model_bytes: Annotated[int, Field(ge=1 << 10)] = 200 << 30
    max_body_bytes: Annotated[int, Field(ge=1 << 10, le=1 << 30)] = 1 << 20
    incoming_settle_s: Annotated[float, Field(ge=0.05, le=60)] = 1.0  #: unchanged this long: worth a look
    incoming_stale_s: Annotated[float, Field(gt=0, le=86400)] = 300.0  #: truncated and unchanged this long: refused
    hold_s: Annotated[float, Field(ge=0, le=600)] = 30.0  #: requests wait so long for an engine while none is ready
    relist_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    log_level: Annotated[str, Field(pattern=r"^(debug|info|warning|error)$")] = "info"
    sandbox: SandboxSettings = SandboxSettings()
    egress: EgressSettings = EgressSettings()
    training: TrainingSettings = TrainingSettings()
    agent: AgentSettings = AgentSettings()
    rollout: RolloutSettings = RolloutSettings()
    supervise: SuperviseSettings = SuperviseSettings()
    registry: RegistrySettings = RegistrySettings()
    backup: BackupSettings = BackupSettings()
    audit: AuditSettings = AuditSettings()
    alerts: AlertSettings = AlertSettings()
    auth: AuthSettings = AuthSettings()
    limits: LimitSettings = LimitSettings()

    @field_validator("home", "run_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        value = value.expanduser()
        if not value.is_absolute():
            raise ValueError("must be an absolute path")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        ports = [self.public_port, self.internal_port, self.control_port]
        if len(set(ports)) != len(ports):
            raise ValueError("public_port, internal_port and control_port must differ")
        if len(os.fsencode(self.run_dir)) > MAX_RUN_DIR_BYTES:
            raise ValueError(f"run_dir is longer than {MAX_RUN_DIR_BYTES} bytes, too long for unix sockets below it")
        if self.sandbox.warm + self.sandbox.browser_warm > self.sandbox.most:
            raise ValueError("sandbox.warm and sandbox.browser_warm together must not exceed sandbox.most")
        return self

    @property
    def threads(self) -> int:
        """Threads for one engine: two may run during a rollout, so half of the cores each."""
        return self.engine_threads or max(1, (os.cpu_count() or 2) // 2)

    @property
    def learn(self) -> Literal["off", "asked", "everyone"]:
        """Of whom runs are kept: of the one user where nobody logs in; of those who agreed where people do."""
        return self.agent.learn or ("asked" if self.auth.mode == "required" else "everyone")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 the framework's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 the framework's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, environment, the file."""
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config_path()))


def config_path() -> Path:
    """Return the settings file's path; the file may be absent."""
    if named := os.environ.get("LOOPBOX_CONFIG"):
        return Path(named)
    return Path(os.environ.get("LOOPBOX_HOME", default_home())) / "loopbox.toml"


def load_settings() -> Settings:
    """Read file and environment into Settings.

    Raises ConfigError with one line for each fault: the key, what is wrong, the value given.
    """
    path = config_path()
    if "LOOPBOX_CONFIG" in os.environ and not path.is_file():
        raise ConfigError(f"LOOPBOX_CONFIG names {path}, which is not a file: correct or unset it")
    _refuse_unknown_variables()
    try:
        return Settings()
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}. Nothing was started; mend the file and try again") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        lines = [f"  {_key(fault['loc'])}: {fault['msg']} (given: {fault['input']!r})" for fault in error.errors()]
        raise ConfigError("\n".join([f"settings cannot be used ({path} and {PREFIX}* variables):", *lines])) from error


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "settings"


def _refuse_unknown_variables() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | _OUTSIDE_SETTINGS
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known and name.split("__")[0] not in known:
            raise ConfigError(f"{name} is set, but there is no such setting; `loopctl config show` lists them")
