"""sandboxes: owns the endpoints that run commands in sandboxes and lend them; the agent may use the latter."""

from __future__ import annotations

import secrets
import shlex
from dataclasses import dataclass

from aiohttp import web

from loopd.api.schema import ExecRequest, ExecResult, LeaseRequest, LeaseView, RenewRequest
from loopd.api.web import Endpoint, json_response, read_body
from loopd.lease import Lease
from loopd.ledger import Ledger
from loopd.sandbox import Broker
from loopd.toolbox import Toolbox, ToolCallError
from loopd.units import TOOL_SOCKET, Layout

EXEC_LEASE_SLACK_S = 60.0


@dataclass(frozen=True, kw_only=True)
class SandboxRoutes:
    """Handlers over the lease broker."""

    ledger: Ledger
    broker: Broker
    toolbox: Toolbox
    layout: Layout

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints for the operator."""
        return (
            Endpoint(
                method="POST",
                path="/v1/exec",
                handler=self.execute,
                summary="Run a command in a fresh sandbox",
                body=ExecRequest,
                answer=ExecResult,
                errors=(503,),
            ),
        )

    def leases(self) -> tuple[Endpoint, ...]:
        """Return the endpoints that the agent may use, too."""
        return (
            Endpoint(
                method="POST",
                path="/v1/leases",
                handler=self.lease,
                summary="Borrow a sandbox",
                body=LeaseRequest,
                answer=LeaseView,
                status=201,
                errors=(403, 404, 429, 503),
            ),
            Endpoint(
                method="POST",
                path="/v1/leases/{lease:[0-9a-f]{32}}/renew",
                handler=self.renew,
                summary="Keep a sandbox for longer",
                body=RenewRequest,
                answer=LeaseView,
                errors=(404,),
            ),
            Endpoint(
                method="DELETE",
                path="/v1/leases/{lease:[0-9a-f]{32}}",
                handler=self.unlease,
                summary="Give a sandbox back",
                status=204,
                errors=(404,),
            ),
        )

    async def execute(self, request: web.Request) -> web.Response:
        """Run a command in a sandbox of its own, which is gone afterwards."""
        asked = await read_body(request, ExecRequest)
        session = f"exec-{secrets.token_hex(4)}"
        lease = await self.broker.acquire(session, asked.timeout_s + EXEC_LEASE_SLACK_S)
        try:
            await self.ledger.append(
                "sandbox.exec", lease.sandbox, f"{asked.argv[0][:80]} was run", arguments=len(asked.argv)
            )
            result = await self.toolbox.call(
                self.layout.sandboxes / lease.sandbox / TOOL_SOCKET,
                "bash",
                {"command": shlex.join(asked.argv), "timeout_s": asked.timeout_s},
                timeout_s=asked.timeout_s,
            )
        finally:
            self.broker.release_soon(lease.id)
        try:
            known = {key: value for key, value in result.items() if key in ExecResult.model_fields}
            return json_response(ExecResult(**known, sandbox=lease.sandbox))
        except (TypeError, ValueError) as error:
            raise ToolCallError(f"the tool runner's result has another form: {str(result)[:200]}") from error

    async def lease(self, request: web.Request) -> web.Response:
        """Lend a sandbox."""
        asked = await read_body(request, LeaseRequest)
        lease = await self.broker.acquire(asked.session, asked.ttl_s, kind=asked.kind, hosts=asked.hosts)
        return json_response(_view(lease), 201)

    async def renew(self, request: web.Request) -> web.Response:
        """Lend it for longer."""
        asked = await read_body(request, RenewRequest)
        return json_response(_view(await self.broker.renew(request.match_info["lease"], asked.ttl_s)))

    async def unlease(self, request: web.Request) -> web.Response:
        """Take it back."""
        await self.broker.release(request.match_info["lease"])
        return web.Response(status=204)


def _view(lease: Lease) -> LeaseView:
    return LeaseView(
        lease=lease.id,
        socket=lease.socket,
        expires_at=lease.expires_at,
        kind=lease.kind,
        hosts=list(lease.hosts),
        egress=lease.egress,
    )
