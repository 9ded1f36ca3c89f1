"""sandbox: what a session waits for its sandbox, how many a second there can be, and what one costs.

``make bench BENCH=sandbox``; the last line is one JSON object. All through the sockets that the agent uses.
p50_ms, p95_ms: a lease and its first command (`echo`), ROUNDS=200 one after the other, PAUSE_S=0.25 apart, with WARM=8
kept warm; what is given back is removed and what is missing started meanwhile. full_p95_ms: the same with the pool at
rest before each, ROUNDS/4 times. cold_ms: with none kept warm, median of COLD=5. per_s: leases, commands and returns by
CALLERS=4 at once for SECONDS=20. mb_each: memory of a warm sandbox that nobody uses, without file cache it can give
back, median.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.figures import quantile

from faults.rig import Rig, open_rig, wait_for

ROUNDS = int(os.environ.get("ROUNDS", "200"))
PAUSE_S = float(os.environ.get("PAUSE_S", "0.25"))
WARM = int(os.environ.get("WARM", "8"))
COLD = int(os.environ.get("COLD", "5"))
CALLERS = int(os.environ.get("CALLERS", "4"))
SECONDS = float(os.environ.get("SECONDS", "20"))
HEADERS = {
    "Accept": "application/json, text/event-stream",
    "Content-Type": "application/json",
    "MCP-Protocol-Version": "2025-11-25",
}
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"} | {
    "params": {"name": "bash", "arguments": {"command": "echo ready"}}
}


class UnixHttp(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("loopbox", timeout=60)
        self._path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))

    def ask(self, method: str, path: str, body: object = None) -> Any:  # Any: JSON
        """Return the answer's body, None for an empty one."""
        self.request(method, path, None if body is None else json.dumps(body), HEADERS)
        answer = self.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]!r}")
        return json.loads(text) if text else None


def acquire_and_run(rig: Rig, session: str) -> tuple[str, float]:
    """Lend one and run a command in it; return the lease and the milliseconds to the command's output."""
    began = time.perf_counter()
    broker = UnixHttp(rig.run_dir / "broker" / "broker.sock")
    lease = broker.ask("POST", "/v1/leases", {"session": session, "ttl_s": 60})
    tools = UnixHttp(rig.run_dir / "leases" / lease["socket"])
    answer = tools.ask("POST", "/mcp", CALL)
    took = (time.perf_counter() - began) * 1e3
    broker.close()
    tools.close()
    if answer["result"]["structuredContent"]["stdout"] != "ready\n":
        raise RuntimeError(f"the command failed: {answer}")
    return lease["lease"], took


def give_back(rig: Rig, lease: str) -> None:
    """End a lease."""
    broker = UnixHttp(rig.run_dir / "broker" / "broker.sock")
    broker.ask("DELETE", f"/v1/leases/{lease}")
    broker.close()


def is_warm(rig: Rig, count: int) -> bool:
    """Tell whether so many are warm."""
    return int(rig.status()["sandboxes"]["warm"]) >= count


def one_by_one(rig: Rig, rounds: int, warm: int, pause_s: float) -> list[float]:
    """Return what each of ``rounds`` sessions waited."""
    waited = []
    for number in range(rounds):
        wait_for("enough are warm", lambda: is_warm(rig, warm))
        lease, took = acquire_and_run(rig, f"bench-{number}")
        waited.append(took)
        threading.Thread(target=give_back, args=(rig, lease)).start()
        time.sleep(pause_s)
    return waited


def sustained(rig: Rig) -> float:
    """Return how many sessions a second came, ran and went."""
    done: list[float] = []
    ends = time.perf_counter() + SECONDS

    def call(number: int) -> None:
        while time.perf_counter() < ends:
            lease, _ = acquire_and_run(rig, f"caller-{number}")
            give_back(rig, lease)
            done.append(time.perf_counter())

    callers = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    # Without what was warm at the beginning: that is a store, not a rate.
    return round(max(0, len(done) - WARM) / SECONDS, 2)


def mb_each(rig: Rig) -> float:
    """Return the median memory of the sandboxes."""
    used = []
    for container in rig.listed():
        if "-sandbox-" in str(container.name):
            told: Any = container.stats(stream=False)  # Any: the API's JSON
            memory = told["memory_stats"]
            used.append((memory["usage"] - memory["stats"].get("total_inactive_file", 0)) / 1e6)
    return round(float(statistics.median(used)), 1)


def main() -> None:
    """Measure and print."""
    common = {"LOOPBOX_SANDBOX__MOST": "24"}
    with open_rig(common | {"LOOPBOX_SANDBOX__WARM": str(WARM)}) as rig:
        rig.start()
        wait_for("the pool is warm", lambda: is_warm(rig, WARM))
        memory = mb_each(rig)
        waited = one_by_one(rig, ROUNDS, 1, PAUSE_S)
        rested = one_by_one(rig, ROUNDS // 4, WARM, 0)
        wait_for("the pool is warm", lambda: is_warm(rig, WARM))
        per_s = sustained(rig)
    with open_rig(common | {"LOOPBOX_SANDBOX__WARM": "0"}) as rig:
        rig.start()
        wait_for("units are up", lambda: {"gateway", "agent"} <= set(rig.containers()))
        cold = one_by_one(rig, COLD, 0, 1.0)
    figures = {
        "p50_ms": quantile(waited, 0.5),
        "p95_ms": quantile(waited, 0.95),
        "full_p95_ms": quantile(rested, 0.95),
        "cold_ms": round(statistics.median(cold), 1),
        "per_s": per_s,
        "mb_each": memory,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
