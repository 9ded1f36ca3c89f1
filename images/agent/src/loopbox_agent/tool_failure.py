"""tool_failure: owns telling which Failure the result of a tool is, from its exit code and its words. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from loopbox_agent.failure import Failure

_OUT_OF_TIME: Final = Failure("timeout")  # the same again takes as long
_BROKEN: Final = Failure("service")
_EXITS: Final[Mapping[int, Failure]] = MappingProxyType(
    {
        124: _OUT_OF_TIME,
        126: Failure("permission"),
        127: Failure("not_found"),
        137: _BROKEN,  # killed, as a rule for its memory
    }
)
_FIRST_SIGNAL: Final = 129  # the shell's: 128 + the signal's number
_READ: Final = 4096  # characters of a text, at its end, where programs say why they failed

# What programs and servers say. The first row that fits counts, so the narrower ones stand first.
_WORDS: Final[tuple[tuple[str, Failure], ...]] = (
    (r"too many requests|rate.?limit|\b429\b", Failure("rate_limit", retryable=True)),
    (r"unauthori[sz]ed|authentication failed|invalid (api )?(key|token|credentials)", Failure("authentication")),
    (r"permission denied|not permitted|read-only file system|forbidden|not allowed|denied", Failure("permission")),
    (r"timed? ?out|deadline exceeded|out of time", Failure("timeout", retryable=True)),
    (r"connection (refused|reset|aborted|closed)|network is unreachable", Failure("network", retryable=True)),
    (r"no route to host|name or service not known|name resolution", Failure("network", retryable=True)),
    (r"could not resolve|broken pipe|broke off", Failure("network", retryable=True)),
    (r"no such file|not found|does not exist|no module named|there is no\b", Failure("not_found")),
    (r"internal server error|service unavailable|bad gateway", Failure("service", retryable=True)),
    (r"out of memory|memoryerror|no space left", _BROKEN),
    (r"syntax ?error|invalid (argument|option|json|syntax|value)|unrecognized|usage:", Failure("validation")),
    (r"does not fit|valueerror|typeerror|nameerror|traceback", Failure("validation")),
)
_PATTERNS: Final = tuple((re.compile(words, re.IGNORECASE), failure) for words, failure in _WORDS)


def classify_result(text: str, *, exit_code: int | None = None, timed_out: bool = False) -> Failure | None:
    """Return what a tool's result means; None for a success, which is exit code 0.

    text: what it said. exit_code: None where the tool has none, and the result is known to be an error. Whatever comes
    out, the tool ran: only one without side effects may be called again without being asked for.
    """
    if timed_out:
        return _OUT_OF_TIME
    if exit_code == 0:
        return None
    if exit_code is not None and exit_code in _EXITS:
        return _EXITS[exit_code]
    if exit_code is not None and exit_code >= _FIRST_SIGNAL:
        return _BROKEN
    return next((failure for pattern, failure in _PATTERNS if pattern.search(text[-_READ:])), _BROKEN)
