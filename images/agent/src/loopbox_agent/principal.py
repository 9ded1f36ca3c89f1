"""principal: owns who is asking: the user and the role that the gateway took from a verified token.

The agent listens on a network where only the gateway reaches it, and the gateway deletes these headers from what
clients send. Where the appliance runs without authentication, everybody is the one local administrator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from starlette.datastructures import Headers

from loopbox_agent.errors import AgentError

USER_HEADER = "X-Loopbox-User"
ROLE_HEADER = "X-Loopbox-Role"
_USER = re.compile(r"[A-Za-z0-9._@-]{1,64}")


class Role(IntEnum):
    """What somebody may do; each may do what those below may."""

    VIEWER = 0  #: looks
    USER = 1  #: runs the agent, owns threads and memories
    OPERATOR = 2  #: sees everybody's runs, reviews, adds tool servers
    ADMIN = 3  #: exports and erases other people's data


class ForbiddenError(AgentError):
    """The role does not allow this."""

    code: ClassVar[str] = "forbidden"
    status: ClassVar[int] = 403


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking."""

    user: str
    role: Role

    def require(self, least: Role) -> None:
        """Raise ForbiddenError for a role below ``least``."""
        if self.role < least:
            raise ForbiddenError(
                f"{self.user} is {self.role.name.lower()}, and this needs the role {least.name.lower()}; "
                "nothing was done. An administrator can give the role: `loopctl user role`."
            )

    def may_see(self, user: str) -> bool:
        """Tell whether what belongs to a user may be shown."""
        return user == self.user or self.role >= Role.OPERATOR


LOCAL = Principal("local", Role.ADMIN)


def principal_of(headers: Headers) -> Principal:
    """Return who asks. Raises ForbiddenError for headers that the gateway would not send."""
    match headers.getlist(USER_HEADER), headers.getlist(ROLE_HEADER):
        case [], []:
            return LOCAL
        case [user], [role] if _USER.fullmatch(user) and role.upper() in Role.__members__:
            return Principal(user, Role[role.upper()])
    raise ForbiddenError("The request names no user and role that this agent knows; nothing was done.")
