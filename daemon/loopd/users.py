"""users: owns who may log in: names, roles and passwords in state.db."""

from __future__ import annotations

from dataclasses import dataclass

from loopd.errors import ConflictError, NotFoundError
from loopd.ledger import Ledger
from loopd.passwords import Passwords
from loopd.principal import LOCAL, Role, check_user
from loopd.state import Database, now

MOST_USERS = 10_000


class UserExistsError(ConflictError):
    """The name is taken; nothing was changed."""

    code = "user_exists"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One user, without the password."""

    name: str
    role: Role
    disabled: bool
    created_at: str  #: ISO 8601, UTC
    changed_at: str
    can_log_in: bool  #: has a password


class Users:
    """The users. Every change is one ledger entry, without the password."""

    def __init__(self, database: Database, ledger: Ledger, passwords: Passwords) -> None:
        self._database = database
        self._ledger = ledger
        self._passwords = passwords

    async def newest(self) -> list[User]:
        """Return all users, by name."""
        rows = await self._database.fetch_all("SELECT * FROM users ORDER BY name LIMIT ?", (MOST_USERS,))
        return [_user(dict(row)) for row in rows]

    async def find(self, name: str) -> User | None:
        """Return one, None when there is no such user."""
        row = await self._database.fetch_one("SELECT * FROM users WHERE name = ?", (name,))
        return _user(dict(row)) if row else None

    async def get(self, name: str) -> User:
        """Return one. Raises NotFoundError."""
        if (found := await self.find(name)) is None:
            raise NotFoundError("there is no such user; `loopctl user list` shows them")
        return found

    async def add(self, name: str, role: Role, password: str) -> User:
        """Add one. Raises UserNameError, UserExistsError, PasswordError."""
        check_user(name)
        if name == LOCAL:
            raise UserExistsError(f"{LOCAL} is who asks without a user; nothing was changed, choose another name")
        kept = await self._passwords.hash(password)
        async with self._database.transaction():
            if await self.find(name) is not None:
                raise UserExistsError(f"there is a user {name} already; nothing was changed")
            total = await self._database.fetch_one("SELECT count(*) AS total FROM users")
            if total and total["total"] >= MOST_USERS:
                raise ConflictError(f"there are {MOST_USERS} users, and no more may be; remove some first")
            at = now()
            await self._database.execute(
                "INSERT INTO users (name, role, password, created_at, changed_at) VALUES (?,?,?,?,?)",
                (name, role.value, kept, at, at),
            )
            await self._ledger.append("user.added", name, "asked for by an admin", role=role.value)
        return await self.get(name)

    async def change(
        self, name: str, *, role: Role | None = None, password: str | None = None, disabled: bool | None = None
    ) -> User:
        """Change what is given. Its tokens are the caller's to revoke. Raises NotFoundError, PasswordError."""
        kept = None if password is None else await self._passwords.hash(password)
        async with self._database.transaction():
            found = await self.get(name)
            await self._database.execute(
                "UPDATE users SET role = ?, disabled = ?, password = coalesce(?, password), changed_at = ? "
                "WHERE name = ?",
                (
                    (role or found.role).value,
                    found.disabled if disabled is None else disabled,
                    kept,
                    now(),
                    name,
                ),
            )
            changed = await self.get(name)
            await self._ledger.append(
                "user.changed",
                name,
                "asked for by an admin",
                role=changed.role.value,
                disabled=changed.disabled,
                password_changed=kept is not None,
            )
        return changed

    async def remove(self, name: str) -> None:
        """Remove one. Its tokens are the caller's to revoke. Raises NotFoundError."""
        async with self._database.transaction():
            await self.get(name)
            await self._database.execute("DELETE FROM users WHERE name = ?", (name,))
            await self._ledger.append("user.removed", name, "asked for by an admin")

    async def knows(self, name: str, password: str) -> User | None:
        """Return the user when the password fits and the user may log in; takes as long when there is none."""
        row = await self._database.fetch_one("SELECT * FROM users WHERE name = ?", (name,))
        fits = await self._passwords.fits(password, row["password"] if row else None)
        return _user(dict(row)) if row and fits and not row["disabled"] else None


def _user(row: dict[str, object]) -> User:
    return User(
        name=str(row["name"]),
        role=Role(str(row["role"])),
        disabled=bool(row["disabled"]),
        created_at=str(row["created_at"]),
        changed_at=str(row["changed_at"]),
        can_log_in=bool(row["password"]) and not row["disabled"],
    )
