"""mix: owns how many rows of each source are taken, by weight, and in which order rows are written. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def plan_mix(available: Mapping[str, int], weights: Mapping[str, float], total: int | None) -> dict[str, int]:
    """Return how many rows of each source to take.

    total: rows of all together; None for all there are. Each source gets its share by weight; one with fewer rows gives
    all it has, and what it leaves goes to the others by their weights. A weight of 0 leaves a source out.
    """
    left = {name: count for name, count in available.items() if count and weights.get(name, 1.0) > 0}
    if total is None:
        return {name: left.get(name, 0) for name in available}
    taken = dict.fromkeys(available, 0)
    room = min(total, sum(left.values()))
    while left and room:
        share = {name: room * weights.get(name, 1.0) / sum(weights.get(one, 1.0) for one in left) for name in left}
        short = [name for name in left if left[name] <= share[name]]
        if not short:
            _round(share, left, room, taken)
            break
        for name in short:
            taken[name] = left.pop(name)
            room -= taken[name]
    return taken


def _round(share: Mapping[str, float], left: Mapping[str, int], room: int, taken: dict[str, int]) -> None:
    """Take the whole parts, then one more of the largest remainders; names decide between equal ones."""
    for name in left:
        taken[name] = int(share[name])
    missing = room - sum(taken[name] for name in left)
    for name in sorted(left, key=lambda one: (taken[one] - share[one], one))[:missing]:
        taken[name] += 1


def rank(seed: int, key: str) -> bytes:
    """Return where something stands in the order of a seed; it depends on nothing else."""
    return hashlib.blake2b(key.encode(), digest_size=16, key=seed.to_bytes(8, "big", signed=True)).digest()
