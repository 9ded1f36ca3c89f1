"""The language of granted hosts: what is read, what covers what, and that a grant never is wider than the list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox_egress.rules import parse_rules as proxy_rules
from loopd.egress_rules import HostNotAllowedError, grant, parse_rule

GOOD = {
    "example.org": ("example.org", False, (80, 443), False),
    "*.Example.ORG.": ("example.org", True, (80, 443), False),
    "example.org:8443": ("example.org", False, (8443,), False),
    "*": ("", True, (80, 443), False),
    "10.0.0.5:8080": ("10.0.0.5", False, (8080,), True),
    "[2001:DB8::0:1]:99": ("2001:db8::1", False, (99,), True),
    "2001:db8::1": ("2001:db8::1", False, (80, 443), True),
    "xn--bcher-kva.example": ("xn--bcher-kva.example", False, (80, 443), False),
}


@pytest.mark.parametrize("pattern", GOOD)
def test_a_pattern_is_read(pattern: str) -> None:
    rule = parse_rule(pattern)
    assert (rule.host, rule.below, rule.ports, rule.literal) == GOOD[pattern]


@pytest.mark.parametrize(
    "pattern",
    [
        *("", ".", "*.", "a b", "*foo.org", "a.*.org", "http://a.org", "a.org/", "a.org:0", "a.org:70000", "a.org:x"),
        *(
            "a:b:c",
            "127.1",
            "0x7f.1",
            "2130706433",
            "büch.er",
            "a..b",
            "-a.org",
            "a" * 64,
            "x." * 127 + "org",
            "a.org\n",
        ),
        *("127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "::", "::ffff:10.0.0.1", "64:ff9b::a00:1"),
        *("fe80::1", "fe80::1%eth0", "ff02::1", "fd00:ec2::254", "2002:a00:1::"),
    ],
)
def test_what_is_no_host_or_never_reached_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"host|port|reached"):
        parse_rule(pattern)


@pytest.mark.parametrize(
    ("asked", "allowed", "granted"),
    [
        ("a.org", "a.org", True),
        ("A.ORG.", "a.org", True),
        ("x.a.org", "*.a.org", True),
        ("*.a.org", "*.a.org", True),
        ("*.x.a.org", "*.a.org", True),
        ("a.org:443", "a.org", True),
        ("anything.example:80", "*", True),
        ("*", "*", True),
        ("a.org", "*.a.org", False),
        ("*.a.org", "a.org", False),
        ("*.a.org", "x.a.org", False),
        ("xa.org", "*.a.org", False),
        ("a.org:8443", "a.org", False),
        ("a.org", "a.org:443", False),
        ("10.0.0.5", "*", False),
        ("*", "*.org", False),
        ("10.0.0.5", "10.0.0.6", False),
    ],
)
def test_a_grant_is_within_what_the_operator_allows(asked: str, allowed: str, *, granted: bool) -> None:
    if granted:
        assert grant([asked], [allowed]) == (parse_rule(asked),)
    else:
        with pytest.raises(HostNotAllowedError, match=r"egress\.allow"):
            grant([asked], [allowed])


def test_nothing_is_allowed_by_default() -> None:
    assert grant([], []) == ()
    with pytest.raises(HostNotAllowedError):
        grant(["a.org"], [])


labels = st.sampled_from(["a", "b", "org", "xa"])
names = st.lists(labels, min_size=1, max_size=3).map(".".join)
patterns = st.builds(
    lambda star, name, port: f"{star}{name}{port}", st.sampled_from(["", "*."]), names, st.sampled_from(["", ":80"])
)


@given(st.one_of(patterns, st.just("*")), st.one_of(patterns, st.just("*")), names, st.sampled_from([80, 443, 8443]))
def test_what_is_covered_lets_nothing_through_that_the_list_would_not(
    asked: str, allowed: str, host: str, port: int
) -> None:
    """As the proxy itself matches, so that the two readings of a rule cannot drift apart."""
    mine, theirs = parse_rule(asked), parse_rule(allowed)
    [narrow], [wide] = proxy_rules([mine.told()]), proxy_rules([theirs.told()])
    if theirs.covers(mine) and narrow.allows(host, port, literal=False):
        assert wide.allows(host, port, literal=False)
