"""errors: owns LoopdError, the base of everything loopd raises on purpose.

One class per cause, defined beside its noun. The text says what happened, what was not harmed and what to do
next; ``code`` is the stable word for programs and ``status`` the HTTP status the control API answers with.
"""

from __future__ import annotations

from typing import ClassVar


class LoopdError(Exception):
    """Something known went wrong; the message is fit for a person."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500


class NotFoundError(LoopdError):
    """Nothing by that name: list what there is first."""

    code = "not_found"
    status = 404


class ConflictError(LoopdError):
    """The request contradicts what is under way; nothing was changed."""

    code = "conflict"
    status = 409


class UnavailableError(LoopdError):
    """A part that is needed does not answer; try again when `loopctl status` shows it ready."""

    code = "unavailable"
    status = 503
