"""users: owns the control API's endpoints about users, their tokens and the keys that sign them; for admins."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import web

from loopd.api.schema import (
    AddUserRequest,
    ChangeUserRequest,
    IssuedView,
    IssueRequest,
    KeyView,
    RevokedView,
    RevokeRequest,
    RotateRequest,
    TokenList,
    TokenView,
    UserList,
    UserView,
)
from loopd.api.web import Endpoint, json_response, read_body
from loopd.doors import DoorKeeper
from loopd.principal import USER_PATTERN, Role
from loopd.tokens import TokenRow
from loopd.users import User, Users

USER = f"/v1/users/{{name:{USER_PATTERN}}}"
SHORT_S = 1800
ADMIN = "asked for by an admin"


@dataclass(frozen=True, kw_only=True)
class UserRoutes:
    """Handlers over users and tokens."""

    users: Users
    doors: DoorKeeper

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints."""
        return (
            Endpoint(
                method="GET",
                path="/v1/users",
                handler=self.list_users,
                summary="All users",
                answer=UserList,
                role=Role.ADMIN,
            ),
            Endpoint(
                method="POST",
                path="/v1/users",
                handler=self.add_user,
                summary="Add a user",
                body=AddUserRequest,
                answer=UserView,
                status=201,
                role=Role.ADMIN,
                errors=(409,),
            ),
            Endpoint(
                method="PATCH",
                path=USER,
                handler=self.change_user,
                summary="Change a user; it ends the user's tokens",
                body=ChangeUserRequest,
                answer=UserView,
                role=Role.ADMIN,
                errors=(404,),
            ),
            Endpoint(
                method="DELETE",
                path=USER,
                handler=self.remove_user,
                summary="Remove a user with all tokens",
                status=204,
                role=Role.ADMIN,
                errors=(404,),
            ),
            Endpoint(
                method="GET",
                path="/v1/tokens",
                handler=self.list_tokens,
                summary="Tokens that live",
                answer=TokenList,
                role=Role.ADMIN,
            ),
            Endpoint(
                method="POST",
                path="/v1/tokens",
                handler=self.issue_token,
                summary="Make a token for a program",
                body=IssueRequest,
                answer=IssuedView,
                status=201,
                role=Role.ADMIN,
                errors=(409,),
            ),
            Endpoint(
                method="POST",
                path="/v1/tokens/revoke",
                handler=self.revoke_tokens,
                summary="Revoke a token, a login, or all of a user",
                body=RevokeRequest,
                answer=RevokedView,
                role=Role.ADMIN,
                errors=(404,),
            ),
            Endpoint(
                method="POST",
                path="/v1/keys/rotate",
                handler=self.rotate_keys,
                summary="Sign with a new key",
                body=RotateRequest,
                answer=KeyView,
                role=Role.ADMIN,
                errors=(409,),
            ),
        )

    async def list_users(self, _: web.Request) -> web.Response:
        """List them."""
        return json_response(UserList(users=[user_view(user) for user in await self.users.newest()]))

    async def add_user(self, request: web.Request) -> web.Response:
        """Add one."""
        asked = await read_body(request, AddUserRequest)
        user = await self.users.add(asked.name, asked.role, asked.password.get_secret_value())
        return json_response(user_view(user), 201)

    async def change_user(self, request: web.Request) -> web.Response:
        """Change one."""
        asked = await read_body(request, ChangeUserRequest)
        user = await self.users.change(
            request.match_info["name"],
            role=asked.role,
            password=asked.password.get_secret_value() if asked.password else None,
            disabled=asked.disabled,
        )
        await self._end_tokens(user.name)
        return json_response(user_view(user))

    async def remove_user(self, request: web.Request) -> web.Response:
        """Remove one."""
        await self.users.remove(request.match_info["name"])
        await self._end_tokens(request.match_info["name"])
        return web.Response(status=204)

    async def _end_tokens(self, user: str) -> None:
        if await self.doors.tokens.revoke("the user was changed", user=user):
            await self.doors.tell()

    async def list_tokens(self, _: web.Request) -> web.Response:
        """List them."""
        return json_response(TokenList(tokens=[token_view(row) for row in await self.doors.tokens.living()]))

    async def issue_token(self, request: web.Request) -> web.Response:
        """Make one."""
        asked = await read_body(request, IssueRequest)
        issued = await self.doors.tokens.issue(
            asked.user,
            asked.role,
            ttl_s=int(min(asked.ttl_s, SHORT_S) if asked.short else asked.ttl_s),
            name=asked.name,
            kind="access" if asked.short else "service",
            told=ADMIN,
        )
        view = IssuedView(
            token=issued.text,
            jti=issued.jti,
            user=issued.user,
            role=issued.role,
            expires_at=datetime.fromtimestamp(issued.expires_at, UTC),
        )
        response = json_response(view, 201)
        response.headers["Cache-Control"] = "no-store"
        return response

    async def revoke_tokens(self, request: web.Request) -> web.Response:
        """Revoke."""
        asked = await read_body(request, RevokeRequest)
        count = await self.doors.tokens.revoke(
            ADMIN,
            jti=asked.id if asked.of == "token" else "",
            family=asked.id if asked.of == "login" else "",
            user=asked.id if asked.of == "user" else "",
        )
        return json_response(RevokedView(tokens=count, in_force=await self.doors.tell()))

    async def rotate_keys(self, request: web.Request) -> web.Response:
        """Rotate."""
        asked = await read_body(request, RotateRequest)
        kid = await self.doors.rotate(ADMIN, revoke=asked.revoke)
        return json_response(KeyView(kid=kid, verifying=len(self.doors.keyring.public())))


def user_view(user: User) -> UserView:
    """Return a user as the API shows one."""
    return UserView.model_validate(user, from_attributes=True)


def token_view(row: TokenRow) -> TokenView:
    """Return a token as the API shows it."""
    return TokenView.model_validate(
        {
            "jti": row.jti,
            "kind": row.kind,
            "family": row.family,
            "user": row.user,
            "role": row.role,
            "name": row.name,
            "issued_at": datetime.fromtimestamp(row.issued_at, UTC),
            "expires_at": datetime.fromtimestamp(row.expires_at, UTC),
        }
    )
