"""rollout: what clients notice of replacing the model: 32 that stream and 50 requests/s, while models are dropped in.

``make bench BENCH=rollout``; the last line is one JSON object. A real loopd, gateway and engines of their own; each
model is a real one of 0.5 MB with other weights. "steady" is the same load while no rollout is under way, before the
first and between any two; "during" is from a file's drop to its rollout's end, old engine drained and removed, and
whatever request was in flight in that time. Sizes: SWAPS=200, STREAMS=32, RATE=50, POLICY=instant (canary, blue-green),
GAP_S=2 between two swaps, STEADY_S=10 before the first, STREAM_TOKENS=64, WHOLE_TOKENS=8, PAUSE_S=2 of each stream's
client between two streams.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.figures import Record, Window, count, faults, latencies, quantile, within
from bench.ledger import entries, epoch, wait_entry
from bench.traffic import Plan, Traffic, running

from faults.rig import Rig, open_rig
from tiny_gguf import make_tiny_gguf

POLICY = os.environ.get("POLICY", "instant")
SWAPS = int(os.environ.get("SWAPS", "200"))
GAP_S = float(os.environ.get("GAP_S", "2"))
STEADY_S = float(os.environ.get("STEADY_S", "10"))
SWAP_S = 120.0
MOST_REFUSED = 3  # and one for each five swaps
ENDS = ("rollout.promoted", "rollout.rolled_back", "candidate.rejected")
SETTINGS = {
    "LOOPBOX_ENGINE_THREADS": "1",
    "LOOPBOX_ROLLOUT__POLICY": POLICY,
    "LOOPBOX_ROLLOUT__CANARY": os.environ.get(
        "CANARY", '[{"percent":10,"seconds":1,"requests":10},{"percent":50,"seconds":1,"requests":25}]'
    ),
    "LOOPBOX_ROLLOUT__BAKE_S": "1",
}


@dataclass(frozen=True, slots=True)
class Swap:
    """One replacement. Seconds of the epoch."""

    release: str
    dropped: float
    added: float  #: the file was inspected and became a release
    promoted: float
    ended: float
    flip_ms: float


def plan_of(port: int) -> Plan:
    """Return the load that the environment asks for."""
    return Plan(
        port=port,
        streams=int(os.environ.get("STREAMS", "32")),
        rate=float(os.environ.get("RATE", "50")),
        stream_tokens=int(os.environ.get("STREAM_TOKENS", "64")),
        whole_tokens=int(os.environ.get("WHOLE_TOKENS", "8")),
        pause_s=float(os.environ.get("PAUSE_S", "2")),
    )


def drop(rig: Rig, seed: int) -> Swap | Window:
    """Drop a model and wait for its rollout's end: the swap, or when it was under way, if loopd refused the model.

    A random model now and then repeats itself so much that the golden prompts refuse it, as they should.
    """
    path = make_tiny_gguf(rig.base / f"swap{seed}.gguf", seed=seed, name=f"swap{seed}")
    before = rig.newest_event()
    dropped = time.time()
    rig.drop(path)
    path.unlink()
    ended = wait_entry(rig, before, *ENDS, seconds=SWAP_S)
    if ended is None:
        said = [f"{entry.event}: {entry.cause}" for entry in entries(rig, before)]
        raise SystemExit(f"no end of {path.name} within {SWAP_S:g} s: {said}\n{rig.log[-2000:]}")
    if ended.event != "rollout.promoted":
        print(f"{path.name} was refused: {ended.cause}", file=sys.stderr)
        return dropped, ended.at
    added = entries(rig, before, "release.added")[0]
    promoted = entries(rig, before, "release.promoted")[0]
    flip_ms = float(promoted.detail["flip_ms"])
    return Swap(promoted.subject, dropped, added.at, promoted.at, ended.at, flip_ms)


def swap_all(rig: Rig, traffic: Traffic) -> tuple[list[Swap], list[Window]]:
    """Replace the model again and again while the load runs; return the swaps, and when refused ones were under way."""
    swaps: list[Swap] = []
    refused: list[Window] = []
    time.sleep(STEADY_S)
    while len(swaps) < SWAPS:
        if traffic.process.poll() is not None:
            raise SystemExit("the load generator ended by itself")
        if len(refused) > MOST_REFUSED + SWAPS // 5:
            raise SystemExit(f"{len(refused)} models were refused of {len(refused) + len(swaps)}")
        one = drop(rig, 1000 + len(swaps) + len(refused))
        if isinstance(one, Swap):
            swaps.append(one)
            took = one.ended - one.dropped
            print(f"swap {len(swaps)}/{SWAPS}: {took:.2f} s, flip {one.flip_ms} ms", file=sys.stderr)
        else:
            refused.append(one)
        time.sleep(GAP_S)
    return swaps, refused


def first_answers(swaps: list[Swap], records: list[Record]) -> list[float]:
    """Return, by swap, the milliseconds from the drop to the first good answer of the new release."""
    first: dict[str, float] = {}
    for record in records:
        if not record.fault:
            first[record.release] = min(record.ended, first.get(record.release, record.ended))
    return [(first[swap.release] - swap.dropped) * 1e3 for swap in swaps if swap.release in first]


def step_windows(rig: Rig, swaps: list[Swap]) -> dict[str, list[Window]]:
    """Return when each kind of step was under way; "intake" is from the drop to the release."""
    windows: dict[str, list[Window]] = {"intake": [(swap.dropped, swap.added) for swap in swaps]}
    rows = rig.query("SELECT step, begun_at, finished_at FROM journal WHERE rollout > 1 AND state = 'done'")
    for step, begun, ended in rows:
        windows.setdefault(step, []).append((epoch(begun), epoch(ended)))
    return windows


def by_step(windows: dict[str, list[Window]], records: list[Record]) -> dict[str, dict[str, float | None]]:
    """Return each step's time, and the latency of the open loop's requests while it was under way."""
    whole = [record for record in records if record.kind == "whole" and not record.fault]
    return {
        step: {
            "ms_p50": quantile([(end - start) * 1e3 for start, end in spans], 0.5),
            "requests": len(met := [record.ms for record in within(whole, spans)[0]]),
            "p50_ms": quantile(met, 0.5),
            "p99_ms": quantile(met, 0.99),
        }
        for step, spans in windows.items()
    }


def figures(swaps: list[Swap], refused: list[Window], records: list[Record], traffic: Traffic) -> dict[str, object]:
    """Return everything that is printed."""
    windows = [*refused, *((swap.dropped, swap.ended) for swap in swaps)]
    during, steady = within(records, windows)
    result: dict[str, object] = {"swaps": len(swaps), "refused": len(refused), "policy": POLICY, **count(records)}
    result |= latencies(steady, "steady") | latencies(during, "during")
    waits = [(swap.promoted - swap.dropped) * 1e3 for swap in swaps]
    return result | {
        "requests_during": len(during),
        "flip_ms_max": max(swap.flip_ms for swap in swaps),
        "flip_ms_p50": quantile([swap.flip_ms for swap in swaps], 0.5),
        "file_to_serving_ms_p50": quantile(waits, 0.5),
        "file_to_serving_ms_p99": quantile(waits, 0.99),
        "file_to_first_answer_ms_p50": quantile(first_answers(swaps, records), 0.5),
        "file_to_release_ms_p50": quantile([(swap.added - swap.dropped) * 1e3 for swap in swaps], 0.5),
        "rollout_ms_p50": quantile([(swap.ended - swap.dropped) * 1e3 for swap in swaps], 0.5),
        "releases_heard": len({record.release for record in records if not record.fault}),
        "generator_lag_ms_p99": quantile([(r.sent - r.due) * 1e3 for r in records if r.kind == "whole"], 0.99),
        "generator_cpu_share": traffic.own["cpu_share"],
        "loadavg": [round(value, 1) for value in os.getloadavg()],
        "faults": faults(records),
    }


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="lbb") as folder, open_rig(SETTINGS) as rig:
        rig.start()
        rig.ensure_model("first", seed=1)
        with running(plan_of(rig.public_port), Path(folder) / "load.jsonl") as traffic:
            swaps, refused = swap_all(rig, traffic)
            records = traffic.stop()
        steps = step_windows(rig, swaps)
        if keep := os.environ.get("KEEP"):
            Path(keep).write_text("".join(record.to_line() + "\n" for record in records))
        print(json.dumps(figures(swaps, refused, records, traffic) | {"steps": by_step(steps, records)}))


if __name__ == "__main__":
    main()
