"""routes_health: owns the routes that say how the agent is."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from loopbox_agent.errors import error_body, error_response, refusals
from loopbox_agent.parts import Wired, package_version

router = APIRouter(tags=["health"])

METRICS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/health")
async def health() -> dict[str, str]:
    """Tell that the process answers."""
    return {"status": "ok"}


@router.get("/health/ready", response_model=dict[str, str], responses=refusals(503))
async def ready(parts: Wired) -> Response:
    """Tell whether a request would be answered now."""
    if reason := await parts.unready():
        return error_response(503, error_body("engine_unavailable", reason), retry_after_s=2)
    return JSONResponse({"status": "ready"})


@router.get("/health/detailed")
async def detailed(parts: Wired) -> dict[str, Any]:
    """Tell of each part. Never a secret."""
    reason = await parts.unready()
    broker = parts.broker.is_there()
    return {
        "status": "ok" if not reason and broker else "degraded",
        "engine": {"ready": not reason, "reason": reason},
        "broker": {"ready": broker, "reason": "" if broker else "its socket is not there"},
        "models": [asdict(member) for member in parts.pool.snapshot()],
        # Those of users' servers name the user, which is nobody else's business.
        "tools_left_alone": [
            asdict(one)
            for one in parts.breakers.snapshot(time.monotonic())
            if one.state != "closed" and one.name.count("/") == 1
        ],
        "running_runs": parts.slots.taken,
        "most_runs": parts.slots.most,
        "uptime_s": round(time.monotonic() - parts.started_at, 1),
        "version": package_version(),
    }


@router.get("/metrics", response_class=Response, responses=METRICS)
async def metrics(parts: Wired) -> Response:
    """Serve Prometheus metrics."""
    return Response(generate_latest(parts.metrics.registry), media_type=CONTENT_TYPE_LATEST)
