"""boot: owns when this host and its container engine were started.

A boot is known by the kernel's id of it, which each start of loopd writes into the ledger: clocks may be set, so a
time of boot that is reckoned from them proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from loopd.ledger import Entry, Scalar

STARTED = "loopd.started"  # the ledger's event

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # random(4)
ENGINE_PID = Path("/var/run/docker.pid")  # written by the engine when it starts


@dataclass(frozen=True, slots=True)
class HostTimes:
    """When things were started; None where nobody tells."""

    booted_at: datetime | None = None  #: first start of loopd since a reboot: what began before ended with the host
    engine_pid: Path | None = None
    boot_id: str = ""
    rebooted: bool = False  #: between the start of loopd before and this one

    def engine_started_at(self) -> datetime | None:
        """Return when the container engine of this host was started."""
        try:
            return datetime.fromtimestamp(self.engine_pid.stat().st_mtime, UTC) if self.engine_pid else None
        except OSError:
            return None

    @property
    def told(self) -> str:
        """Say why loopd starts."""
        return "it was started, as the host was" if self.rebooted else "it was started"

    @property
    def record(self) -> dict[str, Scalar]:
        """What the next start of loopd has to know."""
        return {"boot_id": self.boot_id, "booted_at": self.booted_at.isoformat() if self.booted_at else None}


def read_host_times(last: Entry | None, now: datetime, *, engine_is_local: bool, boot_id: Path = BOOT_ID) -> HostTimes:
    """Look at this host.

    last: the ledger's entry of the start before. engine_is_local: whether the engine in use is the one that the pid
    file tells of.
    """
    try:
        boot = boot_id.read_text().strip()
    except OSError:
        boot = ""
    engine_pid = ENGINE_PID if engine_is_local else None
    known = str(last.detail.get("boot_id") or "") if last else ""
    if boot and known and boot != known:
        return HostTimes(now, engine_pid, boot, rebooted=True)
    since = last.detail.get("booted_at") if last and known == boot else None
    return HostTimes(datetime.fromisoformat(str(since)) if since else None, engine_pid, boot)
