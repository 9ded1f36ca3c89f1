"""records: owns what all stored records share: ids, names of users, sizes, and text that both databases take."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import JsonValue
from pydantic_core import PydanticSerializationError, from_json, to_json

from loopbox_agent.errors import AgentError

Clock = Callable[[], float]  #: seconds since 1970, UTC; a test gives its own

CLOCK: Clock = time.time

_USER = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_ID = re.compile(r"[A-Za-z0-9._:@-]{1,64}")


class NotFoundError(AgentError):
    """There is no such record, or it is another user's, which is the same to the one who asks."""

    code = "not_found"
    status = 404


class InvalidRecordError(AgentError):
    """A name, an id or a value cannot be stored; nothing was written."""

    code = "invalid_record"
    status = 422


class TooLargeError(AgentError):
    """One text or record is larger than it may be; nothing was written."""

    code = "too_large"
    status = 413


class StoreLimitError(AgentError):
    """As many records are kept as may be; nothing was written."""

    code = "store_limit"
    status = 409


def new_id(kind: str) -> str:
    """Return a fresh id, such as thread_0123456789abcdef."""
    return f"{kind}_{secrets.token_hex(8)}"


def checked_user(user: str) -> str:
    """Return the name of a user. Raises InvalidRecordError."""
    if not _USER.fullmatch(user):
        raise InvalidRecordError("A user is 1 to 64 of the characters A-Z a-z 0-9 . _ @ -; nothing was written.")
    return user


def checked_id(value: str, what: str) -> str:
    """Return an id that came from outside. Raises InvalidRecordError."""
    if not _ID.fullmatch(value):
        raise InvalidRecordError(f"The {what} is not 1 to 64 of A-Z a-z 0-9 . _ : @ -; nothing was written.")
    return value


def asked_id(value: str, what: str) -> str:
    """Return an id that somebody asks for. Raises NotFoundError for what can be no id."""
    if not _ID.fullmatch(value):
        raise NotFoundError(f"There is no such {what}.")
    return value


def plain(text: str) -> str:
    """Return text without what one of the databases refuses: NUL and lone surrogates become U+FFFD."""
    clean = text.replace("\0", "\ufffd")
    try:
        clean.encode()
    except UnicodeEncodeError:
        return clean.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return clean


def storable(text: str, *, most_bytes: int, what: str) -> str:
    """Return the plain form of a text of limited size. Raises TooLargeError."""
    clean = plain(text)
    size = len(clean.encode())
    if size > most_bytes:
        raise TooLargeError(f"The {what} has {size:,} bytes, {most_bytes:,} are allowed; nothing was written.")
    return clean


def encode(value: object, *, most_bytes: int, what: str) -> str:
    """Return a JSON value as text for a column. Raises TooLargeError, InvalidRecordError for what is not JSON."""
    try:
        raw = to_json(value, inf_nan_mode="null")
    except PydanticSerializationError as error:
        # Lone surrogates, which a model's broken output holds now and then, are escaped by json and only by json.
        try:
            text = re.sub(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}", "\ufffd", json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            raise InvalidRecordError(f"The {what} is not JSON; nothing was written.") from error
        raw = text.encode()
    if len(raw) > most_bytes:
        raise TooLargeError(f"The {what} has {len(raw):,} bytes, {most_bytes:,} are allowed; nothing was written.")
    return raw.decode()


def decode(text: str) -> JsonValue:
    """Return what `encode` made a text of."""
    value: JsonValue = from_json(text)
    return value


def moment(seconds: float) -> datetime:
    """Return a stored time, in UTC."""
    return datetime.fromtimestamp(seconds, UTC)
