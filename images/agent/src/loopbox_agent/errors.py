"""errors: owns AgentError, the base of everything the agent raises on purpose, and the form errors are sent in.

One class per cause, beside its noun. The text says what happened and what to do next; ``code`` is the stable word
for programs and ``status`` the HTTP status.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, JsonValue
from starlette.responses import JSONResponse


class AgentError(Exception):
    """Something known went wrong; the message is fit for a person."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        details: Mapping[str, JsonValue] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.details = dict(details or {})
        self.retry_after_s = retry_after_s


class DeadlineError(AgentError):
    """The run took longer than it may."""

    code = "deadline_exceeded"
    status = 504


class ClientGoneError(AgentError):
    """The client closed its connection; nobody reads the answer."""

    code = "client_closed"
    status = 499


class ErrorDetail(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    details: dict[str, JsonValue] = {}
    timestamp: datetime


class ErrorBody(BaseModel):
    """The body of every answer of 400 and above, and of the event run.failed."""

    model_config = ConfigDict(frozen=True)

    error: ErrorDetail


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:  # Any: the framework's own form
    """Return what the OpenAPI document says of these statuses: that they come with an error body."""
    return {status: {"model": ErrorBody} for status in statuses}


def error_body(code: str, message: str, details: Mapping[str, JsonValue] | None = None) -> ErrorBody:
    """Return the body, stamped with the time in UTC."""
    detail = ErrorDetail(code=code, message=message, details=dict(details or {}), timestamp=datetime.now(UTC))
    return ErrorBody(error=detail)


def error_response(
    status: int, body: ErrorBody, *, retry_after_s: int | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return the HTTP answer."""
    extra = {**(headers or {}), **({"Retry-After": str(retry_after_s)} if retry_after_s is not None else {})}
    return JSONResponse(body.model_dump(mode="json"), status_code=status, headers=extra)


def body_of(error: BaseException) -> ErrorBody:
    """Return the body for an exception; what is not ours is not told to clients."""
    if isinstance(error, AgentError):
        return error_body(error.code, str(error), error.details)
    return error_body(
        "internal",
        "The agent failed in an unforeseen way; the run ended and its sandbox was given back. "
        "Look for the correlation id in the agent's log.",
    )


def response_of(error: AgentError) -> JSONResponse:
    """Return the HTTP answer for an error of ours."""
    return error_response(error.status, body_of(error), retry_after_s=error.retry_after_s)
