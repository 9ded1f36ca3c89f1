"""login: owns logging in and out: passwords checked with back-off, tokens given and ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from loopd.attempts import Backoff, Buckets
from loopd.auth import UnauthenticatedError
from loopd.errors import ConflictError
from loopd.ledger import Ledger
from loopd.principal import Principal
from loopd.tokens import Pair, ReusedError, Tokens
from loopd.users import Users

USER_FREE = 5  # failures before a user's next try must wait
USER_MOST_S = 60.0  # short, since a stranger's failures keep the user out, too
ADDRESS_FREE = 10
ADDRESS_MOST_S = 600.0
EVERYBODY = "everybody"
EVERYBODY_RATE = 10.0  # passwords checked a second, whoever asks: the rest of the machine serves
EVERYBODY_BURST = 20.0


@dataclass(kw_only=True)
class Login:
    """The way in."""

    users: Users
    tokens: Tokens
    ledger: Ledger
    per_address: Buckets  #: of logins and exchanges
    tell: Callable[[], Awaitable[object]]  #: the gateway what was revoked
    everybody: Buckets = field(default_factory=lambda: Buckets(EVERYBODY_RATE, EVERYBODY_BURST))
    by_user: Backoff = field(default_factory=lambda: Backoff(USER_FREE, USER_MOST_S))
    by_address: Backoff = field(default_factory=lambda: Backoff(ADDRESS_FREE, ADDRESS_MOST_S))

    async def log_in(self, name: str, password: str, address: str) -> Pair:
        """Check a password and open a login. Raises UnauthenticatedError, SlowDownError (then nothing was checked).

        Whatever is wrong, the words and the time are the same.
        """
        self.per_address.take(address)
        self.by_address.check(address)
        self.by_user.check(name)
        self.everybody.take(EVERYBODY)
        user = await self.users.knows(name, password)
        if user is None:
            self.by_address.failed(address)
            self.by_user.failed(name)
            # A name that nobody has may be a password in the wrong field.
            known = await self.users.find(name)
            await self.ledger.append(
                "login.refused",
                known.name if known else "unknown",
                "the password does not fit, or the user may not log in" if known else "there is no such user",
                address=address,
            )
            raise UnauthenticatedError("name and password do not fit, or the user may not log in")
        self.by_user.succeeded(name)
        return await self.tokens.log_in(user.name, user.role, "the password fits", address)

    async def refresh(self, text: str, address: str) -> Pair:
        """Exchange a refresh token. Raises UnauthenticatedError, ReusedError, SlowDownError."""
        self.per_address.take(address)
        try:
            return await self.tokens.refresh(text)
        except ReusedError:
            await self.tell()
            raise

    async def log_out(self, who: Principal) -> None:
        """End a login with all of its tokens, or a service token. Raises ConflictError for who has no token."""
        if not who.jti:
            raise ConflictError("this way in has no token that could end: the control token and the socket stay")
        await self.tokens.revoke("logged out", jti=who.jti)
        await self.tell()
