"""sse: owns the parser of server-sent events. Pure: bytes in, messages out, with limits on both.

It follows the WHATWG description: lines end with LF, CR or CRLF; an empty line ends a message; a message without
data is none; an id holds until the next one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from loopd.cli.exits import AnswerError

MAX_LINE_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 4 << 20

_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class StreamLimitError(AnswerError):
    """A line or message is larger than any that is sent; the stream cannot be trusted further."""

    code = "stream_too_large"


@dataclass(frozen=True, slots=True)
class Message:
    """One event of the stream."""

    event: str
    data: str
    id: str


@dataclass(slots=True)
class Parser:
    """What was fed and is not yet a message. How the bytes are cut into pieces makes no difference."""

    max_line_bytes: int = MAX_LINE_BYTES
    max_message_bytes: int = MAX_MESSAGE_BYTES
    _rest: bytes = b""
    _fresh: bool = True  #: nothing was parsed yet, so a byte order mark may come
    _event: str = ""
    _data: list[str] = field(default_factory=list)
    _held: int = 0  #: bytes in _data and _event
    _id: str = ""

    def feed(self, piece: bytes) -> list[Message]:
        """Take the next bytes, return the messages they complete. Raises StreamLimitError."""
        text = self._rest + piece
        if self._fresh:
            if len(text) < len(_BOM) and _BOM.startswith(text):
                self._rest = text
                return []
            text, self._fresh = text.removeprefix(_BOM), False
        messages: list[Message] = []
        start = 0
        for end in _END.finditer(text):
            if end.group() == b"\r" and end.end() == len(text):
                break  # the LF of a CRLF may be in the next piece
            if message := self._line(text[start : end.start()]):
                messages.append(message)
            start = end.end()
        self._rest = text[start:]
        self._limit(len(self._rest), self.max_line_bytes, "line")
        return messages

    def _line(self, line: bytes) -> Message | None:
        self._limit(len(line), self.max_line_bytes, "line")
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        match name:
            case b"data":
                self._held += len(value) + 1
                self._data.append(text)
            case b"event":
                self._held += len(value)
                self._event = text
            case b"id" if "\0" not in text:
                self._id = text
            case _:
                pass  # a comment, a retry time or a field of tomorrow
        self._limit(self._held, self.max_message_bytes, "message")
        return None

    def _dispatch(self) -> Message | None:
        data, event = self._data, self._event
        self._data, self._event, self._held = [], "", 0
        return Message(event or "message", "\n".join(data), self._id) if data else None

    def _limit(self, size: int, most: int, what: str) -> None:
        if size > most:
            raise StreamLimitError(f"a {what} of the event stream is larger than {most} bytes; the stream was left")
