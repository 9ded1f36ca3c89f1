"""host: owns the control API's endpoints about loopd itself: health, status, metrics, the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from loopd import version
from loopd.api.schema import HealthView, StatusView
from loopd.api.web import Endpoint, dumps, json_response, openapi
from loopd.ledger import Ledger
from loopd.metrics import Metrics
from loopd.status import Status


@dataclass(frozen=True, kw_only=True)
class HostRoutes:
    """Handlers about the whole."""

    status: Status
    ledger: Ledger
    metrics: Metrics
    all: Callable[[], tuple[Endpoint, ...]]  #: every endpoint, for the document

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints."""
        return (
            Endpoint(
                method="GET",
                path="/healthz",
                handler=self.health,
                summary="loopd answers",
                answer=HealthView,
                public=True,
            ),
            Endpoint(
                method="GET",
                path="/openapi.json",
                handler=self.document,
                summary="This document",
                public=True,
            ),
            Endpoint(
                method="GET",
                path="/metrics",
                handler=self.prometheus,
                summary="Prometheus metrics",
                media="text/plain",
            ),
            Endpoint(
                method="GET",
                path="/v1/status",
                handler=self.get_status,
                summary="How everything is",
                answer=StatusView,
            ),
        )

    async def health(self, _: web.Request) -> web.Response:
        """Answer while the loop runs."""
        return json_response(HealthView(version=version()))

    async def document(self, _: web.Request) -> web.Response:
        """Serve the OpenAPI document."""
        return web.Response(text=dumps(openapi(self.all(), version=version())), content_type="application/json")

    async def prometheus(self, _: web.Request) -> web.Response:
        """Serve the metrics."""
        self.metrics.ledger_length.set(await self.ledger.newest())
        return web.Response(
            body=self.metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def get_status(self, _: web.Request) -> web.Response:
        """Look and tell."""
        return json_response(await self.status.view())
