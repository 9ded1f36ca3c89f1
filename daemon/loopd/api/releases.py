"""releases: owns the control API's endpoints about releases."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from loopd.api.schema import CollectRequest, CollectView, ReleaseList, ReleaseView, RolloutView
from loopd.api.web import Endpoint, json_response, read_body
from loopd.collect import Collector
from loopd.errors import NotFoundError
from loopd.ledger import Ledger
from loopd.registry import Registry
from loopd.release import SHORT, Release
from loopd.rollout import Rollouts
from loopd.status import Status

RELEASE = "/v1/releases/{reference:[A-Za-z0-9._ -]{1,80}}"


@dataclass(frozen=True, kw_only=True)
class ReleaseRoutes:
    """Handlers over the registry."""

    status: Status
    registry: Registry
    rollouts: Rollouts
    ledger: Ledger
    collector: Collector

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
                method="POST",
                path="/v1/releases/gc",
                handler=self.collect,
                summary="Remove the weights of releases beyond the disk budget",
                body=CollectRequest,
                answer=CollectView,
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
            Endpoint(
                method="PUT",
                path=RELEASE + "/pin",
                handler=self.pin,
                summary="Keep a release from being collected",
                answer=ReleaseView,
                errors=(404, 409),
            ),
            Endpoint(
                method="DELETE",
                path=RELEASE + "/pin",
                handler=self.unpin,
                summary="Let a release be collected again",
                answer=ReleaseView,
                errors=(404, 409),
            ),
        )

    async def list_releases(self, _: web.Request) -> web.Response:
        """List releases."""
        return json_response(ReleaseList(releases=await self.status.releases()))

    async def get_release(self, request: web.Request) -> web.Response:
        """Show one."""
        return await self._show(await self.registry.find(request.match_info["reference"]))

    async def _show(self, release: Release) -> web.Response:
        for view in await self.status.releases():
            if view.id == release.id:
                return json_response(view)
        raise NotFoundError(f"release {release.short} is older than the newest 200")

    async def promote(self, request: web.Request) -> web.Response:
        """Ask for a rollout of a known release."""
        release = await self.registry.find(request.match_info["reference"])
        await self.registry.check_kept(release.id)
        rollout = await self.rollouts.request(release, kind="rollout", reason="asked for by the operator")
        return json_response(await self.status.rollout(rollout), 202)

    async def rollback(self, _: web.Request) -> web.Response:
        """Ask for the return to the previous release."""
        return json_response(await self.status.rollout(await self.rollouts.request_rollback()), 202)

    async def pin(self, request: web.Request) -> web.Response:
        """Keep it."""
        return await self._pin(request, pinned=True)

    async def unpin(self, request: web.Request) -> web.Response:
        """Let it go."""
        return await self._pin(request, pinned=False)

    async def _pin(self, request: web.Request, *, pinned: bool) -> web.Response:
        release = await self.registry.find(request.match_info["reference"])
        if pinned:
            await self.registry.check_kept(release.id)
        if await self.registry.set_pinned(release.id, pinned=pinned):
            event = "release.pinned" if pinned else "release.unpinned"
            await self.ledger.append(event, release.short, "asked for by the operator")
        return await self._show(release)

    async def collect(self, request: web.Request) -> web.Response:
        """Remove what is beyond the budget."""
        asked = await read_body(request, CollectRequest)
        removal = await self.collector.collect(dry_run=asked.dry_run, unknown=True)
        return json_response(
            CollectView(
                dry_run=asked.dry_run,
                releases=[release[:SHORT] for release in removal.releases],
                freed_bytes=removal.freed_bytes,
                kept_bytes=removal.kept_bytes,
                budget_bytes=removal.budget_bytes,
            )
        )
