"""database_errors: owns what goes wrong with the database itself, told apart by its own error codes, never by words."""

from __future__ import annotations

import sqlite3
from typing import ClassVar

from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from loopbox_agent.errors import AgentError


class DatabaseError(AgentError):
    """The database cannot be used. The text says what was not harmed and what to do."""

    code: ClassVar[str] = "store_unavailable"
    status: ClassVar[int] = 503


class DatabaseUrlError(DatabaseError):
    """The setting does not name a database that the agent can use."""

    code = "store_url"
    status = 500


class DatabaseBusyError(DatabaseError):
    """More waits to be written than may wait."""

    code = "store_busy"


class DatabaseClosedError(DatabaseError):
    """The agent is stopping."""

    code = "store_closed"


class DatabaseLockedError(DatabaseError):
    """Another process holds it."""

    code = "store_locked"


class DatabaseFullError(DatabaseError):
    """The disk is full."""

    code = "store_full"
    status = 507


class DatabaseDamagedError(DatabaseError):
    """The file is no database, or a broken one."""

    code = "store_damaged"


class DatabaseDownError(DatabaseError):
    """The server does not answer, or ended the connection."""

    code = "store_down"


class DatabaseRefusedError(DatabaseError):
    """The server answers and refuses the agent."""

    code = "store_refused"


_KEPT = "What was acknowledged is kept"


def is_fatal(error: Exception) -> bool:
    """Whether an error is the database's trouble rather than one unit's: then the transaction is over for all."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, (OSError, sqlite3.OperationalError))
    if isinstance(error, IntegrityError):
        return False
    state = _sqlstate(error)
    if state is not None:
        return error.connection_invalidated or state[:2] in ("08", "25", "40", "53", "57", "58", "XX")
    name = _sqlite_name(error)
    return (
        error.connection_invalidated
        or name in _DAMAGED
        or (isinstance(error, OperationalError) and name != "SQLITE_ERROR")
    )


def is_disconnect(error: BaseException) -> bool:
    """Whether the connection was lost, so that another one may do better."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def explained(error: Exception, where: str) -> Exception:
    """Return the AgentError that says what a database's error means; any other error as it is.

    where: the database, without a password.
    """
    name = _sqlite_name(error)
    if isinstance(error, (AgentError, IntegrityError)) or name == "SQLITE_ERROR":
        return error  # a unit's own
    if name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
        return DatabaseLockedError(
            f"Another process keeps {where} locked; nothing of this was written. {_KEPT}. "
            "Try again; if it stays so, end what holds the file (`fuser -v` tells).",
            retry_after_s=1,
        )
    if name in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE") or _sqlstate(error) in ("53100", "53200"):
        return DatabaseFullError(
            f"The disk or memory of {where} is full; nothing of this was written. {_KEPT}. Free some space, then retry."
        )
    if name in _DAMAGED or _sqlstate(error) in ("XX001", "XX002"):
        return DatabaseDamagedError(
            f"{where} is damaged ({_cause(error)}); nothing was changed. "
            "Stop the agent and restore the newest backup; the damaged file is kept aside."
        )
    if name:
        return DatabaseError(
            f"{where} cannot be read or written ({name}); nothing of this was written. {_KEPT}. "
            "Check the directory's owner, mode and disk."
        )
    return _server_error(error, where)


def _server_error(error: Exception, where: str) -> Exception:
    state = _sqlstate(error) or ""
    if state[:2] in ("22", "23", "42") and state != "42501":
        return error  # a unit's own
    if state[:2] == "28" or state in ("3D000", "42501"):
        return DatabaseRefusedError(
            f"{where} refuses the agent (SQLSTATE {state}); nothing was changed. "
            "Check the user, its rights, the password file and that the database exists."
        )
    if state == "53300" or isinstance(error, PoolTimeoutError):
        return DatabaseBusyError(
            f"{where} has no connection left for the agent; nothing of this was written. Try again in a moment; if it "
            "stays so, the server is too slow, or has too small a max_connections.",
            retry_after_s=5,
        )
    down = state[:2] in ("08", "57") or is_disconnect(error) or isinstance(error, OSError)
    if down or isinstance(error, TimeoutError):
        return DatabaseDownError(
            f"{where} does not answer ({_cause(error)}). {_KEPT}; of what was being written the agent cannot tell. "
            "The agent connects again by itself; see that the server runs.",
            retry_after_s=1,
        )
    if isinstance(error, (DBAPIError, sqlite3.Error)) and not isinstance(error, IntegrityError):
        return DatabaseError(
            f"{where} failed ({_cause(error)}); nothing of this was written. {_KEPT}. Look at the server's log."
        )
    return error


_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CORRUPT_VTAB", "SQLITE_CORRUPT_INDEX")


def _origin(error: Exception) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error


def _sqlite_name(error: Exception) -> str:
    return str(getattr(_origin(error), "sqlite_errorname", ""))


def _sqlstate(error: Exception) -> str | None:
    origin = _origin(error)
    state = getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None)
    return str(state) if state else None


def _cause(error: Exception) -> str:
    """Return the kind of an error, never its text: that can hold values of a row, or a connection's."""
    return _sqlite_name(error) or _sqlstate(error) or type(_origin(error)).__name__
