"""wire: owns requests over HTTP as a command needs them: one after the other, with limits on time and size.

aiohttp works below; commands see plain calls and iterators. Nothing here knows what is asked or answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError
from yarl import URL

from loopd.cli.exits import AnswerError, ApiError, UnreachableError
from loopd.cli.sse import Message, Parser

CONNECT_S = 3.0
MAX_ANSWER_BYTES = 32 << 20
MAX_REFUSAL_CHARACTERS = 2000

T = TypeVar("T")


class BrokenStreamError(UnreachableError):
    """A stream that had begun broke off."""

    code = "stream_broken"


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked."""

    method: str
    path: str  #: quoted, with its query
    body: bytes | BinaryIO | None = None  #: a file is sent from where it stands, and closed
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: str = "application/json"  #: of the body

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: bytes
    correlation_id: str


class _Told(BaseModel):
    code: str = ""
    message: str = ""


class _Refusal(BaseModel):
    error: _Told


@dataclass(slots=True)
class Wire:
    """Connections to one server. A context; not for threads."""

    name: str  #: who it is, for messages
    base: str  #: URL without a path
    socket: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    advice: str = ""  #: what to do when it does not answer
    _runner: asyncio.Runner = field(default_factory=asyncio.Runner)
    _session: aiohttp.ClientSession | None = None

    def __enter__(self) -> Self:
        self._session = self._run(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            self._run(self._session.close())
        self._runner.close()

    def fetch(self, request: Request, *, timeout_s: float) -> Answer:
        """Ask and return the whole answer. Raises UnreachableError, ApiError, AnswerError."""
        return self._run(self._fetch(request, timeout_s))

    def save(self, request: Request, sink: BinaryIO, *, silence_s: float) -> int:
        """Ask and write the answer's body into ``sink``, of any size; return its bytes. Raises as fetch() does."""
        return self._run(self._save(request, sink, silence_s))

    def stream(self, request: Request, *, silence_s: float, tick_s: float) -> Generator[Message | None]:
        """Yield messages of an event stream until its end, and None whenever ``tick_s`` passed without one.

        Close the iterator when you leave it early. Raises as fetch() does, BrokenStreamError when it breaks off or
        nothing came for ``silence_s``.
        """
        response = self._run(self._begin(request, silence_s))
        reading = _Reading(response, f"the stream of {self.name}")
        try:
            while (messages := self._run(reading.next(tick_s))) is not None:
                yield from messages or (None,)
        finally:
            self._run(reading.close())

    def _run(self, work: Coroutine[None, None, T]) -> T:
        return self._runner.run(work)

    async def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(path=str(self.socket)) if self.socket else aiohttp.TCPConnector(limit=4)
        return aiohttp.ClientSession(connector=connector, headers=dict(self.headers), trust_env=False)

    async def _send(self, request: Request, limits: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("Wire is a context: enter it first")
        kind = {"Content-Type": request.kind} if request.body is not None else {}
        response = await self._session.request(
            request.method,
            URL(self.base + request.path, encoded=True),
            data=request.body,
            headers={**kind, **request.headers},
            timeout=limits,
            allow_redirects=False,
            # A file that is too large is refused before it is sent: a refusal in its middle would break it off.
            expect100=not isinstance(request.body, bytes | None),
        )
        if response.status >= HTTPStatus.BAD_REQUEST:
            async with response:
                raise refusal(await _read(response), self.name)
        return response

    async def _fetch(self, request: Request, timeout_s: float) -> Answer:
        limits = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        async with self._explain(str(request), timeout_s):
            response = await self._send(request, limits)
            async with response:
                return await _read(response)

    async def _save(self, request: Request, sink: BinaryIO, silence_s: float) -> int:
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence_s)
        async with self._explain(str(request), silence_s):
            response = await self._send(request, limits)
            async with response:
                size = 0
                async for piece in response.content.iter_chunked(1 << 18):
                    await asyncio.to_thread(sink.write, piece)
                    size += len(piece)
                return size

    async def _begin(self, request: Request, silence_s: float) -> aiohttp.ClientResponse:
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence_s)
        async with self._explain(str(request), silence_s):
            response = await self._send(request, limits)
            if response.content_type != "text/event-stream":
                response.close()
                raise AnswerError(f"{self.name} answered {request} with {response.content_type}, not with a stream")
            return response

    @contextlib.asynccontextmanager
    async def _explain(self, what: str, timeout_s: float) -> AsyncIterator[None]:
        """Turn what the library raises into an error that says who, what and what next."""
        try:
            yield
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            where = self.socket or self.base
            raise UnreachableError(
                f"{self.name} does not answer on {where} ({reason(error)}). {self.advice}"
            ) from error
        except TimeoutError as error:
            raise UnreachableError(
                f"{self.name} did not answer {what} within {timeout_s:g} s; it may still do what was asked. "
                "`loopctl status` says how it is"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise UnreachableError(f"{self.name} broke off {what} ({reason(error)}). {self.advice}") from error


@dataclass(slots=True)
class _Reading:
    """One open event stream, read piece by piece; a piece may take longer than one wait."""

    response: aiohttp.ClientResponse
    name: str
    parser: Parser = field(default_factory=Parser)
    piece: asyncio.Future[bytes] | None = None

    async def next(self, wait_s: float) -> list[Message] | None:
        """Return messages, [] when none came in time, None at the end."""
        deadline = time.monotonic() + wait_s
        while True:
            if self.piece is None:
                self.piece = asyncio.ensure_future(self.response.content.readany())
            done, _ = await asyncio.wait({self.piece}, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                return []
            piece, self.piece = self.piece, None
            try:
                data = piece.result()
            except TimeoutError as error:
                raise BrokenStreamError(f"{self.name} fell silent") from error
            except (aiohttp.ClientError, OSError) as error:
                raise BrokenStreamError(f"{self.name} broke off ({reason(error)})") from error
            if not data:
                return None
            if messages := self.parser.feed(data):
                return messages

    async def close(self) -> None:
        """Let go of the connection."""
        if self.piece is not None:
            self.piece.cancel()
            await asyncio.wait({self.piece})
        self.response.close()


async def _read(response: aiohttp.ClientResponse) -> Answer:
    body = bytearray()
    async for piece in response.content.iter_chunked(1 << 16):
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise AnswerError(f"the answer is larger than {MAX_ANSWER_BYTES >> 20} MiB; it was not read further")
    return Answer(response.status, bytes(body), response.headers.get("X-Correlation-Id", ""))


def refusal(answer: Answer, name: str) -> ApiError:
    """Return the error that an answer from 400 on stands for, whether or not it has our error format."""
    try:
        told = _Refusal.model_validate_json(answer.body).error
    except ValidationError:
        told = _Told()
    message = told.message[:MAX_REFUSAL_CHARACTERS] or f"{name} answered with HTTP status {answer.status} and no reason"
    if answer.status == HTTPStatus.INTERNAL_SERVER_ERROR and answer.correlation_id:
        message += f" (correlation id {answer.correlation_id}, to be found in its log)"
    return ApiError(message, answered_code=told.code or f"http_{answer.status}", http_status=answer.status)


def reason(error: BaseException) -> str:
    """Return the shortest text that tells what happened."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__
