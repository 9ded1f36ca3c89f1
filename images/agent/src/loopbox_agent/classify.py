"""classify: owns the tables that tell which Failure an exception is, of ours and of every library below us. Pure."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import httpx2
import openai
import pydantic
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    REQUEST_TIMEOUT,
)
from pydantic_ai import exceptions as ai

from loopbox_agent.errors import AgentError
from loopbox_agent.failure import UNKNOWN, FailedError, Failure, of_status, retry_after

_DEEPEST: Final = 8  # causes, and members of a group, looked at

_REFUSED: Final = Failure("service", retryable=True, nothing_ran=True)
_UNREACHED: Final = Failure("network", retryable=True, nothing_ran=True)
_CUT: Final = Failure("network", retryable=True)
_SLOW: Final = Failure("timeout", retryable=True)
_INVALID: Final = Failure("validation", nothing_ran=True)
_ABSENT: Final = Failure("not_found", nothing_ran=True)
_DENIED: Final = Failure("permission", nothing_ran=True)
_FULL: Final = Failure("rate_limit", retryable=True, nothing_ran=True)

# Codes of our own errors that mean something else than their HTTP status does.
_CODES: Final[Mapping[str, Failure]] = MappingProxyType(
    {
        "engine_unavailable": _REFUSED,
        "engine_failed": UNKNOWN,
        "engine_broke_off": _CUT,
        "engine_silent": _SLOW,
        "model_broke_off": _CUT,
        "models_unavailable": Failure("service", nothing_ran=True),  # the pool has waited as long as it may
        "breaker_open": Failure("service", nothing_ran=True),  # a model can do something else; waiting helps nobody
        "sandbox_unavailable": _REFUSED,
        "tool_broke_off": Failure("service"),  # its sandbox is thrown away: the same call there fails again
        "tool_unavailable": _ABSENT,
        "unknown_tool": _ABSENT,
        "model_output_invalid": Failure("validation"),
        "output_invalid": Failure("validation"),
        "deadline_exceeded": Failure("timeout"),  # there is no time left to try in
        "budget_spent": Failure("rate_limit"),
        "store_busy": _REFUSED,
        "store_down": _CUT,
    }
)

# Their Retry-After is our guess, for our own clients; what the other side asked for stands in their details.
_RELAYED: Final = frozenset({"engine_unavailable", "engine_failed"})

_ERRNO: Final[Mapping[int, Failure]] = MappingProxyType(
    {
        errno.ECONNREFUSED: _UNREACHED,
        errno.EHOSTUNREACH: _UNREACHED,
        errno.ENETUNREACH: _UNREACHED,
        errno.EADDRNOTAVAIL: _UNREACHED,
        errno.ECONNRESET: _CUT,
        errno.ECONNABORTED: _CUT,
        errno.EPIPE: _CUT,
        errno.ETIMEDOUT: _SLOW,
        errno.EACCES: _DENIED,
        errno.EPERM: _DENIED,
        errno.EROFS: _DENIED,
        errno.ENOENT: _ABSENT,
        errno.EEXIST: _INVALID,
        errno.EINVAL: _INVALID,
        errno.ENAMETOOLONG: _INVALID,
        errno.EISDIR: _INVALID,
        errno.ENOTDIR: _INVALID,
        errno.ENOSPC: Failure("service"),
        errno.EDQUOT: Failure("service"),
        errno.EMFILE: _REFUSED,
        errno.ENFILE: _REFUSED,
        errno.EAGAIN: _REFUSED,
        errno.ENOMEM: UNKNOWN,
    }
)

_MCP: Final[Mapping[int, Failure]] = MappingProxyType(
    {
        CONNECTION_CLOSED: _CUT,
        REQUEST_TIMEOUT: _SLOW,
        METHOD_NOT_FOUND: _ABSENT,
        INVALID_PARAMS: _INVALID,
        INVALID_REQUEST: _INVALID,
        PARSE_ERROR: _INVALID,
        INTERNAL_ERROR: UNKNOWN,
    }
)

# The first row that fits counts, so a kind stands before the kind it is one of.
_TYPES: Final[Sequence[tuple[type[BaseException], Failure]]] = (
    # HTTP below everything
    (httpx2.ConnectTimeout, Failure("timeout", retryable=True, nothing_ran=True)),
    (httpx2.PoolTimeout, Failure("timeout", retryable=True, nothing_ran=True)),
    (httpx2.TimeoutException, _SLOW),
    (httpx2.ConnectError, _UNREACHED),
    (httpx2.ProxyError, _DENIED),  # the proxy of the egress refuses what was not granted
    (httpx2.UnsupportedProtocol, _INVALID),
    (httpx2.InvalidURL, _INVALID),
    (httpx2.LocalProtocolError, _INVALID),
    (httpx2.TooManyRedirects, Failure("service")),
    (httpx2.DecodingError, Failure("service")),
    (httpx2.TransportError, _CUT),
    (httpx2.StreamError, _CUT),
    # models
    (ai.ModelQuotaExceededError, _DENIED),  # an account without credit; time does not help
    (ai.ModelRateLimitError, _FULL),
    (ai.ModelAuthenticationError, Failure("authentication", nothing_ran=True)),
    (ai.ModelNotFoundError, _ABSENT),
    (ai.ModelRequestRejectedError, _INVALID),
    (ai.ModelTimeoutError, _SLOW),
    (ai.ModelRequestTimeout, _SLOW),
    (ai.ModelConnectionError, _CUT),
    (ai.ModelAPIError, UNKNOWN),
    (ai.UsageLimitExceeded, Failure("rate_limit")),
    (ai.ContentFilterError, Failure("permission")),
    (ai.UnexpectedModelBehavior, Failure("validation")),
    (ai.ModelRetry, _INVALID),
    (ai.UserError, _INVALID),
    (openai.APITimeoutError, _SLOW),
    (openai.APIConnectionError, _CUT),
    (openai.OpenAIError, UNKNOWN),
    # the system
    (TimeoutError, _SLOW),
    (ConnectionRefusedError, _UNREACHED),
    (ConnectionError, _CUT),
    (asyncio.IncompleteReadError, _CUT),
    (PermissionError, _DENIED),
    (FileNotFoundError, _ABSENT),
    (pydantic.ValidationError, _INVALID),
    (UnicodeError, _INVALID),
)


def classify(error: BaseException) -> Failure:
    """Return what an exception means: by itself, else by its nearest cause that is known, else UNKNOWN.

    A group means what its most serious member means.
    """
    for cause in _causes(error):
        if (known := _known(cause)) is not None:
            return known
    return UNKNOWN


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    for _ in range(_DEEPEST):
        if current is None:
            return
        yield current
        current = current.__cause__


def _known(error: BaseException) -> Failure | None:
    match error:
        case BaseExceptionGroup():
            return _of_group(error)
        case AgentError() | FailedError():
            return _ours(error)
        case httpx2.HTTPStatusError() | openai.APIStatusError():
            return of_status(error.response.status_code, retry_after(error.response.headers))
        case MCPError():
            return _MCP.get(error.code, UNKNOWN)
        case OSError(errno=int(number)) if number in _ERRNO:
            return _ERRNO[number]
    return _of_type(error)


def _of_type(error: BaseException) -> Failure | None:
    known = next((failure for kind, failure in _TYPES if isinstance(error, kind)), None)
    match error:
        case ai.UnexpectedModelBehavior() if error.__cause__ is not None:
            return UNKNOWN  # an answer that could not be read, not one that was read and is wrong
        case ai.ModelHTTPError(status_code=status) if known is UNKNOWN:
            known = of_status(status)
        case ai.ModelConnectionError(phase="pool" | "connect"):
            known = _UNREACHED
        case openai.APIConnectionError() if error.__cause__ is not None:
            known = _known(error.__cause__) or known
    if isinstance(error, ai.ModelAPIError) and known is not None:
        return known.after(error.retry_after)
    return known


def _ours(error: AgentError | FailedError) -> Failure:
    if isinstance(error, FailedError):
        return error.failure
    wait = error.details.get("upstream_wait_s") if error.code in _RELAYED else error.retry_after_s
    told = error.details.get("upstream_status")  # what the other side answered says more than our word for it
    known = of_status(told) if isinstance(told, int) else _CODES.get(error.code) or of_status(error.status)
    return known.after(float(wait) if isinstance(wait, (int, float)) else None)


def _of_group(group: BaseExceptionGroup[BaseException]) -> Failure:
    """Return the worst of a group: one that must not be tried again outweighs the rest."""
    found = [classify(error) for error in group.exceptions[:_DEEPEST]]
    worst = min(found, key=lambda failure: (failure.retryable, failure.nothing_ran))
    waits = [failure.wait_s for failure in found if failure.wait_s is not None]
    return replace(worst, nothing_ran=all(failure.nothing_ran for failure in found)).after(max(waits, default=None))
