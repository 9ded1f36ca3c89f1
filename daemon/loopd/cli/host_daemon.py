"""host_daemon: owns starting loopd, starting it anew when it is not what this checkout says, waiting and stopping."""

from __future__ import annotations

import hashlib
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loopd.cli.client import Client, find_way
from loopd.cli.host_commands import Say
from loopd.cli.host_files import environment_of
from loopd.cli.host_parts import Host
from loopd.cli.host_unit import install, is_active, read_template, render, systemctl, unit_name, unit_path
from loopd.errors import LoopdError
from loopd.host import HostError, Process, end_process, find_process, read_tail, write_atomically
from loopd.images import FILE as IMAGES_FILE

SERVE_S = 180.0
STOP_S = 20.0
POLL_S = 0.2
LOG = "loopd.log"
PID = "loopd.pid"
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)


@dataclass(frozen=True, slots=True)
class Watch:
    """How the wait for serving goes; tests hurry."""

    most_s: float = SERVE_S
    poll_s: float = POLL_S


def ensure_loopd(host: Host, say: Say) -> str:
    """Bring loopd to running with this code, these images and settings. Raises HostError."""
    unit = (
        render(read_template(host.places), host.settings, host.places, environment_of()) if host.places.booted else ""
    )
    digest = digest_of(host, unit)
    process = find_loopd(host)
    if process and host.started.digest == digest:
        return f"runs since before (process {process.pid})"
    if host.places.booted:
        install(host, unit)
        say("starting the unit")
        systemctl(host, "enable", unit_name(host.settings))
        systemctl(host, "restart", unit_name(host.settings))
        host.remember(host.started.model_copy(update={"loopd": None, "digest": digest}))
        return f"{unit_name(host.settings)} {'started anew' if process else 'started'}"
    if process:
        say("stopping the old one; containers serve on")
        end_process(process, grace_s=STOP_S)
    fresh = host.commands.start((str(host.places.scripts / "loopd"),), log=host.logs / LOG)
    host.remember(host.started.model_copy(update={"loopd": fresh, "digest": digest}))
    write_atomically(host.layout.run_dir / PID, f"{fresh.pid}\n")
    return f"{'started anew, since something changed' if process else 'started'} (process {fresh.pid})"


def stop_loopd(host: Host) -> str:
    """Stop loopd; containers serve on. Raises HostError."""
    running = find_loopd(host)
    if host.places.booted and unit_path(host).is_file():
        systemctl(host, "disable", "--now", unit_name(host.settings))
    if (process := find_loopd(host)) is not None:
        end_process(process, grace_s=STOP_S)
    (host.layout.run_dir / PID).unlink(missing_ok=True)
    if host.started.loopd or host.started.digest:
        host.remember(host.started.model_copy(update={"loopd": None, "digest": ""}))
    return "stopped" if running else "did not run"


def await_serving(host: Host, say: Say, watch: Watch = Watch()) -> str:
    """Wait until loopd says that it serves. Raises HostError with its last lines when it ends or takes too long."""
    deadline = time.monotonic() + watch.most_s
    reason = "loopd does not answer yet"
    way = None
    while time.monotonic() < deadline:
        try:
            way = way or find_way(host.settings)
            with Client(way) as client:
                status = client.status()
            if status.state == "serving":
                return status.public_url
            reason = status.reason or status.state
        except LoopdError as error:
            way = None  # it may be another one by and by: the socket comes up after the start
            reason = str(error).splitlines()[0]
            if find_loopd(host) is None and not host.places.booted:
                raise HostError(f"loopd ended. {_words(host)}") from error
        say(reason)
        time.sleep(watch.poll_s)
    raise HostError(f"not serving after {watch.most_s:g} s: {reason}. {_words(host)}")


def find_loopd(host: Host) -> Process | None:
    """Return the loopd of this instance: the one recorded, else the one that listens on its socket."""
    if (known := host.started.loopd) and known.alive(host.places.proc):
        return known
    if host.places.booted and not is_active(host):
        return None
    return peer(host.layout.control_socket, host.places.proc)


def peer(path: Path, proc: Path) -> Process | None:
    """Return the loopd that listens on a unix socket, None for none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
            told = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid = int(_CREDENTIALS.unpack(told)[0])
            ours = b"loopd" in (proc / str(pid) / "cmdline").read_bytes()
        except OSError:
            return None
    return find_process(pid, proc) if ours else None


def digest_of(host: Host, unit: str) -> str:
    """Return a digest of everything that loopd is started with: when it differs, loopd is started anew."""
    digest = hashlib.sha256(host.settings.model_dump_json().encode())
    package = host.places.repository / "daemon" / "loopd"
    sources = (path for kind in ("*.py", "*.sql") for path in package.rglob(kind))
    own = (path for path in sources if "cli" not in path.relative_to(package).parts)
    files = [*own, host.places.repository / "requirements" / "loopd.txt"]
    feed: Callable[[bytes], None] = digest.update
    for path in [*sorted(files), host.settings.home / IMAGES_FILE]:
        content = path.read_bytes() if path.is_file() else b""
        feed(f"\n{path.name} {len(content)}\n".encode())
        feed(content)
    feed(unit.encode())
    return digest.hexdigest()


def _words(host: Host) -> str:
    if host.places.booted:
        name = unit_name(host.settings)
        tail = host.commands.run(("journalctl", "--no-pager", "--lines=20", "--unit", name), timeout_s=30).tail
        where = f"journalctl --unit {name}"
    else:
        tail, where = read_tail(host.logs / LOG), str(host.logs / LOG)
    return f"Last lines ({where}):\n{tail}\nNext: `loopctl status` says what is missing, `make up` tries again"
