"""rollouts: owns the control API's endpoints about rollouts."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from loopd.api.schema import RolloutList, RolloutView
from loopd.api.web import Endpoint, json_response
from loopd.rollout import Rollouts
from loopd.status import Status


@dataclass(frozen=True, kw_only=True)
class RolloutRoutes:
    """Handlers over the rollouts."""

    status: Status
    rollouts: Rollouts

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints."""
        return (
            Endpoint(
                method="GET",
                path="/v1/rollouts",
                handler=self.list_rollouts,
                summary="All rollouts",
                answer=RolloutList,
            ),
            Endpoint(
                method="GET",
                path="/v1/rollouts/{id:[0-9]{1,15}}",
                handler=self.get_rollout,
                summary="One rollout with its steps",
                answer=RolloutView,
                errors=(404,),
            ),
            Endpoint(
                method="POST",
                path="/v1/rollouts/{id:[0-9]{1,15}}/abort",
                handler=self.abort_rollout,
                summary="Turn a rollout back before its promotion",
                answer=RolloutView,
                status=202,
                errors=(404, 409),
            ),
        )

    async def list_rollouts(self, _: web.Request) -> web.Response:
        """List rollouts without their steps."""
        views = [await self.status.rollout(rollout, steps=False) for rollout in await self.rollouts.newest()]
        return json_response(RolloutList(rollouts=views))

    async def get_rollout(self, request: web.Request) -> web.Response:
        """Show one with its steps."""
        rollout = await self.rollouts.get(int(request.match_info["id"]))
        return json_response(await self.status.rollout(rollout))

    async def abort_rollout(self, request: web.Request) -> web.Response:
        """Turn one back; the champion keeps or gets all traffic at once."""
        rollout = await self.rollouts.request_abort(int(request.match_info["id"]))
        return json_response(await self.status.rollout(rollout), 202)
