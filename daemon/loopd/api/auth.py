"""auth: owns the endpoints by which users log in and out; clients reach them through the gateway, too."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import web

from loopd.api.schema import JwkSetView, LoginRequest, PairView, RefreshRequest, WhoView
from loopd.api.web import PRINCIPAL, Endpoint, address_of, json_response, read_body
from loopd.login import Login
from loopd.principal import Role
from loopd.tokens import Pair

BODY_BYTES = 8192


@dataclass(frozen=True, kw_only=True)
class AuthRoutes:
    """Handlers over logins."""

    login: Login

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints: all that the gateway can reach of loopd."""
        return (
            Endpoint(
                method="POST",
                path="/auth/login",
                handler=self.log_in,
                summary="Log in with name and password",
                body=LoginRequest,
                answer=PairView,
                public=True,
                errors=(401, 429, 503, 507),
            ),
            Endpoint(
                method="POST",
                path="/auth/refresh",
                handler=self.refresh,
                summary="Exchange a refresh token",
                body=RefreshRequest,
                answer=PairView,
                public=True,
                errors=(401, 429, 503, 507),
            ),
            Endpoint(
                method="POST",
                path="/auth/logout",
                handler=self.log_out,
                summary="End this login, or this service token",
                status=204,
                role=Role.VIEWER,
                errors=(409,),
            ),
            Endpoint(
                method="GET",
                path="/auth/whoami",
                handler=self.who_am_i,
                summary="Who asks",
                answer=WhoView,
            ),
            Endpoint(
                method="GET",
                path="/.well-known/jwks.json",
                handler=self.jwks,
                summary="The keys that verify our tokens",
                answer=JwkSetView,
                public=True,
            ),
        )

    async def log_in(self, request: web.Request) -> web.Response:
        """Check the password."""
        asked = await read_body(request, LoginRequest, most=BODY_BYTES)
        return self._pair(
            await self.login.log_in(asked.username, asked.password.get_secret_value(), address_of(request))
        )

    async def refresh(self, request: web.Request) -> web.Response:
        """Exchange."""
        asked = await read_body(request, RefreshRequest, most=BODY_BYTES)
        return self._pair(await self.login.refresh(asked.refresh_token.get_secret_value(), address_of(request)))

    async def log_out(self, request: web.Request) -> web.Response:
        """End it."""
        await self.login.log_out(request[PRINCIPAL])
        return web.Response(status=204)

    async def who_am_i(self, request: web.Request) -> web.Response:
        """Tell."""
        who = request[PRINCIPAL]
        until = None if who.expires_at is None else datetime.fromtimestamp(who.expires_at, UTC)
        return json_response(WhoView(user=who.user, role=who.role, kind=who.kind, expires_at=until))

    async def jwks(self, _: web.Request) -> web.Response:
        """Show the public keys."""
        response = json_response(JwkSetView.model_validate(self.login.tokens.keyring.jwks()))
        response.headers["Cache-Control"] = "public, max-age=300"
        return response

    def _pair(self, pair: Pair) -> web.Response:
        now = int(self.login.tokens.clock())
        response = json_response(
            PairView(
                access_token=pair.access.text,
                expires_in=pair.access.expires_at - now,
                refresh_token=pair.refresh,
                refresh_expires_in=pair.refresh_expires_at - now,
                user=pair.access.user,
                role=pair.access.role,
            )
        )
        response.headers["Cache-Control"] = "no-store"
        return response
