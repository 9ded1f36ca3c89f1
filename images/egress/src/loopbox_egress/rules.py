"""rules: owns what one listener may reach, as loopd tells it. Pure; the language of patterns is loopd's."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopbox_egress.addresses import Address


@dataclass(frozen=True, slots=True)
class Rule:
    """One host that is granted."""

    host: str
    below: bool  #: every name below ``host``; below '' is every name
    ports: frozenset[int]
    literal: bool  #: ``host`` is an address

    def allows(self, host: str, port: int, *, literal: bool) -> bool:
        """Tell whether a request for this host is granted."""
        if literal != self.literal or port not in self.ports:
            return False
        return (not self.host or host.endswith(f".{self.host}")) if self.below else host == self.host


def parse_rules(told: Sequence[Mapping[str, Any]]) -> tuple[Rule, ...]:  # Any: JSON
    """Read loopd's words. Raises KeyError, TypeError, ValueError: then they are no words of loopd's."""
    return tuple(
        Rule(str(one["host"]), bool(one["below"]), frozenset(map(int, one["ports"])), bool(one["literal"]))
        for one in told
    )


def find_literal(host: str) -> Address | None:
    """Return the address that a host is written as, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
