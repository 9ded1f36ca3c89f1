"""lease: owns the Lease, a sandbox lent to a session, and the rows of state.db that outlive loopd."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from loopd.state import Database
from loopd.units import EGRESS_SOCKET, TOOL_SOCKET, SandboxKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A sandbox lent."""

    id: str
    sandbox: str
    session: str
    started_at: datetime
    expires_at: datetime
    kind: SandboxKind = "tools"
    hosts: tuple[str, ...] = ()  #: granted, as they were asked for

    @property
    def socket(self) -> str:
        """Path of the tool runner's socket below the lease directory."""
        return f"{self.id}/{TOOL_SOCKET}"

    @property
    def egress(self) -> str | None:
        """Path of the way out inside the sandbox, None when no host was granted."""
        return f"/run/toolrunner/{EGRESS_SOCKET}" if self.hosts else None

    def renewed(self, now: datetime, ttl_s: float, *, life_s: float) -> Lease:
        """Return it with ``ttl_s`` seconds from now, but never beyond its whole life."""
        end = min(now + timedelta(seconds=ttl_s), self.started_at + timedelta(seconds=life_s))
        return replace(self, expires_at=end)


class Leases:
    """The leases in state.db; they survive loopd."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, lease: Lease) -> None:
        """Write one down."""
        await self._database.execute(
            "INSERT INTO leases (id, sandbox, session, kind, hosts, started_at, expires_at) VALUES (?,?,?,?,?,?,?)",
            (
                lease.id,
                lease.sandbox,
                lease.session,
                lease.kind,
                json.dumps(lease.hosts),
                lease.started_at.isoformat(),
                lease.expires_at.isoformat(),
            ),
        )

    async def extend(self, lease: Lease) -> None:
        """Write its new end down."""
        await self._database.execute(
            "UPDATE leases SET expires_at = ? WHERE id = ?", (lease.expires_at.isoformat(), lease.id)
        )

    async def all(self) -> list[Lease]:
        """Return every lease."""
        rows = [dict(row) for row in await self._database.fetch_all("SELECT * FROM leases")]
        return [
            Lease(
                id=row["id"],
                sandbox=row["sandbox"],
                session=row["session"],
                kind=row["kind"],
                hosts=tuple(json.loads(row["hosts"])),
                started_at=datetime.fromisoformat(row["started_at"] or row["expires_at"]),
                expires_at=datetime.fromisoformat(row["expires_at"]),
            )
            for row in rows
        ]

    async def drop(self, lease: str) -> None:
        """Forget one."""
        await self._database.execute("DELETE FROM leases WHERE id = ?", (lease,))
