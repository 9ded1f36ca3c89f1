"""job: owns Job, Limits and Report, what server and keeper say to each other. Standard library only, for speed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

EXIT_TIMED_OUT = 124  # as coreutils' timeout has it
EXIT_KILLED = 137
WATCH_S = 0.025  # one core fills about 50 MiB in this time


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call may use."""

    wall_s: float
    grace_s: float  #: between SIGTERM and SIGKILL when the time is up or the client is gone
    cpu_s: int  #: of each process
    memory_bytes: int  #: resident, of all processes together
    tasks: int  #: processes and threads together
    file_bytes: int  #: of each file written
    open_files: int  #: of each process
    watch_s: float = WATCH_S  #: between two looks at memory and tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A command to run, and its surroundings."""

    argv: tuple[str, ...]
    directory: str
    environment: tuple[tuple[str, str], ...]
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a job ended; no process of it is left when this is said."""

    exit_code: int
    timed_out: bool
    note: str  #: why it was stopped, "" when it ended by itself
    duration_ms: int  #: from start until its first process ended


def pack(said: Job | Report) -> bytes:
    """Return one line of JSON."""
    return json.dumps(asdict(said)).encode() + b"\n"


def parse_job(line: bytes) -> Job:
    """Read what ``pack`` wrote. Raises ValueError, TypeError or KeyError."""
    told = json.loads(line)
    environment = tuple((str(key), str(value)) for key, value in told.pop("environment"))
    return Job(
        **told | {"argv": tuple(told["argv"]), "environment": environment, "limits": Limits(**told["limits"])},
    )


def parse_report(line: bytes) -> Report:
    """Read what ``pack`` wrote. Raises ValueError or TypeError."""
    return Report(**json.loads(line))
