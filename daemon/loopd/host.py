"""host: owns the record of what `up` started on this host, and the places outside home that it may touch.

A process is known by number, start and boot, a file is written whole or not at all: `down` and `purge` act on these
records, and must never hit what is another's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from loopd.errors import LoopdError

FILE = "started.json"
MAX_FILE_BYTES = 64 << 10
TAIL_LINES = 20  # of a program's output, kept for the message
LINE_CHARACTERS = 300
LOG_BYTES = 8 << 20  # at a start; a longer log is put aside as .1 then
POLL_S = 0.05
# Directories that are nobody's alone: `purge` removes home and run_dir, so neither may be one of these.
_TOP = ("bin", "boot", "dev", "etc", "home", "lib", "media", "mnt", "opt", "proc", "root", "run", "sbin", "srv", "sys")
_SHARED = frozenset(
    Path("/") / name
    for name in ("", *_TOP, "run/user", "tmp", "usr", "usr/local", "var", "var/lib", "var/log", "var/run", "var/tmp")
)


class HostError(LoopdError):
    """The host lacks something, or a program on it failed; the text says what was left as it was."""

    code = "host_not_ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where things are outside home and run_dir; tests move them."""

    repository: Path
    bin_dir: Path = Path("/usr/local/bin")
    unit_dir: Path = Path("/etc/systemd/system")
    systemd: Path = Path("/run/systemd/system")  #: exists where systemd runs, sd_booted(3)
    proc: Path = Path("/proc")
    docker_pid: Path = Path("/var/run/docker.pid")
    interpreter: Path = Path(sys.base_prefix)  #: the Python that the virtual environment stands on

    @property
    def booted(self) -> bool:
        """Whether systemd supervises this host."""
        return self.systemd.is_dir()

    @property
    def scripts(self) -> Path:
        """The folder of the virtual environment's programs."""
        return self.repository / ".venv" / "bin"


def find_repository() -> Path:
    """Return the checkout this package runs from. Raises HostError where it is installed without one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "images").is_dir() or not (root / "requirements").is_dir():
        raise HostError(f"{root} is no checkout of loopbox: run this command from one, with `make up`")
    return root


class Process(BaseModel):
    """One process for sure: a number alone may long belong to another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    ticks: int  #: when it started, in clock ticks since boot
    boot: str  #: the boot's id

    def alive(self, proc: Path = Path("/proc")) -> bool:
        """Tell whether it still runs; a zombie does not."""
        return find_process(self.pid, proc) == self


class Started(BaseModel):
    """What this instance's `up` started or put, so that `down` and `purge` take away no more than that."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dockerd: Process | None = None
    loopd: Process | None = None
    digest: str = ""  #: of the code, images and settings that loopd was started with
    base_made: bool = False  #: the Debian image was not there before


def find_process(pid: int, proc: Path = Path("/proc")) -> Process | None:
    """Return the live process of this number, None for none."""
    try:
        # The name in parentheses may hold anything; the fields that count come after it, the state first.
        fields = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
        return None if fields[0] in "ZX" else Process(pid=pid, ticks=int(fields[19]), boot=boot)
    except (OSError, IndexError, ValueError):
        return None


def end_process(process: Process, *, grace_s: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Ask a process to end, and after ``grace_s`` make it. Raises HostError for one that even that does not end."""
    for name, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            if process.alive():
                os.kill(process.pid, name)
        deadline = clock() + wait_s
        while clock() < deadline:
            if not process.alive():
                return
            time.sleep(POLL_S)
    raise HostError(f"process {process.pid} does not end, not even killed; the kernel's log may say why (`dmesg`)")


def is_shared(path: Path, repository: Path) -> bool:
    """Tell whether others have files there, so that it can be nobody's home."""
    resolved = path.resolve()
    return resolved in _SHARED or resolved.parent == Path("/home") or repository.resolve().is_relative_to(resolved)


def load_started(home: Path) -> Started:
    """Read what was started; a record that is missing or broken means nothing was."""
    try:
        with (home / FILE).open("rb") as file:
            return Started.model_validate_json(file.read(MAX_FILE_BYTES))
    except (OSError, ValidationError):
        return Started()


def save_started(home: Path, started: Started) -> None:
    """Write what was started, whole or not at all."""
    write_atomically(home / FILE, started.model_dump_json(indent=2) + "\n")


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a file so that a reader, or a crash, sees the old text or the new. Raises HostError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(mode)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise HostError(f"{path} cannot be written: {error.strerror}. What was there before is there still") from error


def rotate(log: Path) -> None:
    """Put a long log aside, in the place of the one put aside before."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > LOG_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))


def read_tail(path: Path, lines: int = TAIL_LINES) -> str:
    """Return a log's last lines, '' for no log."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - lines * LINE_CHARACTERS))
            found = file.read(lines * LINE_CHARACTERS).decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(found[-lines:])
