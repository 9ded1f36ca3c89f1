"""supervise: how soon loopd sees that the engine died or hangs, how soon it serves again, and loopd's own memory.

``make bench BENCH=supervise``; the last line is one JSON object. A real engine is killed, and paused, ROUNDS=10 times
each. death_seen_ms: from before the kill to loopd's log line that the engine ended. restart_to_serving_ms: from before
the kill to the end of the first good answer through the gateway. wedge_seen_ms: from before the pause to the ledger's
first entry about the engine. rss_mb: loopd's VmRSS after EVENTS=10000 events of its containers, read by loopd from
Docker's own event stream: signals that the agent's container lives through, and DEATHS=100 kills of it, each with its
restart, spread among them. GAP_S=11 between two kills, or loopd would wait longer for each restart, as it should.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.figures import quantile, spread
from bench.ledger import epoch, wait_entry
from bench.traffic import Plan, ask_once
from docker.models.containers import Container

from faults.rig import Rig, open_rig, wait_for

ROUNDS = int(os.environ.get("ROUNDS", "10"))
EVENTS = int(os.environ.get("EVENTS", "10000"))
DEATHS = int(os.environ.get("DEATHS", "100"))
GAP_S = float(os.environ.get("GAP_S", "11"))
SEEN_S = 30.0
SERVING_S = 60.0
SAMPLES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # of the events, when memory is read
SETTINGS = {
    "LOOPBOX_ENGINE_THREADS": "1",
    # What dies here dies more often than any part of a real appliance: that must not look like a crash loop.
    "LOOPBOX_SUPERVISE__CRASHES": "30",
    "LOOPBOX_SUPERVISE__CRASH_WINDOW_S": "1",
}


def log_time(rig: Rig, begun: float, event: str, unit: str) -> float | None:
    """Return when loopd's log first has this event of a unit since ``begun``, None when it has none."""
    for line in rig.log.splitlines():
        if event in line and line.startswith("{"):
            entry = json.loads(line)
            at = epoch(entry["timestamp"].replace("Z", "+00:00"))
            if entry.get("event") == event and entry.get("unit") == unit and at >= begun:
                return at
    return None


def first_answer(plan: Plan, begun: float) -> tuple[float, int]:
    """Ask until an answer is good; return the milliseconds since ``begun`` and how many were not."""
    failed = 0
    while time.time() - begun < SERVING_S:
        _, fault = ask_once(plan, timeout_s=SERVING_S)
        if not fault:
            return (time.time() - begun) * 1e3, failed
        failed += 1
    raise SystemExit(f"no good answer within {SERVING_S:g} s")


def kill_round(rig: Rig, plan: Plan) -> dict[str, float]:
    """Kill the engine; return what it took."""
    unit = rig.engine()
    begun = time.time()
    rig.container(unit).kill("SIGKILL")
    serving_ms, failed = first_answer(plan, begun)
    seen = log_time(rig, begun, "unit.ended", unit)
    if seen is None:
        raise SystemExit(f"loopd did not see the end of {unit}: {rig.log[-2000:]}")
    rig.wait_serving()
    return {"death_seen": (seen - begun) * 1e3, "restart_to_serving": serving_ms, "failed": failed}


def wedge_round(rig: Rig) -> float | None:
    """Pause the engine; return the milliseconds until the ledger names it, None when it does not in time."""
    unit = rig.engine()
    container = rig.container(unit)
    before, begun = rig.newest_event(), time.time()
    container.pause()
    entry = wait_entry(rig, before, subject=unit, seconds=SEEN_S)
    if entry is None:
        container.unpause()
    else:
        print(f"wedge: {(entry.at - begun) * 1e3:.0f} ms, {entry.event}: {entry.cause}", file=sys.stderr)
    rig.wait_serving()
    return (entry.at - begun) * 1e3 if entry else None


def resident_mb(rig: Rig) -> float:
    """Return loopd's resident memory."""
    assert rig.process is not None  # noqa: S101 started by this bench
    status = Path(f"/proc/{rig.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return round(int(found[1]) / 1000, 1) if found else 0.0


def agent(rig: Rig) -> Container:
    """Return the agent's container, whichever it is at this moment."""
    return rig.container("agent")


def make_events(rig: Rig) -> dict[str, object]:
    """Have Docker tell loopd of many events; return loopd's memory along the way."""
    deaths = 0
    marks = [round(EVENTS * share) for share in SAMPLES]
    samples: dict[str, float] = {}
    every = max(1, EVENTS // max(1, DEATHS))
    container = agent(rig)
    made = 0
    while made <= EVENTS:
        while marks and made >= marks[0]:
            samples[str(marks.pop(0))] = resident_mb(rig)
        if deaths < DEATHS and made >= (deaths + 1) * every:
            began = container.attrs["State"]["StartedAt"]
            container.kill("SIGKILL")
            wait_for("the agent is back", functools.partial(_back, rig, began), SERVING_S)
            container = agent(rig)
            deaths += 1
            made += 3  # killed, died, started
        else:
            container.kill("SIGCONT")
            made += 1
    return {"rss_mb": samples[str(EVENTS)], "rss_mb_at": samples, "events": {"made": made, "deaths_among_them": deaths}}


def _back(rig: Rig, began: str) -> bool:
    state = agent(rig).attrs["State"]
    return bool(state["Running"] and state["StartedAt"] != began)


def measure(rig: Rig) -> dict[str, object]:
    """Return the figures."""
    plan = Plan(port=rig.public_port)
    kills: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        time.sleep(GAP_S)
        kills.append(kill_round(rig, plan))
        print(f"kill: {kills[-1]}", file=sys.stderr)
    wedges: list[float | None] = []
    for _ in range(ROUNDS):
        time.sleep(GAP_S)
        wedges.append(wedge_round(rig))
    seen = [wedge for wedge in wedges if wedge is not None]
    figures: dict[str, object] = {
        "death_seen_ms": quantile([kill["death_seen"] for kill in kills], 0.99),
        **spread([kill["death_seen"] for kill in kills], "death_seen_ms"),
        "wedge_seen_ms": quantile(seen, 0.99) if len(seen) == len(wedges) else None,
        **spread(seen, "wedge_seen_ms"),
        "wedges_unseen": len(wedges) - len(seen),
        "restart_to_serving_ms": quantile([kill["restart_to_serving"] for kill in kills], 0.5),
        **spread([kill["restart_to_serving"] for kill in kills], "restart_to_serving_ms"),
        "failed_asks": sum(kill["failed"] for kill in kills),
    }
    return figures | make_events(rig)


def main() -> None:
    """Measure and print."""
    with open_rig(SETTINGS) as rig:
        rig.start()
        rig.ensure_model("first", seed=1)
        figures = measure(rig)
        print(json.dumps(figures | {"loadavg": [round(value, 1) for value in os.getloadavg()]}))


if __name__ == "__main__":
    main()
