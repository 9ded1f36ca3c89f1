"""analysis: owns the comparison of a candidate with the champion while both answer. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from loopd.config import AnalysisSettings

MOST_LATENCIES = 4000  # of one release, newest; quantiles of more would not differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One request as the gateway saw it end."""

    server: str  #: the release's first digits
    failed: bool  #: by the server's fault: status 5xx, or it broke off; a client that left is no failure
    first_byte_ms: int  #: from the request to the first byte of the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one release did during a stage. Milliseconds; None: no answer."""

    answers: int
    errors: int
    p50_ms: int | None
    p95_ms: int | None

    @property
    def error_rate(self) -> float:
        """Failed answers to all, 0..1."""
        return self.errors / self.answers if self.answers else 0.0


@dataclass(slots=True)
class Tally:
    """Counts answers as they come."""

    answers: int = 0
    errors: int = 0
    latencies: deque[int] = field(default_factory=lambda: deque(maxlen=MOST_LATENCIES))

    def add(self, answer: Answer) -> None:
        """Count one; the time of a failure says nothing about speed."""
        self.answers += 1
        if answer.failed:
            self.errors += 1
        else:
            self.latencies.append(answer.first_byte_ms)

    def figures(self) -> Figures:
        """Return what was counted so far."""
        return Figures(
            answers=self.answers,
            errors=self.errors,
            p50_ms=quantile(self.latencies, 0.5),
            p95_ms=quantile(self.latencies, 0.95),
        )


def quantile(values: Iterable[int], share: float) -> int | None:
    """Return the smallest value that at least ``share`` of the values do not exceed; None for no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def judge(candidate: Figures, champion: Figures, limits: AnalysisSettings) -> str:
    """Say why the candidate must not go on, '' when nothing speaks against it."""
    excess = candidate.error_rate - champion.error_rate
    if candidate.errors >= limits.errors and excess > limits.error_rate:
        return (
            f"{candidate.errors} of its {candidate.answers} answers failed, of the champion's "
            f"{champion.errors} of {champion.answers}"
        )
    enough = min(candidate.answers - candidate.errors, champion.answers - champion.errors) >= limits.samples
    if enough and candidate.p95_ms is not None and champion.p95_ms is not None:
        most = max(limits.latency_floor_ms, round(limits.latency_factor * champion.p95_ms))
        if candidate.p95_ms > most:
            return (
                f"its first byte takes {candidate.p95_ms} ms (p95 of {candidate.answers}), the champion's "
                f"{champion.p95_ms} ms; at most {most} ms are allowed"
            )
    return ""
