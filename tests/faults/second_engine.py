"""second_engine: owns a Docker engine of the tests' own, which they may stop, kill and start; never the machine's."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import docker
import requests.exceptions

from faults.rig import wait_for

END_S = 30.0
BRIDGE_ADDRESS = "198.18.97.1/24"  # of the block for tests of devices, RFC 2544

CONTAINERD = """
version = 2
root = "{base}/containerd/root"
state = "{base}/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{base}/containerd.sock"
"""


@dataclass
class SecondEngine:
    """One dockerd, with its images and its containers below one directory, and its containerd as a service apart."""

    base: Path
    containerd: subprocess.Popen[bytes] | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def bridge(self) -> str:
        """Name of its network bridge; 15 letters at most."""
        return f"lbe{self.base.name[-8:]}"

    @property
    def url(self) -> str:
        return f"unix://{self.base}/sock"

    def start(self) -> float:
        """Start it; return the seconds until it answers."""
        if self.containerd is None:
            subprocess.run(["ip", "link", "add", "name", self.bridge, "type", "bridge"], check=True)
            subprocess.run(["ip", "address", "add", BRIDGE_ADDRESS, "dev", self.bridge], check=True)
            (self.base / "containerd.toml").write_text(CONTAINERD.format(base=self.base))
            self.containerd = self._run("containerd", f"--config={self.base / 'containerd.toml'}")
            wait_for("containerd answers", (self.base / "containerd.sock").exists)
        self.process = self._run(
            "dockerd",
            f"--host={self.url}",
            f"--containerd={self.base / 'containerd.sock'}",
            f"--data-root={self.base / 'data'}",
            f"--exec-root={self.base / 'exec'}",
            f"--pidfile={self.base / 'pid'}",
            f"--bridge={self.bridge}",  # with none, it would remove the one of the machine's engine
            "--iptables=false",  # its rules would get in the way of the machine's engine's
            "--ip6tables=false",
        )
        return wait_for("the second engine answers", self._answers)

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.base / "log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.base / "log").read_text(errors="replace")[-2000:]
        try:
            client = docker.DockerClient(base_url=self.url, timeout=5)
        except (docker.errors.DockerException, requests.exceptions.RequestException):
            return False
        with contextlib.closing(client):
            return True

    def end(self, how: signal.Signals) -> None:
        """Stop or kill it. Asked to stop, it stops its containers; killed, it leaves them."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(END_S)
        self.process = None

    def load(self, tags: Sequence[str]) -> None:
        """Copy images over from the machine's engine."""
        with subprocess.Popen(["docker", "save", *tags], stdout=subprocess.PIPE) as save:
            command = ["docker", "--host", self.url, "load"]
            subprocess.run(command, stdin=save.stdout, check=True, stdout=subprocess.DEVNULL)
        assert save.returncode == 0

    def remove(self) -> None:
        """End what is left of it, and take its files away."""
        if self.process is not None:
            self.end(signal.SIGTERM)
        if self.containerd is not None:
            self.containerd.kill()
            self.containerd.wait()
        subprocess.run(["ip", "link", "delete", self.bridge], check=False)
        for _ in range(3):  # what one of them starts in its last moment
            for pid in self._left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        mounted = (line.split()[1] for line in Path("/proc/mounts").read_text().splitlines())
        for place in sorted((m for m in mounted if m.startswith(f"{self.base}/")), reverse=True):
            subprocess.run(["umount", place], check=False)
        shutil.rmtree(self.base)

    def _left(self) -> list[int]:
        """Return its shims, which name its directory on their command lines, and what runs in its containers."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and f"{self.base}/".encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        for container in (self.base / "data" / "containers").glob("*"):
            for group in Path("/sys/fs/cgroup").glob(f"**/{container.name}/cgroup.procs"):
                found += map(int, group.read_text().split())
        return [pid for pid in found if pid != os.getpid()]


@contextlib.contextmanager
def open_engine(tags: Sequence[str]) -> Iterator[SecondEngine]:
    """Start one with these images; take it away at the end."""
    engine = SecondEngine(Path(tempfile.mkdtemp(prefix="lbe")))
    try:
        engine.start()
        engine.load(tags)
        yield engine
    finally:
        engine.remove()
