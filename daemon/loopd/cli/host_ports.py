"""host_ports: owns who listens on a port of this host, read from /proc as the kernel tells it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"  # TCP_LISTEN in the kernel's include/net/tcp_states.h
# Addresses as /proc/net/tcp and tcp6 write them (in host byte order, so little-endian): any, 127/8, ::, ::1 and
# ::ffff:127/8. A listener on one address of another interface is no hindrance to ours.
_ANY = frozenset({"0" * 8, "0" * 32})
_LOOPBACK_6 = "0" * 24 + "01000000"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who listens on a port that we need."""

    setting: str
    port: int
    name: str  #: for a person: program and number
    ours: bool


def find_holders(
    ports: Mapping[str, int], pids: Collection[int], containers: Collection[str], proc: Path
) -> tuple[Holder, ...]:
    """Return the holders of ports (setting → port); ours are these processes, and those of these containers."""
    wanted = {port: setting for setting, port in ports.items()}
    sockets = {inode: port for inode, port in listening(proc) if port in wanted}
    if not sockets:
        return ()
    found: dict[int, Holder] = {}
    for pid, inode in owners(proc, sockets):
        port = sockets[inode]
        ours = pid in pids or _contained(proc, pid, containers)
        if port not in found or (found[port].ours and not ours):
            found[port] = Holder(wanted[port], port, f"{_name(proc, pid)} (process {pid})", ours)
    unseen = {
        port: Holder(wanted[port], port, "a process that cannot be seen", ours=False) for port in sockets.values()
    }
    return tuple(sorted((unseen | found).values(), key=lambda holder: holder.port))


def listening(proc: Path) -> Iterator[tuple[str, int]]:
    """Yield (socket inode, port) of each TCP listener that a listener of ours on loopback would collide with."""
    for table in ("net/tcp", "net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in (proc / table).read_text().splitlines()[1:]:
                fields = line.split()
                address, _, port = fields[1].partition(":")
                if fields[3] == _LISTEN and _collides(address):
                    yield fields[9], int(port, 16)


def owners(proc: Path, inodes: Collection[str]) -> Iterator[tuple[int, str]]:
    """Yield (process, inode) for each open socket of these."""
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        # Processes end and deny while one looks; both mean that there is nothing to see.
        with contextlib.suppress(OSError):
            for handle in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(handle.readlink())
                    if target.startswith("socket:[") and target[8:-1] in inodes:
                        yield int(folder.name), target[8:-1]


def _collides(address: str) -> bool:
    return (
        address in _ANY
        or address == _LOOPBACK_6
        or (len(address) == 8 and address.endswith("7F"))  # noqa: PLR2004 four bytes in hexadecimal
        or (address.startswith("0" * 16 + "FFFF0000") and address.endswith("7F"))
    )


def _contained(proc: Path, pid: int, containers: Collection[str]) -> bool:
    with contextlib.suppress(OSError):
        groups = (proc / str(pid) / "cgroup").read_text()
        return any(container in groups for container in containers)
    return False


def _name(proc: Path, pid: int) -> str:
    with contextlib.suppress(OSError):
        return (proc / str(pid) / "comm").read_text().strip()
    return "a process that has just ended"
