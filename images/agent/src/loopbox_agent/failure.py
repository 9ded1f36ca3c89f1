"""failure: owns the eight categories of failure: what went wrong, whether to try again, what to do. Pure.

A failure is told from its type first, then from a status or code. What is not known is a failure of the service that
may have done something: it is not repeated for work with side effects. What tools say is read in tool_failure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

Category = Literal[
    "network", "timeout", "rate_limit", "validation", "permission", "authentication", "service", "not_found"
]

LONGEST_WAIT_S: Final = 3600.0  # believed of a Retry-After

ADVICE: Final[Mapping[Category, str]] = MappingProxyType(
    {
        "network": "The other side could not be reached or hung up. Trying again in a moment often helps; "
        "if it does not, look whether it runs and whether its host was granted.",
        "timeout": "No answer came in time. Ask for less at once, or allow more time.",
        "rate_limit": "The other side takes no more for now. Wait as long as it says, then ask for less at once.",
        "validation": "The request itself is not right; the same again fails again. Change the arguments as the "
        "message says, or shorten the prompt if it is too long.",
        "permission": "This is not allowed here. Do not try the same again: do it another way, or ask for the right.",
        "authentication": "The key or token was refused, and will be again. An operator has to set a valid one.",
        "service": "The other side failed. A question may be asked again; before a change is made again, look whether "
        "it was made.",
        "not_found": "There is nothing by that name. Look for what there is, then use its exact name.",
    }
)


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong."""

    category: Category
    retryable: bool = False  #: the same request may succeed later
    nothing_ran: bool = False  #: it is certain that the request had no effect
    wait_s: float | None = None  #: seconds, as the other side asked; None: it did not say

    @property
    def advice(self) -> str:
        """What to do, for a person or a model."""
        return ADVICE[self.category]

    def after(self, wait_s: float | None) -> Failure:
        """Return it with the wait that was asked for, where waiting helps."""
        if wait_s is None or not self.retryable:
            return self
        return replace(self, wait_s=min(max(wait_s, 0.0), LONGEST_WAIT_S))


class FailedError(Exception):
    """A failure that was told by a result, for those who handle what is raised."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.category)
        self.failure = failure


UNKNOWN: Final = Failure("service", retryable=True)

_BAD_REQUEST: Final = Failure("validation", nothing_ran=True)
_STATUS: Final[Mapping[int, Failure]] = MappingProxyType(
    {
        401: Failure("authentication", nothing_ran=True),
        402: Failure("permission", nothing_ran=True),  # the account has no credit; time does not help
        403: Failure("permission", nothing_ran=True),
        404: Failure("not_found", nothing_ran=True),
        407: Failure("authentication", nothing_ran=True),
        408: Failure("timeout", retryable=True),
        410: Failure("not_found", nothing_ran=True),
        425: Failure("rate_limit", retryable=True, nothing_ran=True),
        429: Failure("rate_limit", retryable=True, nothing_ran=True),
        451: Failure("permission", nothing_ran=True),
        501: Failure("service", nothing_ran=True),
        503: Failure("service", retryable=True, nothing_ran=True),
        504: Failure("timeout", retryable=True),
        505: Failure("service", nothing_ran=True),
        529: Failure("service", retryable=True, nothing_ran=True),
    }
)


def of_status(status: int, wait_s: float | None = None) -> Failure:
    """Return what an HTTP status means. Only refusals prove that nothing was done; 500, 502 and 504 do not."""
    known = _STATUS.get(status)
    if known is None:
        known = _BAD_REQUEST if 400 <= status < 500 else UNKNOWN  # noqa: PLR2004 HTTP's own classes
    return known.after(wait_s)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header; None without one, or when it is a date."""
    told = headers.get("retry-after", "").strip()
    return min(float(told), LONGEST_WAIT_S) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,3})?", told) else None
