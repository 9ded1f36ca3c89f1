"""tokens: owns access, refresh and service tokens: signed, verified, exchanged, revoked, listed, pruned.

Access and service tokens are JWTs, signed with RS256. A refresh token is random text of which state.db has the digest;
it is good for one exchange, and a second use of it shows a thief, so that all of its login's tokens end.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jwt

from loopd.auth import UnauthenticatedError
from loopd.errors import ConflictError, NotFoundError
from loopd.keys import Keyring
from loopd.ledger import Ledger
from loopd.principal import Principal, Role, check_user, is_user
from loopd.state import Database
from loopd.users import Users

AUDIENCE = "loopbox"
ALGORITHM = "RS256"
LEEWAY_S = 30  # clocks differ
MOST_TOKEN_CHARACTERS = 4096
FAMILY_S = 30 * 86400  # a login must be repeated after so long, however often its tokens are exchanged
MOST_FAMILIES = 50  # logins of one user at once; the oldest ends
MOST_SERVICE = 1000  # service tokens at once
SHOWN = 500

Purpose = Literal["access", "service"]


class ReusedError(UnauthenticatedError):
    """A refresh token came a second time, so whoever holds the login's tokens must log in again."""

    code = "token_reused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A new JWT; the text is told once."""

    jti: str
    family: str
    user: str
    role: Role
    expires_at: int
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What a login gives."""

    access: Issued
    refresh: str = field(repr=False)
    refresh_expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """A token as it is listed."""

    jti: str
    kind: str
    family: str
    user: str
    role: str
    name: str
    issued_at: int
    expires_at: int
    revoked_at: int | None


@dataclass(kw_only=True)
class Tokens:
    """The tokens. Each issue, exchange and revocation is one ledger entry, without the token."""

    database: Database
    ledger: Ledger
    users: Users
    keyring: Keyring
    issuer: str
    access_s: int = 1800
    refresh_s: int = 86400
    clock: Callable[[], float] = time.time

    # --- verifying

    async def verify(self, text: str) -> Principal:
        """Return who a JWT stands for. Raises UnauthenticatedError, with the same words whatever is wrong."""
        claims = self._claims(text)
        row = await self.database.fetch_one("SELECT * FROM tokens WHERE jti = ?", (claims["jti"],)) if claims else None
        if claims is None or row is None or row["revoked_at"] is not None or row["kind"] == "refresh":
            raise UnauthenticatedError("the token is not valid here: expired, revoked or not ours; get a new one")
        return Principal(
            user=claims["sub"],
            role=Role(claims["role"]),
            kind=row["kind"],
            jti=claims["jti"],
            family=row["family"],
            expires_at=claims["exp"],
        )

    def _claims(self, text: str) -> dict[str, Any] | None:
        """Return the claims of a JWT that we signed and that is good now. Any: they are JSON."""
        if len(text) > MOST_TOKEN_CHARACTERS:
            return None
        try:
            header = jwt.get_unverified_header(text)
            kid = header.get("kid")
            key = self.keyring.find(kid) if isinstance(kid, str) else None
            # The algorithm is ours to say, never the token's; keys it brings along are not looked at.
            if key is None or header.get("alg") != ALGORITHM:
                return None
            claims = jwt.decode(
                text,
                key.public,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=self.issuer,
                options={
                    "require": ["iss", "aud", "sub", "role", "jti", "iat", "nbf", "exp"],
                    # Times are looked at below, with our own clock.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "strict_aud": True,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            return None
        now = self.clock()
        fit = (
            all(type(claims[name]) is int for name in ("iat", "nbf", "exp"))
            and claims["nbf"] - LEEWAY_S <= now < claims["exp"] + LEEWAY_S
            and isinstance(claims["sub"], str)
            and is_user(claims["sub"])
            and claims["role"] in list(Role)
            and isinstance(claims["jti"], str)
        )
        return claims if fit else None

    # --- issuing

    async def issue(  # noqa: PLR0913 each is a word of the token or of the ledger
        self, user: str, role: Role, *, ttl_s: int, name: str, kind: Purpose, told: str
    ) -> Issued:
        """Issue a JWT by itself, without a refresh token.

        Raises UserNameError; ConflictError when a user of this name is disabled, has a lower role, or there are too
        many service tokens.
        """
        check_user(user)
        known = await self.users.find(user)
        if known and (known.disabled or not known.role.covers(role)):
            why = "is disabled" if known.disabled else f"has the role {known.role}, which is less than {role}"
            raise ConflictError(f"{user} {why}; no token was made")
        if kind == "service":
            row = await self.database.fetch_one(
                "SELECT count(*) AS total FROM tokens WHERE kind = 'service' AND revoked_at IS NULL"
            )
            if row and row["total"] >= MOST_SERVICE:
                raise ConflictError(f"there are {MOST_SERVICE} service tokens; no other was made. Revoke some first")
        issued = await self._sign(user, role, secrets.token_hex(16), ttl_s)
        async with self.database.transaction():
            await self._insert(issued, kind=kind, name=name, family_at=self._now())
            await self.ledger.append(
                "token.issued", user, told, jti=issued.jti, kind=kind, role=role.value, name=name, ttl_s=ttl_s
            )
        return issued

    async def log_in(self, user: str, role: Role, told: str, address: str) -> Pair:
        """Open a family: an access token and a refresh token. The oldest family ends when there are too many.

        Raises UnauthenticatedError when the user was changed meanwhile.
        """
        family = secrets.token_hex(16)
        access = await self._sign(user, role, family, self.access_s)
        async with self.database.transaction():
            known = await self.users.find(user)
            if known is None or known.disabled or known.role is not role:
                raise UnauthenticatedError("the user was changed meanwhile; log in again")
            await self._end_oldest(user)
            pair = await self._store_pair(access, self._now())
            await self.ledger.append(
                "login.accepted", user, told, family=family, jti=access.jti, role=role.value, address=address
            )
        return pair

    async def refresh(self, text: str) -> Pair:
        """Exchange a refresh token for the next pair. Raises UnauthenticatedError, ReusedError."""
        refused = UnauthenticatedError("the refresh token is not valid here: log in again")
        digest = hashlib.sha256(text.encode()).hexdigest()
        row = await self.database.fetch_one("SELECT * FROM tokens WHERE digest = ?", (digest,))
        if row is None or len(text) > MOST_TOKEN_CHARACTERS:
            raise refused
        user = await self.users.find(row["user"])
        if user is None or user.disabled:
            raise refused
        access = await self._sign(user.name, user.role, row["family"], self.access_s)
        async with self.database.transaction():
            row = await self.database.fetch_one("SELECT * FROM tokens WHERE digest = ?", (digest,))
            now = self._now()
            if row is None or row["revoked_at"] is not None:
                raise refused
            pair = None
            if row["used_at"] is not None:
                await self._revoke("family = ?", row["family"])
                await self.ledger.append(
                    "token.reused",
                    user.name,
                    "a refresh token came a second time: all tokens of that login were revoked",
                    family=row["family"],
                )
            elif row["expires_at"] <= now or row["family_at"] + FAMILY_S <= now:
                raise refused
            else:
                await self.database.execute("UPDATE tokens SET used_at = ? WHERE jti = ?", (now, row["jti"]))
                pair = await self._store_pair(access, row["family_at"])
                await self.ledger.append(
                    "token.refreshed",
                    user.name,
                    "a refresh token was exchanged",
                    family=row["family"],
                    jti=access.jti,
                    role=user.role.value,
                )
        if pair is None:
            raise ReusedError("the refresh token was used before, so the login was ended: log in again")
        return pair

    # --- revoking

    async def revoke(self, told: str, *, jti: str = "", family: str = "", user: str = "", all_: bool = False) -> int:
        """Revoke one token, those of a login, those of a user, or all; return how many lived. NotFoundError for none.

        A refresh token's id revokes its whole login, or the next one would come of it.
        """
        async with self.database.transaction():
            if jti:
                row = await self.database.fetch_one("SELECT family, kind FROM tokens WHERE jti = ?", (jti,))
                if row is None:
                    raise NotFoundError("there is no such token; `loopctl token list` shows those that live")
                where, value = ("jti = ?", jti) if row["kind"] == "service" else ("family = ?", str(row["family"]))
            elif family:
                where, value = "family = ?", family
            elif user:
                where, value = "user = ?", user
            elif all_:
                where, value = "'' = ?", ""
            else:
                raise NotFoundError("nothing was named to be revoked")
            count = await self._revoke(where, value)
            if count or not user:
                subject = user or jti or family or "all tokens"
                await self.ledger.append("token.revoked", subject, told, tokens=count)
        return count

    async def revoked(self) -> dict[str, int]:
        """Return the JWTs that are revoked and have not expired: jti -> the second in which it expires."""
        rows = await self.database.fetch_all(
            "SELECT jti, expires_at FROM tokens WHERE revoked_at IS NOT NULL AND kind <> 'refresh' AND expires_at > ?",
            (self._now() - LEEWAY_S,),
        )
        return {row["jti"]: row["expires_at"] for row in rows}

    async def living(self) -> list[TokenRow]:
        """Return the tokens that live, newest first; refresh tokens that were exchanged are none."""
        rows = await self.database.fetch_all(
            "SELECT jti, kind, family, user, role, name, issued_at, expires_at, revoked_at FROM tokens "
            "WHERE revoked_at IS NULL AND used_at IS NULL AND expires_at > ? "
            "ORDER BY issued_at DESC, rowid DESC LIMIT ?",
            (self._now(), SHOWN),
        )
        return [TokenRow(**dict(row)) for row in rows]

    async def prune(self) -> int:
        """Forget tokens that expired; return how many.

        Exchanged refresh tokens are among them: one that comes again after its end is refused in any case.
        """
        before = self._now() - LEEWAY_S
        async with self.database.transaction():
            row = await self.database.fetch_one("SELECT count(*) AS total FROM tokens WHERE expires_at <= ?", (before,))
            await self.database.execute("DELETE FROM tokens WHERE expires_at <= ?", (before,))
        return int(row["total"]) if row else 0

    async def signed_by(self, kid: str) -> int:
        """Return how many living tokens a key signed."""
        row = await self.database.fetch_one(
            "SELECT count(*) AS total FROM tokens WHERE kid = ? AND revoked_at IS NULL AND expires_at > ?",
            (kid, self._now() - LEEWAY_S),
        )
        return int(row["total"]) if row else 0

    # --- below

    def _now(self) -> int:
        return int(self.clock())

    async def _sign(self, user: str, role: Role, family: str, ttl_s: int) -> Issued:
        now, jti, key = self._now(), secrets.token_hex(16), self.keyring.current
        claims = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": user,
            "role": role.value,
            "jti": jti,
            "iat": now,
            "nbf": now,
            "exp": now + ttl_s,
        }
        text = await asyncio.to_thread(jwt.encode, claims, key.private, ALGORITHM, headers={"kid": key.kid})
        return Issued(jti=jti, family=family, user=user, role=role, expires_at=now + ttl_s, text=text)

    async def _store_pair(self, access: Issued, family_at: int) -> Pair:
        refresh, now = secrets.token_urlsafe(32), self._now()
        expires_at = min(now + self.refresh_s, family_at + FAMILY_S)
        await self._insert(access, kind="access", name="", family_at=family_at)
        await self.database.execute(
            "INSERT INTO tokens (jti, kind, family, user, role, name, kid, digest, issued_at, expires_at, family_at) "
            "VALUES (?, 'refresh', ?, ?, ?, '', '', ?, ?, ?, ?)",
            (
                secrets.token_hex(16),
                access.family,
                access.user,
                access.role.value,
                hashlib.sha256(refresh.encode()).hexdigest(),
                now,
                expires_at,
                family_at,
            ),
        )
        return Pair(access=access, refresh=refresh, refresh_expires_at=expires_at)

    async def _insert(self, token: Issued, *, kind: Purpose, name: str, family_at: int) -> None:
        await self.database.execute(
            "INSERT INTO tokens (jti, kind, family, user, role, name, kid, issued_at, expires_at, family_at) "
            "VALUES (?,?,?,?,?,?,?,?,?,?)",
            (
                token.jti,
                kind,
                token.family,
                token.user,
                token.role.value,
                name,
                jwt.get_unverified_header(token.text)["kid"],
                self._now(),
                token.expires_at,
                family_at,
            ),
        )

    async def _revoke(self, where: str, value: str) -> int:
        now = self._now()
        lives = f"{where} AND revoked_at IS NULL AND expires_at > ?"
        # A JWT is taken for LEEWAY_S after its end; a refresh token that was exchanged is no token any more.
        row = await self.database.fetch_one(
            f"SELECT count(*) AS total FROM tokens WHERE {lives} AND used_at IS NULL",  # noqa: S608 our own words
            (value, now - LEEWAY_S),
        )
        await self.database.execute(
            f"UPDATE tokens SET revoked_at = ? WHERE {lives}",  # noqa: S608 our own words
            (now, value, now - LEEWAY_S),
        )
        return int(row["total"]) if row else 0

    async def _end_oldest(self, user: str) -> None:
        rows = await self.database.fetch_all(
            "SELECT DISTINCT family, family_at FROM tokens WHERE user = ? AND kind = 'refresh' "
            "AND revoked_at IS NULL AND used_at IS NULL AND expires_at > ? ORDER BY family_at DESC",
            (user, self._now()),
        )
        for row in rows[MOST_FAMILIES - 1 :]:
            await self._revoke("family = ?", row["family"])
