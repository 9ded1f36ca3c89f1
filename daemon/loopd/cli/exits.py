"""exits: owns loopctl's exit codes, the errors it raises itself, and which error ends in which code."""

from __future__ import annotations

from enum import IntEnum

from loopd.errors import LoopdError


class ExitCode(IntEnum):
    """What the shell sees. `loopctl exec` passes the command's own code through beside these."""

    OK = 0
    FAILED = 1  #: it was tried and went wrong; `status`: not serving as it should
    USAGE = 2  #: the command line makes no sense
    UNREACHABLE = 3  #: loopd, or for what asks the agent the gateway, does not answer
    NOT_FOUND = 4
    CONFLICT = 5  #: it contradicts what is under way
    REFUSED = 6  #: no permission: no token, or a wrong one
    CONFIG = 78  #: the settings cannot be used (sysexits.h)
    TIMED_OUT = 124  #: the command of `exec` ran past its time, as timeout(1) says it
    INTERRUPTED = 130  #: Ctrl-C


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done; `status`: serving; `rollouts watch`: promoted; `ask`, `runs watch`: completed",
    ExitCode.FAILED: "it was tried and went wrong; `status`: not serving as it should; a rollout was turned back",
    ExitCode.USAGE: "the command line makes no sense",
    ExitCode.UNREACHABLE: "loopd (for what asks the agent: the gateway) does not answer, or a run was lost",
    ExitCode.NOT_FOUND: "there is nothing by that name (HTTP 404)",
    ExitCode.CONFLICT: "it contradicts what is under way; nothing was changed (HTTP 409)",
    ExitCode.REFUSED: "no permission: no token, or a wrong one (HTTP 401, 403)",
    ExitCode.CONFIG: "the settings cannot be used",
    ExitCode.TIMED_OUT: "`exec`: the command ran past its time",
    ExitCode.INTERRUPTED: "stopped with Ctrl-C",
}

_BY_STATUS = {
    401: ExitCode.REFUSED,
    403: ExitCode.REFUSED,
    404: ExitCode.NOT_FOUND,
    409: ExitCode.CONFLICT,
}


class UnreachableError(LoopdError):
    """Nobody answers, or not in time."""

    code = "unreachable"


class AnswerError(LoopdError):
    """Something answers, but not in a form this loopctl understands."""

    code = "answer_not_understood"


class MissingError(LoopdError):
    """What was asked about is in no answer."""

    code = "not_found"
    status = 404


class ApiError(LoopdError):
    """The other side refused, and said why."""

    def __init__(self, message: str, *, answered_code: str, http_status: int) -> None:
        super().__init__(message)
        self.answered_code = answered_code
        self.http_status = http_status


def code_word(error: LoopdError) -> str:
    """Return the stable word for programs."""
    return error.answered_code if isinstance(error, ApiError) else error.code


def exit_code(error: LoopdError) -> ExitCode:
    """Return what loopctl exits with after this error."""
    if isinstance(error, UnreachableError):
        return ExitCode.UNREACHABLE
    # Any ConfigError; asked by its word, because importing loopd.config takes longer than `--help` may.
    if any(vars(kind).get("code") == "config_invalid" for kind in type(error).__mro__):
        return ExitCode.CONFIG
    status = error.http_status if isinstance(error, ApiError) else error.status
    return _BY_STATUS.get(status, ExitCode.FAILED)
