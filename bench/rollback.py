"""rollback: how long a canary that goes bad keeps its share of the traffic, by fault, under load.

``make bench BENCH=rollback``; the last line is one JSON object, times in ms. A candidate gets half of the traffic and
would keep it for ten minutes. Then its real engine is killed (crash), paused (hang), starved of CPU (slow), or made to
serve noise under the same name (garbage;
terse: noise that ends after one character). A figure runs from before the fault is begun to the moment from which the
gateway gives the candidate nothing, by its admin socket: weight 0, or taken for down. Sizes: ROUNDS=20 of each fault,
FAULTS=crash,hang,slow,garbage,terse, STREAMS=8, RATE=50, SETTLE_S=2 from the share to the fault.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))
import gguf
import numpy as np
import requests
from bench.figures import Record, Window, count, faults, quantile, within
from bench.ledger import entries, wait_entry
from bench.traffic import Plan, Traffic, running
from docker.models.containers import Container

from faults.rig import Rig, open_rig, wait_for
from loopd.units import ENGINE_PORT, ENGINE_UID
from tiny_gguf import make_tiny_gguf

ROUNDS = int(os.environ.get("ROUNDS", "20"))
FAULTS = os.environ.get("FAULTS", "crash,hang,slow,garbage,terse").split(",")
SETTLE_S = float(os.environ.get("SETTLE_S", "2"))
SEEN_S = 45.0  # a fault that is not noticed for so long is not noticed
POLL_S = 0.005
PERIOD_US, QUOTA_US = 100_000, 2_000  # two hundredths of one core
ENDS = ("rollout.rolled_back", "rollout.promoted")
SETTINGS = {
    "LOOPBOX_ENGINE_THREADS": "1",
    "LOOPBOX_ROLLOUT__POLICY": "canary",
    "LOOPBOX_ROLLOUT__CANARY": '[{"percent":50,"seconds":600,"requests":1000000}]',
}


@dataclass(frozen=True, slots=True)
class Round:
    """One fault. Seconds of the epoch."""

    fault: str
    release: str  #: short, as the gateway calls it
    begun: float
    off: float  #: the gateway gives the candidate nothing; 0.0: it was not noticed
    ended: float
    reason: str


def takes_traffic(rig: Rig, release: str) -> bool:
    """Tell whether the gateway would give the release a request now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as admin:
        admin.settimeout(5)
        admin.connect(str(rig.run_dir / "gateway" / "admin.sock"))
        admin.sendall(b"show stat engine 4 -1\n")
        answer = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
    head, *rows = (line.split(",") for line in answer.lstrip("# ").splitlines() if line)
    for row in rows:
        server = dict(zip(head, row, strict=False))
        if server["svname"] == release:
            return server["status"].startswith("UP") and int(server["weight"]) > 0
    return False


def make_noise(path: Path, *, terse: bool) -> str:
    """Write a model that is valid in form and knows nothing: each next token is as likely as any. Return its SHA-256.

    terse: it says one character and ends; else it goes on, in printable ones.
    """
    make_tiny_gguf(path, seed=99, name="noise")
    reader = gguf.GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if tensor.name == "output.weight":
            random = np.random.default_rng(99)
            noise = random.standard_normal(tensor.data.shape).astype(np.float32) * 0.01
            if not terse:
                noise[: ord(" ")] = 0
                noise[ord("~") + 1 :] = 0
            tensor.data[:] = noise
    reader.data.flush()
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Canary:
    """The candidate that is harmed."""

    rig: Rig
    release: str
    noise: Path  #: weights that know nothing, of the whole bench
    digest: str  #: their SHA-256

    @property
    def container(self) -> Container:
        """Return its engine's container."""
        return self.rig.container(f"engine-{self.release}")

    @property
    def blob(self) -> Path:
        """Return where the noise lies in its engine's blob store."""
        return self.rig.home / "engines" / self.release / "blobs" / f"sha256-{self.digest}"


def crash(canary: Canary) -> None:
    """Kill the engine as the kernel would."""
    canary.container.kill("SIGKILL")


def hang(canary: Canary) -> None:
    """Freeze all of the engine's processes; its connections stay open."""
    canary.container.pause()


def slow(canary: Canary) -> None:
    """Leave the engine so little CPU that it still answers, late."""
    canary.container.update(cpu_period=PERIOD_US, cpu_quota=QUOTA_US)


def garbage(canary: Canary) -> None:
    """Have the engine serve other weights under the same name, by its own API; they were put beside it before."""
    networks = canary.container.attrs["NetworkSettings"]["Networks"]
    address = next(network["IPAddress"] for network in networks.values())
    body = {
        "model": "agent",
        "files": {"model.gguf": f"sha256:{canary.digest}"},
        "template": "{{ .Prompt }}",
        "parameters": {"num_ctx": 2048, "num_thread": 1},
        "stream": False,
    }
    answer = requests.post(f"http://{address}:{ENGINE_PORT}/api/create", json=body, timeout=30)
    if answer.status_code != requests.codes.ok:
        raise SystemExit(f"the engine does not take the noise: {answer.text[:500]}")


INJECT: dict[str, Callable[[Canary], None]] = {
    "crash": crash,
    "hang": hang,
    "slow": slow,
    "garbage": garbage,
    "terse": garbage,
}


def one_round(rig: Rig, fault: str, seed: int, noise: tuple[Path, str]) -> Round:
    """Bring a canary to its share, harm it, and wait for the rollout's end."""
    path = make_tiny_gguf(rig.base / f"canary{seed}.gguf", seed=seed, name=f"canary{seed}")
    before = rig.newest_event()
    rig.drop(path)
    path.unlink()
    if (added := wait_entry(rig, before, "release.added", seconds=SEEN_S)) is None:
        raise SystemExit(f"no release of {path.name}: {entries(rig, before)}")
    release = added.subject
    wait_for(f"{release} takes traffic", lambda: takes_traffic(rig, release) or entries(rig, before, *ENDS), SEEN_S)
    if entries(rig, before, *ENDS):  # a random model now and then repeats itself so much that it is refused
        return one_round(rig, fault, seed + 1000, noise)
    canary = Canary(rig, release, *noise)
    shutil.copy(canary.noise, canary.blob)
    os.chown(canary.blob, ENGINE_UID, ENGINE_UID)
    time.sleep(SETTLE_S)
    if not takes_traffic(rig, release):
        raise SystemExit(f"the canary went before it was harmed: {entries(rig, before)[-3:]}")
    begun = time.time()
    INJECT[fault](canary)
    off = when_off(rig, release, begun)
    if not off:
        give_up(rig)
    ended = wait_entry(rig, before, *ENDS, seconds=SEEN_S)
    if ended is None or ended.event == "rollout.promoted":
        raise SystemExit(f"{fault}: the canary was not rolled back within {SEEN_S:g} s: {entries(rig, before)[-5:]}")
    return Round(fault, release, begun, off, ended.at, ended.cause)


def give_up(rig: Rig) -> None:
    """Turn a rollout back that loopd finds nothing wrong with."""
    number = rig.query("SELECT id FROM rollouts WHERE finished_at IS NULL")[0][0]
    status, answer = rig.call("POST", f"/v1/rollouts/{number}/abort")
    if status >= 400:
        raise SystemExit(f"rollout {number} cannot be turned back: {answer}")


def when_off(rig: Rig, release: str, begun: float) -> float:
    """Return the moment from which the candidate gets nothing, 0.0 for none in time."""
    while time.time() - begun < SEEN_S:
        if not takes_traffic(rig, release):
            return time.time()
        time.sleep(POLL_S)
    return 0.0


def figures(rounds: list[Round], records: list[Record]) -> dict[str, object]:
    """Return what is printed of one fault's rounds."""
    windows: list[Window] = [(one.begun, one.ended) for one in rounds]
    noticed = [(one.off - one.begun) * 1e3 for one in rounds if one.off]
    hit, _ = within(records, windows)
    later: list[float] = []  # by round, when the last request was sent that the candidate answered
    for one in rounds:
        sent = [r.sent for r in records if r.release == one.release and one.begun < r.sent < one.ended]
        later.append((max(sent, default=one.begun) - one.begun) * 1e3)
    return {
        "p50": quantile(noticed, 0.5),
        "p99": quantile(noticed, 0.99),
        "rounds": len(rounds),
        "unnoticed": len(rounds) - len(noticed),
        "last_answered_p99": quantile(later, 0.99),
        "over_p50": quantile([(one.ended - one.begun) * 1e3 for one in rounds], 0.5),
        **count(hit),
        "faults": faults(hit, 3),
        "reason": rounds[-1].reason[:200],
    }


def measure(rig: Rig, traffic: Traffic) -> tuple[dict[str, list[Round]], list[Record]]:
    """Harm one canary after the other, the faults in turns."""
    noise = {fault: (path := rig.base / fault, make_noise(path, terse=fault == "terse")) for fault in FAULTS}
    rounds: dict[str, list[Round]] = {fault: [] for fault in FAULTS}
    time.sleep(SETTLE_S)
    for number in range(ROUNDS):
        for place, fault in enumerate(FAULTS):
            one = one_round(rig, fault, 5000 + number * len(FAULTS) + place, noise[fault])
            rounds[fault].append(one)
            took = f"{(one.off - one.begun) * 1e3:.0f} ms" if one.off else "not noticed"
            print(f"{number + 1}/{ROUNDS} {fault}: {took}, {one.reason}", file=sys.stderr)
    return rounds, traffic.stop()


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="lbb") as folder, open_rig(SETTINGS) as rig:
        rig.start()
        rig.ensure_model("first", seed=1)
        plan = Plan(
            port=rig.public_port,
            streams=int(os.environ.get("STREAMS", "8")),
            rate=float(os.environ.get("RATE", "50")),
            stream_tokens=64,
        )
        with running(plan, Path(folder) / "load.jsonl") as traffic:
            rounds, records = measure(rig, traffic)
        by_fault = {fault: figures(some, records) for fault, some in rounds.items()}
        loads = [round(value, 1) for value in os.getloadavg()]
        print(json.dumps(by_fault | {"load": count(records), "loadavg": loads}))


if __name__ == "__main__":
    main()
