"""appliance: one appliance, brought up as its user does it: a fresh tree, `make up`, a home and ports of its own."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
UP_S = 1500  # with every image to be built on two cores


def free_ports(count: int) -> list[int]:
    """Return ports nobody listens on."""
    held = [socket.socket() for _ in range(count)]
    try:
        for sock in held:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in held]
    finally:
        for sock in held:
            sock.close()


@dataclass
class Appliance:
    """A running appliance and how its user talks to it."""

    tree: Path
    home: Path
    run_dir: Path
    instance: str
    public_port: int
    control_port: int
    environment: dict[str, str]
    output: str = field(default="", repr=False)  #: what the first `make up` said
    _token: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.public_port}"

    @property
    def token(self) -> str:
        """A client's token, made once as README says."""
        if not self._token:
            self._token = self.loopctl("token", "issue", "--user", "client", "--ttl", "4h").stdout.strip()
        return self._token

    def make(self, target: str, *, timeout: float = UP_S) -> subprocess.CompletedProcess[str]:
        """Run `make TARGET` on a pipe, with nothing to read."""
        return subprocess.run(
            ["make", "--silent", target],
            cwd=self.tree,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def loopctl(self, *arguments: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run loopctl on a pipe."""
        done = subprocess.run(
            [str(self.tree / ".venv" / "bin" / "loopctl"), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"loopctl {arguments} exited {done.returncode}: {done.stderr}"
        return done

    def status(self) -> dict[str, Any]:
        """Return `loopctl status --json`."""
        return dict(json.loads(self.loopctl("status", "--json", check=False).stdout))

    def containers(self) -> dict[str, str]:
        """Return name -> id of the appliance's containers but its sandboxes, as Docker itself tells."""
        listed = subprocess.run(
            ["docker", "ps", "--no-trunc", "--format", "{{.Names}} {{.ID}}"]  # noqa: RUF005 in two lines
            + ["--filter", f"label=loopbox.instance={self.instance}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        pairs = [line.split() for line in listed.splitlines()]
        return {name: container for name, container in pairs if "-sandbox-" not in name}


def copy_tree(target: Path) -> None:
    """Copy what a clone would hold, with the changes that are not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in listed.decode().split("\0"):
        source = ROOT / name
        if name and source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
