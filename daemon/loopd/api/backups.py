"""backups: owns the control API's endpoints about backups. Restoring is loopctl's: loopd must not run for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web

from loopd.api.schema import BackupList, BackupView
from loopd.api.web import Endpoint, json_response
from loopd.backup import BackupError, Manifest, read_manifest
from loopd.backup_schedule import Backups
from loopd.backups import Shelf, Stored
from loopd.principal import Role

SHOWN = 100


@dataclass(frozen=True, kw_only=True)
class BackupRoutes:
    """Handlers over the folder of backups."""

    backups: Backups

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints."""
        return (
            Endpoint(
                method="GET",
                path="/v1/backups",
                handler=self.list_backups,
                summary="The newest backups",
                answer=BackupList,
            ),
            Endpoint(
                method="POST",
                path="/v1/backups",
                handler=self.create_backup,
                summary="Make a backup of state, registry and settings",
                answer=BackupView,
                status=201,
                role=Role.ADMIN,
                errors=(409, 503, 507),
            ),
        )

    async def list_backups(self, _: web.Request) -> web.Response:
        """List them."""
        return json_response(await asyncio.to_thread(list_views, self.backups.shelf))

    async def create_backup(self, _: web.Request) -> web.Response:
        """Make one."""
        stored, manifest = await self.backups.create("command")
        return json_response(await asyncio.to_thread(backup_view, stored, manifest), 201)


def list_views(shelf: Shelf) -> BackupList:
    """Return the newest backups as the API shows them. Blocks."""
    return BackupList(folder=str(shelf.folder), backups=[backup_view(stored) for stored in shelf.stored()[:SHOWN]])


def backup_view(stored: Stored, manifest: Manifest | None = None) -> BackupView:
    """Return one as the API shows it; what a damaged one cannot tell is null. Blocks."""
    problem = ""
    try:
        size = stored.path.stat().st_size
        manifest = manifest or read_manifest(stored.path)
    except OSError:
        size, problem = 0, "it is gone"
    except BackupError as error:
        problem = str(error)
    return BackupView(
        name=stored.name,
        created_at=stored.at,
        reason=stored.reason,
        size_bytes=size,
        version=manifest.version if manifest else None,
        state_schema=manifest.state_schema if manifest else None,
        ledger_length=manifest.ledger_length if manifest else None,
        ledger_head=manifest.ledger_head if manifest else None,
        releases=manifest.releases if manifest else None,
        champion=manifest.champion if manifest else None,
        problem=problem,
    )
