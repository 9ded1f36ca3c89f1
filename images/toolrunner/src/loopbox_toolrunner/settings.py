"""settings: owns Settings, read once from the environment (TOOLRUNNER_*), frozen, passed in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20
Seconds = Annotated[int, Field(ge=1, le=3600)]
Bytes = Annotated[int, Field(ge=1024, le=1 << 40)]


class Settings(BaseSettings):
    """What the tool runner is told; a wrong value stops it at start with the name of the variable."""

    model_config = SettingsConfigDict(env_prefix="TOOLRUNNER_", frozen=True, extra="forbid")

    socket: Path = Path("/run/toolrunner/mcp.sock")
    workspace: Path = Path("/workspace")
    search_path: str = "/usr/local/bin:/usr/bin:/bin"  #: PATH of the commands
    timeout_s: Seconds = 30  #: of a call that does not say
    max_timeout_s: Seconds = 120
    grace_s: float = Field(default=0.5, ge=0, le=10)  #: between SIGTERM and SIGKILL
    cpu_s: Seconds = 60  #: of each process
    memory_bytes: Bytes = 256 * MIB  #: of one call's processes together
    tasks: int = Field(default=64, ge=1, le=10_000)  #: processes and threads of one call
    file_bytes: Bytes = 128 * MIB  #: of each file a command writes
    open_files: int = Field(default=256, ge=16, le=65_536)  #: of each process
    output_bytes: Bytes = 16 * 1024  #: shown of stdout, and of stderr; longer ones are kept as files
    kept_output_bytes: Bytes = 8 * MIB  #: most of one output kept as a file
    kept_outputs: int = Field(default=20, ge=2, le=1000)  #: such files; the oldest go
    shown_bytes: Bytes = 64 * 1024  #: most of a file that read_file returns, and of what a search finds
    search_s: Seconds = 10  #: of search_files and glob
    transfer_bytes: Bytes = 256 * MIB  #: of a workspace exported or imported, as tar
    transfer_files: int = Field(default=20_000, ge=1, le=1_000_000)
    transfer_s: Seconds = 60
    extra: str = Field(default="", pattern=r"^([a-z_][a-z0-9_.]{0,100})?$")  #: module of further tools
    max_read_bytes: Bytes = 8 * MIB  #: biggest file that read_file and edit_file take
    concurrent_calls: int = Field(default=4, ge=1, le=64)
    waiting_calls: int = Field(default=16, ge=0, le=1024)  #: more are refused
    stuck_s: float = Field(default=10.0, gt=0, le=300)  #: a call not cleaned up this long after its end spoils the box
    log_level: Literal["debug", "info", "warning", "error"] = "info"
