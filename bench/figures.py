"""figures: owns what a load generator saw of each request, and the sums over it. Pure.

A latency runs from the moment a request was due, so a generator or a server that stalls counts against the server and
is not left out. Failed: a status that is not 200, no connection, no answer in time. Cut: a stream that began and ended
without its last record. Neither is in the latencies.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["stream", "whole"]
Window = tuple[float, float]  #: from, to; seconds of the epoch


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times are seconds of the epoch."""

    kind: Kind
    due: float  #: when it should have been sent
    sent: float
    first: float  #: first byte of its answer's body; 0: none came
    ended: float
    release: str  #: that the gateway says has answered; '': it does not say
    fault: str  #: '' for a good answer; begins with "failed", "cut" or "stopped"

    @property
    def ms(self) -> float:
        """Return the whole of it."""
        return (self.ended - self.due) * 1e3

    @property
    def first_ms(self) -> float:
        """Return the time to the first byte of the body."""
        return (self.first - self.due) * 1e3

    def to_line(self) -> str:
        """Return what from_line() reads."""
        return json.dumps(astuple(self))

    @classmethod
    def from_line(cls, line: str) -> Record:
        """Read one line of a generator's file."""
        kind, due, sent, first, ended, release, fault = json.loads(line)
        return cls(kind, due, sent, first, ended, release, fault)


def within(records: Iterable[Record], windows: Iterable[Window]) -> tuple[list[Record], list[Record]]:
    """Return the records that were under way at any moment of the windows, and the others.

    The windows must not overlap.
    """
    ordered = sorted(windows)
    starts = [start for start, _ in ordered]
    inside: list[Record] = []
    outside: list[Record] = []
    for record in records:
        last = bisect.bisect_left(starts, record.ended) - 1  # the last window that began before its end
        (inside if last >= 0 and ordered[last][1] > record.due else outside).append(record)
    return inside, outside


def read_records(path: Path) -> list[Record]:
    """Read a generator's file; a last line that is being written is left out."""
    return [Record.from_line(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least this share does not exceed, to a hundredth; None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 2)


def spread(values: Sequence[float], name: str) -> dict[str, float | None]:
    """Return NAME_p50 and NAME_p99."""
    return {f"{name}_p50": quantile(values, 0.5), f"{name}_p99": quantile(values, 0.99)}


def count(records: Iterable[Record]) -> dict[str, int]:
    """Return how many there were, and how many failed, were cut, or were stopped by the engine itself."""
    faults = [record.fault for record in records]
    return {
        "requests": len(faults),
        "failed": sum(fault.startswith("failed") for fault in faults),
        "cut": sum(fault.startswith("cut") for fault in faults),
        "stopped": sum(fault.startswith("stopped") for fault in faults),
    }


def latencies(records: Iterable[Record], suffix: str) -> dict[str, float | None]:
    """Return the latencies by kind: whole answers of the open loop, streams, their first bytes. ``p99_X_ms`` and more.

    The open loop is what the bars are about: its requests come whether or not the last ones were answered.
    """
    good = [record for record in records if not record.fault]
    whole = [record.ms for record in good if record.kind == "whole"]
    streams = [record for record in good if record.kind == "stream"]
    taken = {
        "": whole,
        "stream_": [record.ms for record in streams],
        "stream_first_": [record.first_ms for record in streams],
    }
    return {
        f"{name}p{round(share * 100)}_{suffix}_ms": quantile(values, share)
        for name, values in taken.items()
        for share in (0.5, 0.99)
    }


def faults(records: Iterable[Record], most: int = 5) -> list[str]:
    """Return the first faults in words, for a person who reads the output."""
    return [f"{r.kind} due {r.due:.3f} after {r.ms:.0f} ms: {r.fault}" for r in records if r.fault][:most]
