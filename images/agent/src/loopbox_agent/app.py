"""app: owns the HTTP service: its routes and error bodies put together, and the start and stop of the parts."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from loopbox_agent import (
    routes_health,
    routes_learning,
    routes_memory,
    routes_review,
    routes_runs,
    routes_threads,
    routes_tools,
    run_socket,
)
from loopbox_agent.bodies import faults_of, lift
from loopbox_agent.correlate import Correlate
from loopbox_agent.errors import AgentError, error_body, error_response, response_of
from loopbox_agent.logs import configure_logs
from loopbox_agent.parts import Parts, open_parts, package_version
from loopbox_agent.serving import Serving
from loopbox_agent.settings import Settings

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def build_app(settings: Settings) -> FastAPI:
    """Return the service; nothing is opened before its lifespan begins."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_parts(settings) as parts:
            app.state.parts = parts
            yield

    app = FastAPI(
        title="loopbox agent",
        version=package_version(),
        lifespan=lifespan,
        docs_url=None,  # these pages load programs from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    document = app.openapi
    app.openapi = lambda: lift(document())  # type: ignore[method-assign]  # the framework's documented way
    app.add_middleware(Correlate)
    _handle_errors(app)
    for module in (
        routes_runs,
        run_socket,
        routes_threads,
        routes_memory,
        routes_review,
        routes_learning,
        routes_tools,
        routes_health,
    ):
        app.include_router(module.router)
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(AgentError)
    async def _ours(_: Request, error: AgentError) -> JSONResponse:
        return response_of(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = faults_of(error)
        if any(fault["loc"][0] == "path" for fault in error.errors()):
            return error_response(404, error_body("not_found", f"There can be nothing at this address: {faults[0]}."))
        return error_response(422, error_body("validation", "; ".join(faults), {"faults": list(faults)}))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        code = HTTPStatus(error.status_code).name.lower()
        message = f"{request.method} {request.url.path}: {error.detail}"
        headers = {"Allow": ", ".join(_allowed(request))} if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED else {}
        return error_response(error.status_code, error_body(code, message), headers=headers)


def _allowed(request: Request) -> list[str]:
    """Return the methods that an address takes; the router itself tells those of its first route alone."""
    routes: list[BaseRoute] = request.app.router.routes
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    return [method for method, scope in scopes.items() if any(r.matches(scope)[0] is Match.FULL for r in routes)]


def main() -> None:
    """Serve; what the image starts."""
    settings = Settings()
    configure_logs(settings.log_level)
    # What was imported stays for good: looking through it again and again took a tenth of a run's time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    app = build_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        ws="websockets-sansio",
        ws_max_size=settings.max_body_bytes,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,  # for what is no run: those have ended before
        limit_concurrency=settings.max_concurrent_runs * 4,
    )

    async def stop() -> None:
        parts: Parts = app.state.parts
        await parts.hub.close()

    Serving(config, stop).run()


if __name__ == "__main__":
    main()
