"""pool_health: owns what is known of a member's health, and the order in which members are asked. Pure.

Latency and failures are moving averages that forget: a member that was ill is trusted again after some good answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

_NEWEST: Final = 0.2  # share of the newest observation in an average
_WORST: Final = 0.05  # of the weight that a slow or failing member keeps, so that it is seen to recover


@dataclass(slots=True)
class Health:
    """Moving averages of one member."""

    failing: float = 0.0  #: share of failures, 0..1
    first_token_s: float | None = None  #: None: nothing seen yet
    held_until: float = 0.0  #: it asked not to be asked before; seconds, monotonic

    def answered(self, seconds: float) -> None:
        """Take note of a first token after so many seconds."""
        self.failing *= 1 - _NEWEST
        known = self.first_token_s
        self.first_token_s = seconds if known is None else known + _NEWEST * (seconds - known)

    def failed(self) -> None:
        """Take note of a failure."""
        self.failing += _NEWEST * (1 - self.failing)

    def hold(self, until: float) -> None:
        """Leave it alone until then, or longer if that was asked before."""
        self.held_until = max(self.held_until, until)


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides when a member is asked."""

    priority: int
    weight: int
    failing: float
    first_token_s: float | None


def share(standing: Standing, best_s: float | None) -> float:
    """Return the weight as its health leaves it. best_s: the fastest member's first token."""
    swift = 1.0
    if standing.first_token_s and best_s is not None:
        swift = min(1.0, max(best_s, 0.001) / standing.first_token_s)
    return standing.weight * max(_WORST, (1 - standing.failing) ** 2 * swift)


def plan_order(standings: Sequence[Standing], draw: Callable[[], float]) -> tuple[int, ...]:
    """Return the places of the members in the order to ask them: by priority, drawn by share among equals.

    draw: gives a number from 0 up to 1. One draw a member; its share-th root, the greatest first, is a weighted order
    without replacement.
    """
    known = [standing.first_token_s for standing in standings if standing.first_token_s is not None]
    best = min(known, default=None)
    keys = [
        (standing.priority, -(draw() ** (1 / share(standing, best))), place) for place, standing in enumerate(standings)
    ]
    return tuple(place for _, _, place in sorted(keys))
