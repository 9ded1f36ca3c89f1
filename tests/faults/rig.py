"""rig: owns one real loopd that tests may harm: its home, ports, processes and containers, and taking all of it away.

Only looked at from outside: control API, loopctl, Docker, HAProxy's admin socket, and state.db opened read-only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
from docker.models.containers import Container

from appliance import free_ports
from built import built
from loopd.images import save_images
from tiny_gguf import make_tiny_gguf

POLL_S = 0.02
SERVING_S = 60.0  # on two cores with other work beside it
LABEL = "loopbox.instance"
LOOPD = (str(Path(sys.executable).with_name("loopd")),)
ENDED = ("promoted", "rolled_back", "superseded")


def wait_for(what: str, condition: Callable[[], object], seconds: float = SERVING_S) -> float:
    """Poll until the condition holds and return the seconds it took; fail saying what was waited for."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(POLL_S)
    return time.monotonic() - started


@dataclass
class Rig:
    """One loopd with everything it needs."""

    base: Path
    instance: str
    public_port: int
    control_port: int
    environment: dict[str, str]
    docker: docker.DockerClient
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0  #: of any loopd on this state
    models: dict[str, str] = field(default_factory=dict)  #: model name -> release id

    @property
    def home(self) -> Path:
        return self.base / "h"

    @property
    def run_dir(self) -> Path:
        return self.base / "r"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.public_port}"

    @property
    def log(self) -> str:
        return (self.base / "loopd.log").read_text(errors="replace")

    # --- loopd

    def start(
        self, command: Sequence[str] = LOOPD, settings: Mapping[str, str] | None = None, *, wait: bool = True
    ) -> None:
        """Start a loopd; by default wait until its control API answers."""
        assert self.process is None, "the last one was not taken leave of: kill() or end() first"
        with (self.base / "loopd.log").open("ab") as log:
            self.process = subprocess.Popen(
                list(command),
                env=self.environment | dict(settings or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.starts += 1
        if wait:
            wait_for("loopd answers", self._up)

    def _up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"loopd ended with {self.process.returncode}: {self.log[-2000:]}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.get("/healthz")
            return True
        return False

    def kill(self) -> None:
        """SIGKILL loopd."""
        assert self.process is not None
        self.process.kill()
        self.ended()

    def stop(self) -> None:
        """Ask loopd to stop."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.ended() == 0, self.log[-2000:]

    def ended(self, timeout: float = SERVING_S) -> int:
        """Wait for loopd's end; return its exit status."""
        assert self.process is not None
        status = self.process.wait(timeout)
        self.process = None
        return status

    def refused(self) -> tuple[int, str]:
        """Start a loopd that must not come up; return its exit status and what it wrote."""
        before = len(self.log)
        self.start(wait=False)
        status = self.ended()
        return status, self.log[before:]

    # --- the control API and loopctl

    def call(self, method: str, path: str) -> tuple[int, Any]:  # Any: JSON, and tests say what they expect of it
        """Call the control API."""
        ended = self.process and self.process.poll()
        assert not ended, f"loopd ended by itself with {ended}: {self.log[-3000:]}"
        connection = http.client.HTTPConnection("127.0.0.1", self.control_port, timeout=30)
        try:
            token = (self.home / "control.token").read_text().strip()
            connection.request(method, path, headers={"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:  # Any: JSON
        """GET from the control API."""
        status, body = self.call("GET", path)
        assert status == 200, body
        return body

    def status(self) -> dict[str, Any]:
        return dict(self.get("/v1/status"))

    def serving(self) -> bool:
        """Tell whether loopd answers and says that all is well."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return bool(self.status()["state"] == "serving")
        return False

    def wait_serving(self, seconds: float = SERVING_S) -> float:
        """Wait until loopd says that it serves."""
        try:
            return wait_for("serving", self.serving, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self._trouble()}") from error

    def _trouble(self) -> str:
        reason = "loopd does not answer"
        with contextlib.suppress(OSError, http.client.HTTPException):
            reason = self.status()["reason"]
        return f"{reason}\n{self.log[-3000:]}"

    def loopctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run loopctl on a pipe."""
        done = subprocess.run(
            [str(Path(sys.executable).with_name("loopctl")), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, f"loopctl {arguments} exited {done.returncode}: {done.stderr}"
        return done

    def newest_event(self) -> int:
        """Return the ledger's last sequence number."""
        return int(self.query("SELECT coalesce(max(seq), 0) FROM ledger")[0][0])

    def events(self, after: int, event: str = "", subject: str = "") -> list[dict[str, Any]]:
        """Return what `loopctl events --json` says happened since, of one kind or about one subject."""
        lines = self.loopctl("events", "--json", "--after", str(after), "--limit", "500").stdout.splitlines()
        found = [dict(json.loads(line)) for line in lines]
        return [e for e in found if e["event"].startswith(event) and subject in ("", e["subject"])]

    def restarted(self, unit: str, after: int) -> bool:
        """Tell whether the ledger says that a unit was restarted."""
        return bool(
            self.query("SELECT 1 FROM ledger WHERE seq > ? AND event = 'unit.restarted' AND subject = ?", after, unit)
        )

    def query(self, sql: str, *values: str | int) -> list[tuple[Any, ...]]:
        """Read state.db, which loopd may have open."""
        with contextlib.closing(sqlite3.connect(f"file:{self.home / 'state.db'}?mode=ro", uri=True)) as connection:
            return list(connection.execute(sql, values))

    # --- models

    def champion(self) -> str:
        """Return the release that serves; '' for none."""
        return str(self.query("SELECT champion FROM serving")[0][0] or "")

    def other(self) -> str:
        """Return the known release "a" or "b" that does not serve."""
        return next(self.models[name] for name in ("a", "b") if self.models[name] != self.champion())

    def drop(self, path: Path) -> None:
        """Copy a model into the directory and rename it, as good tools do."""
        incoming = self.home / "models" / "incoming"
        shutil.copy(path, incoming / f".{path.name}.part")
        (incoming / f".{path.name}.part").rename(incoming / path.name)

    def drop_bytes(self, name: str, content: bytes) -> None:
        """Put a file into the directory."""
        (self.home / "models" / "incoming" / name).write_bytes(content)

    def ensure_model(self, name: str, *, seed: int, layers: int = 2) -> str:
        """Make a tiny model the champion once, so that it is known; return its release id."""
        if name not in self.models:
            path = make_tiny_gguf(self.base / f"{name}.gguf", seed=seed, layers=layers, name=name)
            self.admit(path)
        return self.models[name]

    def admit(self, path: Path) -> None:
        """Drop a model and wait until its rollout has ended, well or not."""
        self.drop(path)
        wait_for(f"{path.stem} is known", lambda: self.known(path.stem))
        self.models[path.stem] = self.known(path.stem)
        path.unlink()
        self.settle()

    def known(self, name: str) -> str:
        """Return the id of the release of this name; '' for none."""
        found = [r for r in self.get("/v1/releases")["releases"] if r["name"] == name]
        return str(found[0]["id"]) if found else ""

    def promote(self, release: str) -> int:
        """Ask for a rollout; return its number."""
        status, body = self.call("POST", f"/v1/releases/{release}/promote")
        assert status in (200, 202), body
        return int(body["id"])

    def rollout(self, number: int) -> dict[str, Any]:
        return dict(self.get(f"/v1/rollouts/{number}"))

    def settle(self, seconds: float = SERVING_S) -> float:
        """Wait until no rollout is under way or waiting, and all serves."""
        started = time.monotonic()
        wait_for(
            "no rollout is left",
            lambda: not self.query("SELECT 1 FROM rollouts WHERE finished_at IS NULL"),
            seconds,
        )
        self.wait_serving(seconds)
        return time.monotonic() - started

    # --- what there really is

    def containers(self) -> dict[str, str]:
        """Return unit -> container id of all containers of this instance, running or not."""
        return {str(c.name).removeprefix(f"{self.instance}-"): str(c.id) for c in self.listed()}

    def listed(self) -> list[Container]:
        return listed(self.docker, self.instance)

    def container(self, unit: str) -> Container:
        return self.docker.containers.get(f"{self.instance}-{unit}")

    def engine(self) -> str:
        """Return the unit of the champion's engine."""
        return f"engine-{self.champion()[:12]}"

    def units(self) -> set[str]:
        """Return the units that should be there when nothing is under way."""
        return {"gateway", "agent", self.engine()}

    def servers(self) -> dict[str, int]:
        """Return "pool/server" -> weight as HAProxy's admin socket tells."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as admin:
            admin.settimeout(5)
            admin.connect(str(self.run_dir / "gateway" / "admin.sock"))
            admin.sendall(b"show stat -1 4 -1\n")
            answer = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
        head, *rows = (line.split(",") for line in answer.lstrip("# ").splitlines() if line)
        told = [dict(zip(head, row, strict=False)) for row in rows]
        pools = ("agent", "engine")  # the others hand what is in flight over to HAProxy's next process
        return {f"{row['pxname']}/{row['svname']}": int(row["weight"]) for row in told if row["pxname"] in pools}

    def wanted_servers(self) -> dict[str, int]:
        """Return what servers() must say when nothing is under way."""
        return {"agent/agent": 256, f"engine/{self.champion()[:12]}": 256}

    # --- the end

    def purge(self) -> None:
        """Remove all of it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        try:
            remove_all(self.docker, self.instance)
        finally:
            shutil.rmtree(self.base, ignore_errors=True)


def listed(client: docker.DockerClient, instance: str) -> list[Container]:
    """Return an instance's containers, running or not."""
    return client.containers.list(all=True, filters={"label": f"{LABEL}={instance}"}, ignore_removed=True)


def remove_all(client: docker.DockerClient, instance: str) -> None:
    """Remove every container and network of an instance."""
    for _ in range(3):  # a loopd killed in the middle of a call may have one still being made
        for container in listed(client, instance):
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True)
    for network in client.networks.list(filters={"label": f"{LABEL}={instance}"}):
        network.remove()


@contextlib.contextmanager
def open_rig(settings: Mapping[str, str] | None = None, *, host: str | None = None) -> Iterator[Rig]:
    """Make a rig, not started yet; take everything away at the end.

    host: URL of the container engine that test and loopd use; None: this machine's.
    """
    base = Path(tempfile.mkdtemp(prefix="lbf"))
    public, internal, control = free_ports(3)
    instance = f"lbf{secrets.token_hex(3)}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOOPBOX_", "COV_"))}
    ours = {
        "LOOPBOX_HOME": str(base / "h"),
        "LOOPBOX_RUN_DIR": str(base / "r"),
        "LOOPBOX_INSTANCE": instance,
        "LOOPBOX_PUBLIC_PORT": str(public),
        "LOOPBOX_INTERNAL_PORT": str(internal),
        "LOOPBOX_CONTROL_PORT": str(control),
        "LOOPBOX_INCOMING_SETTLE_S": "0.1",
        "LOOPBOX_SANDBOX__WARM": "0",
        "LOOPBOX_ROLLOUT__POLICY": "instant",
        "LOOPBOX_BACKUP__EVERY_S": "0",
        "LOOPBOX_AUTH__MODE": "off",  # the doors have tests of their own
        "LOOPBOX_LIMITS__ADDRESS_RATE": "0",  # all load comes from one address
    }
    if host:
        ours["LOOPBOX_DOCKER_HOST"] = host
    (base / "h").mkdir()
    save_images(base / "h", built())
    client = docker.DockerClient(base_url=host) if host else docker.from_env()
    rig = Rig(base, instance, public, control, kept | ours | dict(settings or {}), client)
    try:
        yield rig
    finally:
        try:
            rig.purge()
        finally:
            client.close()
