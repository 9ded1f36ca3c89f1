"""boot: owns when this host and its container engine were started, as the host itself tells."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

PROC_STAT = Path("/proc/stat")
ENGINE_PID = Path("/var/run/docker.pid")  # written by the engine when it starts


@dataclass(frozen=True, slots=True)
class HostTimes:
    """When things were started; None where nobody tells."""

    booted_at: datetime | None = None
    engine_pid: Path | None = None

    def engine_started_at(self) -> datetime | None:
        """Return when the container engine of this host was started."""
        try:
            return datetime.fromtimestamp(self.engine_pid.stat().st_mtime, UTC) if self.engine_pid else None
        except OSError:
            return None


def read_host_times(*, engine_is_local: bool) -> HostTimes:
    """Look at this host. ``engine_is_local``: whether the engine in use is the one that the pid file tells of."""
    return HostTimes(parse_boot(PROC_STAT.read_text()), ENGINE_PID if engine_is_local else None)


def parse_boot(text: str) -> datetime | None:
    """Return the time of the boot from /proc/stat (proc(5), btime)."""
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if name == "btime" and rest.strip().isdigit():
            return datetime.fromtimestamp(int(rest), UTC)
    return None
