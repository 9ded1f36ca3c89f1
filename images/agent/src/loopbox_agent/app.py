"""app: owns the HTTP service: routes, error bodies, limits, correlation ids, and the start and stop of the parts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import anyio
import structlog
import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loopbox_agent.engine import Engine, EngineUnavailableError
from loopbox_agent.errors import AgentError, body_of, error_body, error_response, response_of
from loopbox_agent.logs import configure_logs
from loopbox_agent.metrics import Metrics
from loopbox_agent.runs import Event, RunRequest, RunResult, Runs, failed
from loopbox_agent.sandbox import Broker
from loopbox_agent.settings import Settings
from loopbox_agent.slots import Slots

CORRELATION = "X-Correlation-Id"
_CORRELATION = re.compile(r"[A-Za-z0-9._-]{8,64}")
READY_CACHE_S = 1.0
READY_PROBE_S = 2.0
KEEPALIVE_S = 15.0

log = structlog.get_logger("agent.http")


class TooLargeError(AgentError):
    """The request's body is larger than it may be."""

    code = "too_large"
    status = 413


@dataclass
class Parts:
    """What the routes work with."""

    settings: Settings
    metrics: Metrics
    engine: Engine
    broker: Broker
    runs: Runs
    slots: Slots
    started_at: float = field(default_factory=time.monotonic)
    _checked_at: float = float("-inf")
    _reason: str = ""
    _checking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def unready(self) -> str:
        """Return why the agent cannot answer, '' when it can; asked of the engine once a second at most."""
        async with self._checking:
            if time.monotonic() - self._checked_at > READY_CACHE_S:
                try:
                    await self.engine.check(timeout_s=READY_PROBE_S)
                    self._reason = ""
                except EngineUnavailableError as error:
                    self._reason = str(error)
                self._checked_at = time.monotonic()
            return self._reason


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


Wired = Annotated[Parts, Depends(_parts)]


def package_version() -> str:
    """Return the version the image was built as."""
    try:
        return version("loopbox")
    except PackageNotFoundError:
        return "unpackaged"


def build_app(settings: Settings) -> FastAPI:
    """Return the service; nothing is opened before its lifespan begins."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        metrics = Metrics()
        engine, broker = Engine(settings, metrics), Broker(settings)
        app.state.parts = Parts(
            settings,
            metrics,
            engine,
            broker,
            Runs(settings, engine, broker, metrics),
            Slots(settings.max_concurrent_runs, metrics),
        )
        try:
            yield
        finally:
            await engine.close()
            await broker.close()

    app = FastAPI(title="loopbox agent", version=package_version(), lifespan=lifespan)
    app.add_middleware(_Correlate)
    _handle_errors(app)
    _add_routes(app)
    return app


class _Correlate:
    """Gives each request a correlation id. Plain ASGI: the framework's own kind hides a client's leaving."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(CORRELATION, "")
        correlation_id = given if _CORRELATION.fullmatch(given) else secrets.token_hex(8)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[CORRELATION] = correlation_id
            await send(message)

        structlog.contextvars.clear_contextvars()
        with structlog.contextvars.bound_contextvars(correlation_id=correlation_id):
            try:
                await self._app(scope, receive, send_named)
            except Exception as error:
                # Here, since the framework's last resort answers outside of this and without the id.
                log.exception("request.failed", path=scope["path"])
                with contextlib.suppress(RuntimeError):  # the answer had begun
                    await error_response(500, body_of(error))(scope, receive, send_named)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(AgentError)
    async def _ours(_: Request, error: AgentError) -> JSONResponse:
        return response_of(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = [f"{'.'.join(str(s) for s in f['loc'][1:]) or 'body'}: {f['msg']}" for f in error.errors()[:10]]
        return error_response(422, error_body("validation", "; ".join(faults), {"faults": list(faults)}))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        code = HTTPStatus(error.status_code).name.lower()
        message = f"{request.method} {request.url.path}: {error.detail}"
        return error_response(error.status_code, error_body(code, message), headers=error.headers)


async def _asked(request: Request) -> RunRequest:
    """Read and parse the body, within its limits of size and time."""
    settings = _parts(request).settings
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > settings.max_body_bytes:
                    raise TooLargeError(f"A request may have {settings.max_body_bytes} bytes; nothing was run.")
    except TimeoutError as error:
        raise HTTPException(408, "the body did not arrive in time") from error
    try:
        return RunRequest.model_validate_json(bytes(body))
    except ValueError as error:
        faults: list[Any] = getattr(error, "errors", list)()  # Any: pydantic's dicts
        raise RequestValidationError([{**f, "loc": ("body", *f["loc"])} for f in faults]) from error


def _add_routes(app: FastAPI) -> None:
    body = {"requestBody": {"content": {"application/json": {"schema": RunRequest.model_json_schema()}}}}

    @app.post("/agents/run-agent", response_model=RunResult, openapi_extra=body)
    async def run_agent(request: Request, parts: Wired) -> Response:
        """Run an instruction; with "stream" true the answer is a stream of server-sent events."""
        asked = await _asked(request)
        correlation_id = str(structlog.contextvars.get_contextvars().get("correlation_id", ""))
        if asked.stream or "text/event-stream" in request.headers.get("Accept", ""):
            taken = parts.slots.take()
            taken.__enter__()  # released by the stream's end, which this function does not see
            events = _stream(request, asked, correlation_id, lambda: taken.__exit__(None, None, None))
            return _EventStream(events, send_timeout_s=parts.settings.send_timeout_s)
        with parts.slots.take():
            return JSONResponse(await _last(request, parts.runs.run(asked, correlation_id=correlation_id)))

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Tell that the process answers."""
        return {"status": "ok"}

    @app.get("/health/ready")
    async def ready(parts: Wired) -> Response:
        """Tell whether a request would be answered now."""
        if reason := await parts.unready():
            return error_response(503, error_body("engine_unavailable", reason), retry_after_s=2)
        return JSONResponse({"status": "ready"})

    @app.get("/health/detailed")
    async def detailed(parts: Wired) -> dict[str, Any]:
        """Tell of each part. Never a secret."""
        reason = await parts.unready()
        broker = parts.broker.is_there()
        return {
            "status": "ok" if not reason and broker else "degraded",
            "engine": {"ready": not reason, "reason": reason},
            "broker": {"ready": broker, "reason": "" if broker else "its socket is not there"},
            "running_runs": parts.slots.taken,
            "most_runs": parts.slots.most,
            "uptime_s": round(time.monotonic() - parts.started_at, 1),
            "version": package_version(),
        }

    @app.get("/metrics")
    async def metrics(parts: Wired) -> Response:
        """Serve Prometheus metrics."""
        return Response(generate_latest(parts.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _last(request: Request, events: AsyncIterator[Event]) -> Any:  # Any: JSON
    """Return the body of the last event; a client that goes away ends the run."""

    async def drain() -> Any:  # Any: JSON
        async with aclosing(events) as stream:  # type: ignore[type-var]  # it is a generator
            async for event in stream:
                last = event
        return last.body

    work, leaving = asyncio.create_task(drain()), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise HTTPException(499, "the client went away")
        return work.result()
    finally:
        for task in (work, leaving):
            task.cancel()
        await asyncio.gather(work, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Return once the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _next(events: AsyncIterator[Event]) -> Event:
    return await anext(events)


class _EventStream(StreamingResponse):
    """Server-sent events to a client that must take each one in time, or is taken for gone."""

    def __init__(self, events: AsyncGenerator[bytes], *, send_timeout_s: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._events = events
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, and end the run on every way out."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._send_timeout_s):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            log.warning("stream.client_stalled", seconds=self._send_timeout_s)
        finally:
            await self._events.aclose()


async def _stream(
    request: Request, asked: RunRequest, correlation_id: str, release: Callable[[], object]
) -> AsyncGenerator[bytes]:
    number = 0
    leaving = asyncio.create_task(_gone(request))
    step: asyncio.Task[Event] | None = None
    try:
        async with aclosing(_parts(request).runs.run(asked, correlation_id=correlation_id)) as events:  # type: ignore[type-var]
            try:
                while True:
                    # A model may be silent for long, and the client gone all that time.
                    step = step or asyncio.create_task(_next(events))
                    await asyncio.wait({step, leaving}, timeout=KEEPALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                    if leaving.done():
                        return
                    if not step.done():
                        yield b": still running\n\n"
                        continue
                    event, step = step.result(), None
                    number += 1
                    yield _frame(number, event.name, event.body)
                    if event.name == "run.completed":
                        return
            finally:
                if step is not None:
                    step.cancel()
                    with anyio.CancelScope(shield=True):  # the server's own scope cancels again at every wait
                        await asyncio.wait({step})
                    if not step.cancelled():
                        step.exception()  # looked at, so that it is not told of as forgotten
    except Exception as error:
        if not isinstance(error, AgentError):
            log.exception("run.failed")
        yield _frame(number + 1, "run.failed", failed(error))
    finally:
        leaving.cancel()
        release()


def _frame(number: int, name: str, body: Any) -> bytes:  # Any: JSON
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(body)}\n\n".encode()


def main() -> None:
    """Serve; what the image starts."""
    settings = Settings()
    configure_logs(settings.log_level)
    uvicorn.run(
        build_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=8,
        limit_concurrency=settings.max_concurrent_runs * 4,
    )


if __name__ == "__main__":
    main()
