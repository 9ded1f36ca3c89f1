"""principal: owns who asks: names of users, roles and their order, and what a verified token says. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from loopd.errors import LoopdError

USER_PATTERN = r"[A-Za-z0-9_@-][A-Za-z0-9._@-]{0,63}"  # no dot first: it is a word of paths, too
_USER = re.compile(USER_PATTERN)

LOCAL = "local"  # who asks without authentication, and as whom loopctl asks

Kind = Literal["access", "service", "control", "socket"]


class Role(StrEnum):
    """What one may do; each may do what those before it may."""

    VIEWER = "viewer"  #: looks
    USER = "user"  #: asks the agent and the engine
    OPERATOR = "operator"  #: changes what serves
    ADMIN = "admin"  #: changes who may what

    def covers(self, needed: Role) -> bool:
        """Tell whether this role may do what ``needed`` may."""
        return RANKS[self] >= RANKS[needed]


RANKS = {role: rank for rank, role in enumerate(Role)}


class UserNameError(LoopdError, ValueError):
    """No user may be called so; nothing was changed."""

    code = "user_name"
    status = 422


class ForbiddenError(LoopdError):
    """The role of the one who asks is too low; nothing was done."""

    code = "forbidden"
    status = 403


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks."""

    user: str
    role: Role
    kind: Kind
    jti: str = ""  #: of the token, '' where there is none
    family: str = ""  #: of the login it came from
    expires_at: int | None = None  #: seconds since 1970

    def require(self, needed: Role) -> None:
        """Raises ForbiddenError."""
        if not self.role.covers(needed):
            raise ForbiddenError(f"this needs the role {needed}; {self.user} has {self.role}. Nothing was done")


def check_user(name: str) -> str:
    """Return the name. Raises UserNameError: it becomes a header and a word in files."""
    if not _USER.fullmatch(name):
        raise UserNameError("a user is called by 1 to 64 of A-Za-z0-9._@-, with no dot first; nothing was changed")
    return name


def is_user(name: str) -> bool:
    """Tell whether somebody may be called so."""
    return _USER.fullmatch(name) is not None
