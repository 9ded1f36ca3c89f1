"""releases: owns the control API's endpoints about releases."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from loopd.api.schema import ReleaseList, ReleaseView, RolloutView
from loopd.api.web import Endpoint, json_response
from loopd.errors import NotFoundError
from loopd.registry import Registry
from loopd.rollout import Rollouts
from loopd.status import Status

RELEASE = "/v1/releases/{reference:[A-Za-z0-9._ -]{1,80}}"


@dataclass(frozen=True, kw_only=True)
class ReleaseRoutes:
    """Handlers over the registry."""

    status: Status
    registry: Registry
    rollouts: Rollouts

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints; the fixed paths first, since a name may look like them."""
        return (
            Endpoint(
                method="GET",
                path="/v1/releases",
                handler=self.list_releases,
                summary="All releases",
                answer=ReleaseList,
            ),
            Endpoint(
                method="POST",
                path="/v1/releases/rollback",
                handler=self.rollback,
                summary="Return to the release that served before",
                answer=RolloutView,
                status=202,
                errors=(409,),
            ),
            Endpoint(
                method="GET",
                path=RELEASE,
                handler=self.get_release,
                summary="One release",
                answer=ReleaseView,
                errors=(404, 409),
            ),
            Endpoint(
                method="POST",
                path=RELEASE + "/promote",
                handler=self.promote,
                summary="Roll a known release out",
                answer=RolloutView,
                status=202,
                errors=(404, 409),
            ),
        )

    async def list_releases(self, _: web.Request) -> web.Response:
        """List releases."""
        return json_response(ReleaseList(releases=await self.status.releases()))

    async def get_release(self, request: web.Request) -> web.Response:
        """Show one."""
        release = await self.registry.find(request.match_info["reference"])
        for view in await self.status.releases():
            if view.id == release.id:
                return json_response(view)
        raise NotFoundError(f"release {release.short} is older than the newest 200")

    async def promote(self, request: web.Request) -> web.Response:
        """Ask for a rollout of a known release."""
        release = await self.registry.find(request.match_info["reference"])
        rollout = await self.rollouts.request(release, kind="rollout", reason="asked for by the operator")
        return json_response(await self.status.rollout(rollout), 202)

    async def rollback(self, _: web.Request) -> web.Response:
        """Ask for the return to the previous release."""
        return json_response(await self.status.rollout(await self.rollouts.request_rollback()), 202)
