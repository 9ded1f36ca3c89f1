"""limits: owns what one connection and one listener may use at most, read once from the environment (EGRESS_*)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bytes and seconds."""

    connections: int = 32  #: of one listener at once
    connection_bytes: int = 256 << 20  #: both ways together
    listener_bytes: int = 1 << 30  #: all connections of one listener together, both ways
    connection_s: int = 600
    idle_s: int = 60  #: nothing came from either side
    head_s: int = 10  #: for the request's head to arrive
    connect_s: int = 10  #: for the name to be resolved and the host to answer
    head_bytes: int = 16 << 10


def read_limits(environment: Mapping[str, str] = os.environ) -> Limits:
    """Return the limits. Raises ValueError naming the variable that is no whole number above 0."""
    given: dict[str, int] = {}
    for one in fields(Limits):
        variable = f"EGRESS_{one.name.upper()}"
        text = environment.get(variable)
        if text is None:
            continue
        if not text.isdigit() or int(text) < 1:
            raise ValueError(f"{variable} must be a whole number above 0, not {text[:40]!r}")
        given[one.name] = int(text)
    return Limits(**given)
