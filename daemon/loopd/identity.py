"""identity: owns telling whom a request of the control API is from: the control token, or a JWT of a user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loopd.auth import Token, UnauthenticatedError
from loopd.principal import LOCAL, Principal, Role
from loopd.tokens import Tokens

SOCKET = Principal(user=LOCAL, role=Role.ADMIN, kind="socket")  # the socket's file mode is the lock
CONTROL = Principal(user=LOCAL, role=Role.ADMIN, kind="control")
JWT_DOTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who may come in over TCP."""

    tokens: Tokens
    control: Token | None  #: None where the control token is no way in

    async def of(self, headers: Sequence[str]) -> Principal:
        """Return who sent these Authorization headers; more than one is none. Raises UnauthenticatedError."""
        header = headers[0] if len(headers) == 1 else None
        scheme, _, given = (header or "").partition(" ")
        if scheme.lower() == "bearer" and given.count(".") == JWT_DOTS:
            return await self.tokens.verify(given.strip())
        if self.control is None:
            raise UnauthenticatedError("this needs `Authorization: Bearer <token>`, once; nothing was done")
        self.control.require(header)
        return CONTROL
