"""settings: owns Settings, read once from the environment (AGENT_*), frozen, passed in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AnyHttpUrl, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Settings(BaseSettings):
    """What the service is told; a wrong value stops it at start with the name of the variable."""

    model_config = SettingsConfigDict(env_prefix="AGENT_", frozen=True, extra="forbid")

    host: str = "0.0.0.0"  # noqa: S104 the container's own network decides who reaches it
    port: int = Field(default=8000, ge=1, le=65_535)
    engine_url: AnyHttpUrl = AnyHttpUrl("http://gateway:8081")  #: the gateway's internal door
    model: str = Field(default="agent", min_length=1, max_length=200)  #: the alias, the same for every release
    #: tokens; equal to the release's, because another value makes the engine load the model anew
    num_ctx: int = Field(default=2048, ge=16, le=1 << 20)
    max_output_tokens: int = Field(default=512, ge=1, le=1 << 17)  #: of one model turn, unless the request says
    max_turns: int = Field(default=8, ge=1, le=100)  #: model turns of one run
    max_tool_calls: int = Field(default=32, ge=1, le=1000)  #: of one run
    max_child_tokens: int = Field(default=100_000, ge=1000)  #: of all sub-agents of one run
    models: str = ""  #: JSON list of the pool's members; '': the gateway alone
    broker_socket: Path = Path("/run/broker/broker.sock")
    leases_dir: Path = Path("/run/leases")
    state_dir: Path = Path("/var/lib/agent")  #: threads, memories, workspaces, backups
    database_url: str = ""  #: postgresql+asyncpg://user@host/name; '': SQLite in state_dir
    database_password_file: Path | None = None
    backup_every_s: Annotated[float, Field(ge=0, le=30 * 86_400)] = 86_400.0  #: of the database; 0: never
    backups_kept: int = Field(default=7, ge=1, le=1000)
    max_workspace_bytes: int = Field(default=256 << 20, ge=1 << 20, le=16 << 30)  #: of one thread's files
    #: what instructions score on: "on" isolates, holds back and refuses; "observe" logs what it would have done
    threats: Literal["on", "observe", "off"] = "on"
    learn: Literal["off", "asked", "everyone"] = "everyone"  #: of whom runs are kept to learn from
    learn_days: Annotated[int, Field(ge=1, le=3650)] = 90
    search_url: str = ""  #: a SearxNG that answers format=json; '': no web search
    secrets_dir: Path | None = None  #: files that headers of MCP servers name
    egress_proxy: str = ""  #: unix:/run/egress/egress.sock where hosts were granted; '': the agent has no way out
    max_concurrent_runs: int = Field(default=128, ge=1, le=10_000)
    run_timeout_s: Seconds = 300.0
    #: score of moderation from which an answer waits for a review; 101: none does
    hold_output_from: int = Field(default=90, ge=1, le=101)
    tool_timeout_s: Seconds = 120.0  #: of one tool call; the tool runner has tighter limits of its own
    engine_connect_s: Seconds = 5.0
    engine_silence_s: Seconds = 120.0  #: longest wait for the next token; the first includes reading the prompt
    resume_grace_s: Annotated[float, Field(ge=0, le=86_400)] = 10.0  #: a streamed run without its client
    body_timeout_s: Seconds = 15.0  #: for a client to send its request
    send_timeout_s: Seconds = 30.0  #: for a client to take one event of a stream
    max_body_bytes: int = Field(default=1 << 20, ge=1024, le=1 << 30)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
