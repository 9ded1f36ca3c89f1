"""audit: owns the endpoints of the audit trail, and the one by which the agent adds to it."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from loopd.alerts import Alert, Alerts
from loopd.api.schema import AuditBatch, AuditEntryView, AuditList, AuditRecord, AuditVerdict
from loopd.api.web import Endpoint, Query, json_response, read_body, read_query
from loopd.audit import ANCHORED, PAGE, Entry, Record, Trail
from loopd.ledger import Ledger
from loopd.principal import Role

AFTER = Query(name="after", description="entries after this sequence number")
LIMIT = Query(name="limit", description="at most so many", least=1, most=PAGE, default=100)

ALERTING = {
    "input.held": "An input waits for a review",
    "input.blocked": "An input was blocked",
    "output.held": "An answer waits for a review",
}


@dataclass(frozen=True, kw_only=True)
class AuditRoutes:
    """Handlers over the trail."""

    trail: Trail
    ledger: Ledger

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints for the operator."""
        return (
            Endpoint(
                method="GET",
                path="/v1/audit",
                handler=self.list_audit,
                role=Role.OPERATOR,
                summary="The audit trail",
                answer=AuditList,
                query=(AFTER, LIMIT),
                errors=(503,),
            ),
            Endpoint(
                method="GET",
                path="/v1/audit/last",
                handler=self.last_audit,
                role=Role.OPERATOR,
                summary="The newest entries of the audit trail",
                answer=AuditList,
                query=(LIMIT,),
                errors=(503,),
            ),
            Endpoint(
                method="GET",
                path="/v1/audit/users/{user:[A-Za-z0-9._@-]{1,64}}",
                handler=self.audit_of_user,
                role=Role.OPERATOR,
                summary="What one user did",
                answer=AuditList,
                query=(AFTER, LIMIT),
                errors=(404, 503),
            ),
            Endpoint(
                method="POST",
                path="/v1/audit/verify",
                handler=self.verify_audit,
                summary="Look through the audit trail and the ledger for changes",
                answer=AuditVerdict,
                errors=(503,),
            ),
        )

    async def list_audit(self, request: web.Request) -> web.Response:
        """Read a page."""
        return await self._page(request, "")

    async def audit_of_user(self, request: web.Request) -> web.Response:
        """Read a page of one user's."""
        return await self._page(request, request.match_info["user"])

    async def last_audit(self, request: web.Request) -> web.Response:
        """Read the newest."""
        await self.trail.flush()
        return _list(await self.trail.last(read_query(request, LIMIT)), 0)

    async def verify_audit(self, request: web.Request) -> web.Response:
        """Look through everything."""
        del request
        found = await self.trail.verify(await self._anchors())
        broken = await self.ledger.verify()
        return json_response(
            AuditVerdict(
                ok=found.ok and broken is None,
                entries=found.entries,
                first_bad=found.first_bad,
                why=found.why,
                ledger_first_bad=broken,
            )
        )

    async def _page(self, request: web.Request, user: str) -> web.Response:
        after = read_query(request, AFTER)
        await self.trail.flush()
        return _list(await self.trail.read(after=after, limit=read_query(request, LIMIT), user=user), after)

    async def _anchors(self) -> list[tuple[int, str]]:
        found, after = [], 0
        while page := await self.ledger.read(after=after):
            found += [(int(str(e.detail["seq"])), str(e.detail["hash"])) for e in page if e.event == ANCHORED]
            after = page[-1].seq
        return found


@dataclass(frozen=True, kw_only=True)
class AuditIntake:
    """The handler that the agent may call: it adds, and reads nothing."""

    trail: Trail
    alerts: Alerts

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoint that the agent is given."""
        return (
            Endpoint(
                method="POST",
                path="/v1/audit",
                handler=self.add_audit,
                summary="Add entries; one key is written once",
                body=AuditBatch,
                status=204,
                errors=(503,),
            ),
        )

    async def add_audit(self, request: web.Request) -> web.Response:
        """Add what the agent did; answered when it is on the disk."""
        batch = await read_body(request, AuditBatch)
        for record in await self.trail.write([_record(told) for told in batch.entries]):
            if record.event in ALERTING:
                text = f"{ALERTING[record.event]}: risk {record.detail.get('score', '?')} of 100."
                await self.alerts.raise_alert(
                    Alert(event=record.event, subject=record.user, text=text, detail=dict(record.detail))
                )
        return web.Response(status=204)


def _record(told: AuditRecord) -> Record:
    return Record(
        event=told.event,
        user=told.user,
        subject=told.subject,
        detail=told.detail,
        correlation_id=told.correlation_id,
        at=told.at,
        source="agent",
        key=told.id,
    )


def _list(entries: list[Entry], after: int) -> web.Response:
    views = [
        AuditEntryView(
            seq=e.seq, at=e.at, source=e.source, event=e.event, user=e.user, subject=e.subject,
            correlation_id=e.correlation_id, detail=dict(e.detail), hash=e.hash,
        )
        for e in entries
    ]  # fmt: skip
    return json_response(AuditList(entries=views, next_after=entries[-1].seq if entries else after))
