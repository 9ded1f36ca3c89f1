"""rows: owns the one format of training rows: its types, its limits, how a line is read and how a row is named. Pure.

msgspec reads and checks a row of a few KiB in about 10 µs, pydantic in ten times that; a pipeline has 200 µs for all.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

MOST_ROW_BYTES: Final = 256 << 10
MOST_MESSAGES: Final = 64
MOST_TOOLS: Final = 64
MOST_DEPTH: Final = 32  #: of arguments, schemas and meta

Role = Literal["system", "user", "assistant", "tool"]
Outcome = Literal["good", "bad", "unknown"]
ToolName = Annotated[str, Meta(min_length=1, max_length=128)]
Label = Annotated[str, Meta(min_length=1, max_length=256)]


class RowError(Exception):
    """A row that cannot be used. reason: one of a few names, for counting; detail: what is wrong with this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail[:300]


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call of a tool."""

    name: ToolName
    arguments: dict[str, Any] = {}  #: Any: JSON, whatever the tool's schema says


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One message."""

    role: Role
    content: str  #: written always, even when it is empty
    tool_calls: tuple[Call, ...] = ()  #: the assistant's only
    name: Annotated[str, Meta(max_length=128)] = ""  #: of the tool that answered; a tool's message only


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tool that was on offer."""

    name: ToolName
    description: str = ""
    parameters: dict[str, Any] = {}  #: Any: a JSON schema


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training row; see docs/learning.md for what each field means."""

    messages: Annotated[tuple[Message, ...], Meta(min_length=1, max_length=MOST_MESSAGES)]
    id: Annotated[str, Meta(pattern="^([0-9a-f]{16})?$")] = ""
    source: Annotated[str, Meta(max_length=128)] = ""
    conversation: Annotated[str, Meta(max_length=256)] = ""
    tools: Annotated[tuple[Tool, ...], Meta(max_length=MOST_TOOLS)] = ()
    outcome: Outcome = "unknown"
    weight: Annotated[float, Meta(ge=0, le=1000)] = 1.0
    meta: dict[str, Any] = {}  #: Any: JSON: hints, lineage


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One preference: of two answers to the same messages, the better and the worse one."""

    id: str
    source: str
    conversation: str
    prompt: tuple[Message, ...]
    tools: tuple[Tool, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    meta: dict[str, Any] = {}  #: Any: JSON


_ROWS = msgspec.json.Decoder(Row)
_PAIRS = msgspec.json.Decoder(Pair)
_JSON = msgspec.json.Decoder()
_ENCODER = msgspec.json.Encoder()
_CANONICAL = msgspec.json.Encoder(order="deterministic")


def parse_json(line: bytes) -> Any:  # Any: JSON
    """Return a line's value. Raises RowError: too_large, broken_json."""
    if len(line) > MOST_ROW_BYTES:
        raise RowError("too_large", f"{len(line):,} bytes, may have {MOST_ROW_BYTES:,}")
    try:
        return _JSON.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RowError("broken_json", str(error)) from error


def parse_row(line: bytes) -> Row:
    """Return a line as a row. Raises RowError: too_large, broken_json, not_a_row, and what `check_row` raises."""
    if len(line) > MOST_ROW_BYTES:
        raise RowError("too_large", f"{len(line):,} bytes, may have {MOST_ROW_BYTES:,}")
    try:
        row = _ROWS.decode(line)
    except msgspec.ValidationError as error:
        raise RowError("not_a_row", str(error)) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RowError("broken_json", str(error)) from error
    return check_row(row)


def row_of(value: object) -> Row:
    """Return a value that was parsed already as a row. Raises RowError: not_a_row, and what `check_row` raises."""
    try:
        row = msgspec.convert(value, Row)
    except (msgspec.ValidationError, RecursionError) as error:
        raise RowError("not_a_row", str(error)) from error
    return check_row(row)


def parse_pair(line: bytes) -> Pair:
    """Return a line as a preference pair. Raises RowError."""
    try:
        return _PAIRS.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RowError("not_a_pair", str(error)) from error


def check_row(row: Row) -> Row:
    """Return the row itself. Raises RowError where fields contradict each other or limits are passed."""
    if not 1 <= len(row.messages) <= MOST_MESSAGES:
        raise RowError("too_many_messages" if row.messages else "empty", f"{len(row.messages)} messages")
    if len(row.tools) > MOST_TOOLS:
        raise RowError("too_many_tools", f"{len(row.tools)} tools")
    for message in row.messages:
        if message.tool_calls and message.role != "assistant":
            raise RowError("not_a_row", f"a message of the role {message.role} has tool calls")
        if message.name and message.role != "tool":
            raise RowError("not_a_row", f"a message of the role {message.role} has a tool's name")
    if len({tool.name for tool in row.tools}) != len(row.tools):
        raise RowError("not_a_row", "two tools have one name")
    return row


def encode(value: Row | Pair, tools: bytes | None = None) -> bytes:
    """Return a row or pair as one line, without its end. Raises RowError: too_large, not_text.

    tools: its tools as JSON, where they were written before: they are most of a row.
    """
    try:
        if tools is not None:
            value = msgspec.structs.replace(value, tools=msgspec.Raw(tools))
        line = _ENCODER.encode(value)
    except (UnicodeEncodeError, RecursionError, TypeError, msgspec.MsgspecError) as error:
        raise RowError("not_text", str(error)) from error
    if len(line) > MOST_ROW_BYTES:
        raise RowError("too_large", f"{len(line):,} bytes, may have {MOST_ROW_BYTES:,}")
    return line


def canonical(value: object) -> bytes:
    """Return what stands for a value when it is compared: JSON with its keys sorted. Raises RowError: not_text."""
    try:
        return _CANONICAL.encode(value)
    except (UnicodeEncodeError, RecursionError, TypeError, msgspec.MsgspecError) as error:
        raise RowError("not_text", str(error)) from error


def content_id(messages: tuple[Message, ...], tools: bytes) -> str:
    """Return 16 hex digits that stand for what is learnt from a row. tools: their digest. Raises RowError: not_text."""
    return hashlib.sha256(tools + canonical(messages)).hexdigest()[:16]
