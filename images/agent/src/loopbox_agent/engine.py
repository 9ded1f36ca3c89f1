"""engine: owns the talk with the engine behind the gateway: one pooled HTTP client, answers read chunk by chunk.

Answers are always streamed, even for callers that want them whole: silence is then noticed after
``engine_silence_s`` instead of at the end, and an answer that was cut is told from one that is done.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import ClassVar

import httpx2
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loopbox_agent.errors import AgentError
from loopbox_agent.lines import LineTooLongError, cut_lines
from loopbox_agent.metrics import Metrics
from loopbox_agent.settings import Settings
from loopbox_agent.wire import ChatChunk, ChatOrder

LONGEST_LINE = 1 << 20  #: bytes; one chunk holds a token or one round of tool calls
LONGEST_REFUSAL = 4096  #: bytes read of an answer that is not 200
_READY = "`loopctl status` shows when it serves again."


class EngineUnavailableError(AgentError):
    """No engine took the request; nothing was generated."""

    code: ClassVar[str] = "engine_unavailable"
    status: ClassVar[int] = 503


class EngineFailedError(AgentError):
    """The engine said that it failed."""

    code: ClassVar[str] = "engine_failed"
    status: ClassVar[int] = 502


class EngineBrokeOffError(AgentError):
    """The answer ended before its last chunk."""

    code: ClassVar[str] = "engine_broke_off"
    status: ClassVar[int] = 502


class EngineSilentError(AgentError):
    """The engine said nothing for too long."""

    code: ClassVar[str] = "engine_silent"
    status: ClassVar[int] = 504


class ContextExceededError(AgentError):
    """The prompt does not fit the model's context; the engine was not allowed to cut it."""

    code: ClassVar[str] = "context_exceeded"
    status: ClassVar[int] = 422


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    name: str = ""


class _Models(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    models: tuple[_Model, ...] = Field(default=(), max_length=10_000)


class Engine:
    """The engine behind the gateway; which release answers is the gateway's business."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._http = httpx2.AsyncClient(
            base_url=str(settings.engine_url),
            timeout=httpx2.Timeout(settings.engine_connect_s, read=settings.engine_silence_s),
            limits=httpx2.Limits(
                # One for each run and some for probes, so that a full house still answers its health check.
                max_connections=settings.max_concurrent_runs + 4,
                max_keepalive_connections=32,
                keepalive_expiry=15,
            ),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    @asynccontextmanager
    async def chat(self, order: ChatOrder) -> AsyncIterator[AsyncIterator[ChatChunk]]:
        """Ask; the chunks come as generated, the last one has ``done``. Leaving early stops the generation.

        Raises EngineUnavailableError, ContextExceededError and EngineFailedError on entry; while reading also
        EngineBrokeOffError and EngineSilentError.
        """
        asked_at = time.monotonic()
        body = order.model_dump_json(exclude_none=True).encode()
        headers = {"Content-Type": "application/json"}
        if isinstance(known := structlog.contextvars.get_contextvars().get("correlation_id"), str):
            headers["X-Correlation-Id"] = known
        response = await self._open(self._http.build_request("POST", "/api/chat", content=body, headers=headers))
        try:
            yield self._chunks(response, asked_at)
        finally:
            await response.aclose()

    async def _open(self, request: httpx2.Request) -> httpx2.Response:
        with _named(self._settings):
            try:
                response = await self._http.send(request, stream=True)
            except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                # A kept connection that the gateway closed at this very moment. Nothing was answered yet, and a
                # generation has no side effect, so asking once more is safe.
                response = await self._http.send(request, stream=True)
        if response.status_code == httpx2.codes.OK:
            return response
        try:
            raise _refusal(response.status_code, await _head(response))
        finally:
            await response.aclose()

    async def _chunks(self, response: httpx2.Response, asked_at: float) -> AsyncIterator[ChatChunk]:
        first = True
        with _named(self._settings, answering=True):
            async for line in cut_lines(response.aiter_bytes(), longest=LONGEST_LINE):
                chunk = _parse(line)
                if chunk.error is not None:
                    raise EngineFailedError(f"The engine stopped in the middle of its answer: {chunk.error[:500]}")
                if first:
                    self._metrics.first_token_seconds.observe(time.monotonic() - asked_at)
                    first = False
                if chunk.done:
                    self._metrics.prompt_tokens.inc(chunk.prompt_eval_count)
                    self._metrics.generation_tokens.inc(chunk.eval_count)
                yield chunk
                if chunk.done:
                    return
        raise EngineBrokeOffError(f"The engine's answer ended before it was done; ask again. {_READY}")

    async def check(self, *, timeout_s: float) -> None:
        """Return if an engine answers through the gateway and knows the model. Raises EngineUnavailableError."""
        try:
            response = await self._http.get("/api/tags", timeout=timeout_s)
        except httpx2.HTTPError as error:
            raise EngineUnavailableError(f"no answer through the gateway: {_words(error)}") from error
        if response.status_code != httpx2.codes.OK:
            raise EngineUnavailableError(f"the gateway answered {response.status_code}: no engine serves")
        try:
            names = {m.name for m in _Models.model_validate_json(response.content).models}
        except ValidationError as error:
            raise EngineUnavailableError("the gateway's list of models has another form") from error
        if not names & {self._settings.model, f"{self._settings.model}:latest"}:
            raise EngineUnavailableError(f"the engine does not know the model {self._settings.model!r}")


def _parse(line: bytes) -> ChatChunk:
    try:
        return ChatChunk.model_validate_json(line)
    except ValidationError as error:
        raise EngineFailedError(f"The engine's answer has another form: {line[:200]!r}") from error


def _refusal(status: int, words: str) -> AgentError:
    if status == httpx2.codes.BAD_REQUEST and "context" in words:
        return ContextExceededError(f"The prompt is longer than the model's context: {words}. Shorten the instruction.")
    if status in {httpx2.codes.NOT_FOUND, httpx2.codes.TOO_MANY_REQUESTS, httpx2.codes.SERVICE_UNAVAILABLE}:
        return EngineUnavailableError(
            f"No engine took the request ({status}: {words}); nothing was generated. {_READY}", retry_after_s=2
        )
    return EngineFailedError(f"The engine answered {status}: {words}")


async def _head(response: httpx2.Response) -> str:
    """Return the beginning of a refusal, as far as it can be read."""
    read = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            read += chunk
            if len(read) >= LONGEST_REFUSAL:
                break
    except httpx2.HTTPError:
        read += b" (cut)"
    try:
        told = ChatChunk.model_validate_json(bytes(read)).error
    except ValidationError:
        told = None
    return " ".join((told or read.decode(errors="replace")).split())[:500] or "no reason given"


def _words(error: Exception) -> str:
    return f"{type(error).__name__} {error}".strip()


@contextmanager
def _named(settings: Settings, *, answering: bool = False) -> Iterator[None]:
    """Give the HTTP client's errors the names of their causes."""
    try:
        yield
    except httpx2.ReadTimeout as error:
        raise EngineSilentError(
            f"The engine said nothing for {settings.engine_silence_s:g} s; the run was ended. "
            "Ask for fewer tokens, or raise AGENT_ENGINE_SILENCE_S for a slow host."
        ) from error
    except (httpx2.ConnectError, httpx2.TimeoutException) as error:
        raise EngineUnavailableError(
            f"The gateway at {settings.engine_url} cannot be reached ({_words(error)}); nothing was generated. "
            f"{_READY}",
            retry_after_s=2,
        ) from error
    except httpx2.HTTPError as error:
        if not answering:
            raise EngineUnavailableError(
                f"The gateway closed the connection before it answered ({_words(error)}). {_READY}", retry_after_s=2
            ) from error
        raise EngineBrokeOffError(f"The engine's answer broke off ({_words(error)}); ask again. {_READY}") from error
    except LineTooLongError as error:
        raise EngineFailedError(f"The engine's answer has another form: {error}") from error
