"""engine: owns the talk with one engine, as a rule the gateway's: a pooled HTTP client, answers read chunk by chunk.

Answers are always streamed, even for callers that want them whole: silence is then noticed after
``engine_silence_s`` instead of at the end, and an answer that was cut is told from one that is done.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar

import httpx2
import structlog
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from loopbox_agent.errors import AgentError
from loopbox_agent.failure import retry_after
from loopbox_agent.lines import LineTooLongError, cut_lines
from loopbox_agent.metrics import Metrics
from loopbox_agent.settings import Settings
from loopbox_agent.wire import ChatChunk, ChatOrder

LONGEST_LINE = 1 << 20  #: bytes; one chunk holds a token or one round of tool calls
END_S = 0.05  # for the end of an answer behind its last chunk
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAt:
    """Where an engine is and how long it may take."""

    url: str
    model: str  #: the name it knows the model by
    connect_s: float = 5.0
    silence_s: float = 120.0  #: longest wait for the next token
    most_requests: int = 128  #: at once

    @classmethod
    def the_gateway(cls, settings: Settings) -> EngineAt:
        """Return the gateway's; which release answers is the gateway's business."""
        return cls(
            url=str(settings.engine_url),
            model=settings.model,
            connect_s=settings.engine_connect_s,
            silence_s=settings.engine_silence_s,
            most_requests=settings.max_concurrent_runs,
        )


class Engine:
    """One engine by its URL.

    transport: another way to its address than a connection of our own.
    """

    def __init__(
        self, at: EngineAt | Settings, metrics: Metrics, *, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        self._at = at if isinstance(at, EngineAt) else EngineAt.the_gateway(at)
        self._metrics = metrics
        self._http = httpx2.AsyncClient(
            base_url=self._at.url,
            timeout=httpx2.Timeout(self._at.connect_s, read=self._at.silence_s),
            limits=httpx2.Limits(
                # One for each run and some for probes, so that a full house still answers its health check.
                max_connections=self._at.most_requests + 4,
                max_keepalive_connections=32,
                keepalive_expiry=15,
            ),
            transport=transport,
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
        with _named(self._at):
            try:
                response = await self._http.send(request, stream=True)
            except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                # A kept connection that the gateway closed at this very moment. Nothing was answered yet, and a
                # generation has no side effect, so asking once more is safe.
                response = await self._http.send(request, stream=True)
        if response.status_code == httpx2.codes.OK:
            return response
        try:
            raise _refusal(response, await _head(response))
        finally:
            await response.aclose()

    async def _chunks(self, response: httpx2.Response, asked_at: float) -> AsyncIterator[ChatChunk]:
        first = True
        with _named(self._at, answering=True):
            lines = cut_lines(response.aiter_bytes(), longest=LONGEST_LINE)
            async for line in lines:
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
                    await _read_out(lines)
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
        if not names & {self._at.model, f"{self._at.model}:latest"}:
            raise EngineUnavailableError(f"the engine does not know the model {self._at.model!r}")


async def _read_out(lines: AsyncIterator[bytes]) -> None:
    """Read to the end of an answer that is done, so that its connection can be used again; it comes at once, or not."""
    with suppress(TimeoutError, httpx2.HTTPError, LineTooLongError):
        async with asyncio.timeout(END_S):
            async for _ in lines:
                pass


def _parse(line: bytes) -> ChatChunk:
    try:
        return ChatChunk.model_validate_json(line)
    except ValidationError as error:
        raise EngineFailedError(f"The engine's answer has another form: {line[:200]!r}") from error


def _refusal(response: httpx2.Response, words: str) -> AgentError:
    status = response.status_code
    if status == httpx2.codes.BAD_REQUEST and "context" in words:
        return ContextExceededError(f"The prompt is longer than the model's context: {words}. Shorten the instruction.")
    if status == httpx2.codes.NOT_FOUND:  # while the model is being swapped; so it is worth another try
        return EngineUnavailableError(
            f"No engine took the request ({status}: {words}); nothing was generated. {_READY}", retry_after_s=2
        )
    asked = retry_after(response.headers)
    wait = None if asked is None else math.ceil(asked)
    told: dict[str, JsonValue] = {"upstream_status": status, **({} if asked is None else {"upstream_wait_s": asked})}
    if status in {httpx2.codes.TOO_MANY_REQUESTS, httpx2.codes.SERVICE_UNAVAILABLE}:
        return EngineUnavailableError(
            f"No engine took the request ({status}: {words}); nothing was generated. {_READY}",
            details=told,
            retry_after_s=2 if wait is None else wait,
        )
    return EngineFailedError(f"The engine answered {status}: {words}", details=told, retry_after_s=wait)


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
def _named(at: EngineAt, *, answering: bool = False) -> Iterator[None]:
    """Give the HTTP client's errors the names of their causes."""
    try:
        yield
    except httpx2.ReadTimeout as error:
        raise EngineSilentError(
            f"The engine said nothing for {at.silence_s:g} s; the run was ended. "
            "Ask for fewer tokens, or raise AGENT_ENGINE_SILENCE_S for a slow host."
        ) from error
    except (httpx2.ConnectError, httpx2.TimeoutException) as error:
        raise EngineUnavailableError(
            f"The gateway at {at.url} cannot be reached ({_words(error)}); nothing was generated. {_READY}",
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
