"""Which of the eight categories each error is, row by row."""

from __future__ import annotations

import asyncio
import errno
from typing import Any, get_args

import httpx2
import openai
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED, INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, REQUEST_TIMEOUT
from pydantic_ai import exceptions as ai

from loopbox_agent.classify import classify
from loopbox_agent.engine import (
    ContextExceededError,
    EngineBrokeOffError,
    EngineFailedError,
    EngineSilentError,
    EngineUnavailableError,
)
from loopbox_agent.errors import AgentError, DeadlineError
from loopbox_agent.failure import ADVICE, LONGEST_WAIT_S, Category, Failure, of_status, retry_after
from loopbox_agent.forced import ModelOutputInvalidError
from loopbox_agent.sandbox import SandboxUnavailableError, ToolBrokeError
from loopbox_agent.slots import BusyError
from loopbox_agent.tool_failure import classify_result

ASKED = httpx2.Request("POST", "http://engine/api/chat")


def answered(status: int, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, headers=headers, request=ASKED)


def from_(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def invalid() -> pydantic.ValidationError:
    try:
        pydantic.TypeAdapter(int).validate_python("x")
    except pydantic.ValidationError as error:
        return error
    raise AssertionError


def http(status: int, kind: Any = None, **headers: str) -> ai.ModelHTTPError:  # Any: one of the framework's categories
    return ai.ModelHTTPError.for_category(kind, status_code=status, model_name="m", headers=headers)


def status_error(kind: Any, status: int, **headers: str) -> openai.APIStatusError:  # Any: a class of the client's
    made = kind("no", response=answered(status, **headers), body=None)
    assert isinstance(made, openai.APIStatusError)
    return made


AGAIN, NOT = True, False
RAN, NOTHING = False, True

ROWS: list[tuple[BaseException, Category, bool, bool, float | None]] = [
    # ours
    (EngineUnavailableError("x", retry_after_s=2), "service", AGAIN, NOTHING, None),  # our guess, not its word
    (
        EngineUnavailableError("x", details={"upstream_status": 429}, retry_after_s=2),
        "rate_limit",
        AGAIN,
        NOTHING,
        None,
    ),
    (
        EngineUnavailableError("x", details={"upstream_status": 503, "upstream_wait_s": 7.0}, retry_after_s=2),
        "service",
        AGAIN,
        NOTHING,
        7,
    ),
    (EngineFailedError("x"), "service", AGAIN, RAN, None),
    (EngineFailedError("x", details={"upstream_status": 500}), "service", AGAIN, RAN, None),
    (EngineFailedError("x", details={"upstream_status": 504}), "timeout", AGAIN, RAN, None),
    (EngineFailedError("x", details={"upstream_status": 400}), "validation", NOT, NOTHING, None),
    (EngineFailedError("x", details={"upstream_status": 401}), "authentication", NOT, NOTHING, None),
    (EngineBrokeOffError("x"), "network", AGAIN, RAN, None),
    (EngineSilentError("x"), "timeout", AGAIN, RAN, None),
    (ContextExceededError("x"), "validation", NOT, NOTHING, None),
    (ModelOutputInvalidError("x"), "validation", NOT, RAN, None),
    (SandboxUnavailableError("x", retry_after_s=2), "service", AGAIN, NOTHING, 2),
    (ToolBrokeError("x"), "service", NOT, RAN, None),
    (BusyError("x", retry_after_s=1), "rate_limit", AGAIN, NOTHING, 1),
    (DeadlineError("x"), "timeout", NOT, RAN, None),
    (AgentError("x"), "service", AGAIN, RAN, None),  # a code and a status that nobody told us of
    # HTTP
    (httpx2.ConnectError("refused"), "network", AGAIN, NOTHING, None),
    (httpx2.ConnectTimeout("slow"), "timeout", AGAIN, NOTHING, None),
    (httpx2.PoolTimeout("full"), "timeout", AGAIN, NOTHING, None),
    (httpx2.ReadTimeout("slow"), "timeout", AGAIN, RAN, None),
    (httpx2.WriteTimeout("slow"), "timeout", AGAIN, RAN, None),
    (httpx2.ReadError("reset"), "network", AGAIN, RAN, None),
    (httpx2.RemoteProtocolError("cut"), "network", AGAIN, RAN, None),
    (httpx2.ProxyError("not granted"), "permission", NOT, NOTHING, None),
    (httpx2.UnsupportedProtocol("gopher"), "validation", NOT, NOTHING, None),
    (httpx2.InvalidURL("x"), "validation", NOT, NOTHING, None),
    (httpx2.LocalProtocolError("x"), "validation", NOT, NOTHING, None),
    (httpx2.TooManyRedirects("x"), "service", NOT, RAN, None),
    (httpx2.StreamClosed(), "network", AGAIN, RAN, None),
    (
        httpx2.HTTPStatusError("x", request=ASKED, response=answered(429, **{"retry-after": "9"})),
        "rate_limit",
        AGAIN,
        NOTHING,
        9,
    ),
    # pydantic-ai
    (http(429, ai.ModelRateLimitError, **{"retry-after": "3"}), "rate_limit", AGAIN, NOTHING, 3),
    (http(402, ai.ModelQuotaExceededError), "permission", NOT, NOTHING, None),
    (http(401, ai.ModelAuthenticationError), "authentication", NOT, NOTHING, None),
    (http(404, ai.ModelNotFoundError), "not_found", NOT, NOTHING, None),
    (http(400, ai.ModelRequestRejectedError), "validation", NOT, NOTHING, None),
    (http(400, ai.ModelContextWindowExceededError), "validation", NOT, NOTHING, None),
    (http(503, ai.ModelUnavailableError, **{"retry-after": "1"}), "service", AGAIN, NOTHING, 1),
    (http(529, ai.ModelOverloadedError), "service", AGAIN, NOTHING, None),
    (http(500, ai.ModelServerError), "service", AGAIN, RAN, None),
    (http(504, ai.ModelServerError), "timeout", AGAIN, RAN, None),
    (http(403), "permission", NOT, NOTHING, None),
    (ai.ModelConnectionError("m", "x", phase="connect"), "network", AGAIN, NOTHING, None),
    (ai.ModelConnectionError("m", "x", phase="read"), "network", AGAIN, RAN, None),
    (ai.ModelTimeoutError("m", "x"), "timeout", AGAIN, RAN, None),
    (ai.ModelAPIError("m", "x", retry_after=4), "service", AGAIN, RAN, 4),
    (ai.UnexpectedModelBehavior("no tool by that name"), "validation", NOT, RAN, None),
    (from_(ai.UnexpectedModelBehavior("unreadable"), invalid()), "service", AGAIN, RAN, None),
    (ai.ContentFilterError("x"), "permission", NOT, RAN, None),
    (ai.UsageLimitExceeded("x"), "rate_limit", NOT, RAN, None),
    (ai.ModelRetry("x"), "validation", NOT, NOTHING, None),
    (ai.UserError("x"), "validation", NOT, NOTHING, None),
    # openai
    (status_error(openai.RateLimitError, 429, **{"retry-after": "5"}), "rate_limit", AGAIN, NOTHING, 5),
    (status_error(openai.AuthenticationError, 401), "authentication", NOT, NOTHING, None),
    (status_error(openai.PermissionDeniedError, 403), "permission", NOT, NOTHING, None),
    (status_error(openai.InternalServerError, 500), "service", AGAIN, RAN, None),
    (openai.APITimeoutError(ASKED), "timeout", AGAIN, RAN, None),
    (openai.APIConnectionError(request=ASKED), "network", AGAIN, RAN, None),
    (
        from_(openai.APIConnectionError(request=ASKED), httpx2.ConnectError("refused")),
        "network",
        AGAIN,
        NOTHING,
        None,
    ),
    (openai.OpenAIError("x"), "service", AGAIN, RAN, None),
    # MCP
    (MCPError(CONNECTION_CLOSED, "x"), "network", AGAIN, RAN, None),
    (MCPError(REQUEST_TIMEOUT, "x"), "timeout", AGAIN, RAN, None),
    (MCPError(METHOD_NOT_FOUND, "x"), "not_found", NOT, NOTHING, None),
    (MCPError(INVALID_PARAMS, "x"), "validation", NOT, NOTHING, None),
    (MCPError(INTERNAL_ERROR, "x"), "service", AGAIN, RAN, None),
    (MCPError(-31_999, "x"), "service", AGAIN, RAN, None),
    # the system
    (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "network", AGAIN, NOTHING, None),
    (ConnectionRefusedError("x"), "network", AGAIN, NOTHING, None),
    (ConnectionResetError(errno.ECONNRESET, "x"), "network", AGAIN, RAN, None),
    (BrokenPipeError("x"), "network", AGAIN, RAN, None),
    (asyncio.IncompleteReadError(b"", 3), "network", AGAIN, RAN, None),
    (TimeoutError(), "timeout", AGAIN, RAN, None),
    (OSError(errno.ETIMEDOUT, "x"), "timeout", AGAIN, RAN, None),
    (PermissionError(errno.EACCES, "x"), "permission", NOT, NOTHING, None),
    (PermissionError("x"), "permission", NOT, NOTHING, None),
    (FileNotFoundError(errno.ENOENT, "x"), "not_found", NOT, NOTHING, None),
    (FileNotFoundError("x"), "not_found", NOT, NOTHING, None),
    (OSError(errno.ENOSPC, "x"), "service", NOT, RAN, None),
    (OSError(errno.EMFILE, "x"), "service", AGAIN, NOTHING, None),
    (invalid(), "validation", NOT, NOTHING, None),
    # what is not known, and what only wraps
    (ValueError("x"), "service", AGAIN, RAN, None),
    (from_(RuntimeError("x"), httpx2.ConnectError("refused")), "network", AGAIN, NOTHING, None),
    (ExceptionGroup("x", [httpx2.ConnectError("a"), httpx2.ReadError("b")]), "network", AGAIN, RAN, None),
    (ExceptionGroup("x", [httpx2.ConnectError("a"), PermissionError("b")]), "permission", NOT, NOTHING, None),
    (BaseExceptionGroup("x", [KeyboardInterrupt()]), "service", AGAIN, RAN, None),
]


@pytest.mark.parametrize(
    ("error", "category", "retryable", "nothing_ran", "wait_s"),
    ROWS,
    ids=[f"{number}-{type(row[0]).__name__}-{row[1]}" for number, row in enumerate(ROWS)],
)
def test_an_error_has_its_category(
    error: BaseException, category: Category, *, retryable: bool, nothing_ran: bool, wait_s: float | None
) -> None:
    assert classify(error) == Failure(category, retryable, nothing_ran, wait_s)


def test_the_rows_cover_every_category_and_each_has_advice() -> None:
    assert {row[1] for row in ROWS} == set(get_args(Category)) == set(ADVICE)


@pytest.mark.parametrize(
    ("text", "exit_code", "category", "retryable"),
    [
        ("killed", 124, "timeout", False),
        ("bash: x: Permission denied", 126, "permission", False),
        ("bash: frobnicate: command not found", 127, "not_found", False),
        ("", 137, "service", False),
        ("", 139, "service", False),
        ("cat: a.txt: No such file or directory", 1, "not_found", False),
        ("ModuleNotFoundError: No module named 'numpy'", 1, "not_found", False),
        ("rm: cannot remove '/etc': Read-only file system", 1, "permission", False),
        ("  File x\nSyntaxError: invalid syntax", 1, "validation", False),
        ("Traceback (most recent call last):\nZeroDivisionError", 1, "validation", False),
        ("grep: unrecognized option '--foo'", 2, "validation", False),
        ("curl: (7) Connection refused", 7, "network", True),
        ("curl: (28) Operation timed out", 28, "timeout", True),
        ("HTTP 429 Too Many Requests", 22, "rate_limit", True),
        ("401 Unauthorized", 22, "authentication", False),
        ("503 Service Unavailable", 22, "service", True),
        ("OSError: [Errno 28] No space left on device", 1, "service", False),
        ("MemoryError", 1, "service", False),
        ("it went wrong", 1, "service", False),
        ("it went wrong", None, "service", False),
        ("permission denied", None, "permission", False),
    ],
)
def test_a_tools_result_has_its_category(text: str, exit_code: int | None, category: str, *, retryable: bool) -> None:
    found = classify_result(text, exit_code=exit_code)
    assert found is not None
    assert (found.category, found.retryable, found.nothing_ran) == (category, retryable, False)


def test_success_and_timeout_are_told_by_the_runner_not_by_words() -> None:
    assert classify_result("error: permission denied", exit_code=0) is None
    assert classify_result("", exit_code=0, timed_out=True) == Failure("timeout")


@given(st.integers(min_value=300, max_value=999), st.none() | st.floats(-10, 1e6))
def test_no_status_is_without_a_category_and_no_wait_is_endless(status: int, wait: float | None) -> None:
    found = of_status(status, wait)
    assert found.category in get_args(Category)
    assert found.wait_s is None or (found.retryable and 0 <= found.wait_s <= LONGEST_WAIT_S)
    assert not (found.category in {"permission", "authentication", "not_found", "validation"} and found.retryable)


@given(st.text(max_size=20))
def test_a_retry_after_is_seconds_or_nothing(told: str) -> None:
    found = retry_after({"retry-after": told})
    assert found is None or 0 <= found <= LONGEST_WAIT_S


def test_a_loop_of_causes_ends() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert classify(first).category == "service"
