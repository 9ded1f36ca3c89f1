"""egress_rules: owns the language in which hosts are granted, and which grants an operator's list covers. Pure.

``example.org`` one name, ``*.example.org`` every name below it, ``*`` every name; ``:8443`` after it one port instead
of 80 and 443. An address (``192.0.2.7:8080``, ``[2001:db8::1]``) grants that address when it is asked for as an
address; no name and no wildcard ever grants a private one. The proxy only matches what is made here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loopd.errors import LoopdError

PORTS = (80, 443)
MOST_HOSTS = 64  # of one grant
MOST_PATTERN = 300  # characters; a name has 253 at most

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")

# Addresses that carry another one, by which a private one could be named; and where clouds tell their machines secrets.
_DISGUISED = tuple(map(ipaddress.ip_network, ("2001::/32", "2002::/16", "fd00:ec2::/32")))
_NAMEABLE_V6 = tuple(map(ipaddress.ip_network, ("2000::/3", "fc00::/7")))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class HostNotAllowedError(LoopdError):
    """A host was asked for that the operator has not allowed; nothing was lent."""

    code = "host_not_allowed"
    status = 403


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """One grant. ``below``: every name below ``host``, or every name at all where that is empty."""

    host: str  #: lower case, no final dot; an address in its shortest form
    below: bool
    ports: tuple[int, ...]
    literal: bool  #: ``host`` is an address

    def covers(self, other: Rule) -> bool:
        """Tell whether whoever may use this may use the other, too."""
        if self.literal != other.literal or not set(other.ports) <= set(self.ports):
            return False
        if not self.below:
            return not other.below and self.host == other.host
        return not self.host or other.host.endswith(f".{self.host}") or (other.below and self.host == other.host)

    def told(self) -> dict[str, str | bool | list[int]]:
        """Return it as the proxy reads it."""
        return {"host": self.host, "below": self.below, "ports": list(self.ports), "literal": self.literal}


def parse_rule(pattern: str) -> Rule:
    """Read one pattern. Raises ValueError, which says what is wrong with it."""
    if len(pattern) > MOST_PATTERN or not pattern.isascii():
        raise ValueError(
            f"{pattern[:60]!r} is no host: letters of ASCII only (xn--… for others), {MOST_PATTERN} at most"
        )
    host, ports = _split_port(pattern.lower())
    if (address := _address(host)) is not None:
        if not _may_be_named(address):
            raise ValueError(f"{pattern!r} is never reached from a sandbox: it is loopback, link-local or the like")
        return Rule(str(address), below=False, ports=ports, literal=True)
    if host == "*":
        return Rule("", below=True, ports=ports, literal=False)
    below = host.startswith("*.")
    name = (host[2:] if below else host).removesuffix(".")
    if not _NAME.fullmatch(name) or len(name) > 253 or _NUMBER.fullmatch(name.rpartition(".")[2]):  # noqa: PLR2004 RFC 1035
        raise ValueError(f"{pattern!r} is no host: example.org, *.example.org or an address, and :port where wanted")
    return Rule(name, below=below, ports=ports, literal=False)


def parse_rules(patterns: Iterable[str]) -> tuple[Rule, ...]:
    """Read patterns, each once, in order. Raises ValueError."""
    return tuple(dict.fromkeys(parse_rule(pattern) for pattern in patterns))


def grant(patterns: Sequence[str], allowed: Iterable[str]) -> tuple[Rule, ...]:
    """Return the rules for what is asked for. Raises HostNotAllowedError when the operator's list lacks any of it."""
    operators = parse_rules(allowed)
    rules: dict[Rule, None] = {}
    for pattern in patterns:
        try:
            rule = parse_rule(pattern)
        except ValueError as error:
            raise HostNotAllowedError(f"{error}; nothing was granted") from error
        if not any(one.covers(rule) for one in operators):
            raise HostNotAllowedError(
                f"{pattern[:80]} is not in egress.allow, so no sandbox may reach it; the operator decides what is there"
            )
        rules[rule] = None
    return tuple(rules)


def _split_port(pattern: str) -> tuple[str, tuple[int, ...]]:
    host, colon, port = pattern.rpartition(":")
    if not colon or pattern.endswith("]") or (":" in host and not host.startswith("[")):
        return pattern, PORTS  # no port: a name, [v6], or a bare v6 address
    if not _PORT.fullmatch(port) or int(port) > 65535:  # noqa: PLR2004 a port
        raise ValueError(f"{pattern!r}: {port!r} is no port")
    return host, (int(port),)


def _address(host: str) -> Address | None:
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return ipaddress.ip_address(bare)
    except ValueError:
        return None


def _may_be_named(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        return any(address in net for net in _NAMEABLE_V6) and not any(address in net for net in _DISGUISED)
    return not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)
