"""masking: owns that no row holds secrets or personal data: what was imported is masked by the agent's own rules.

The rules look at every word with a digit or a name, and take a millisecond for a KiB. So a text is first asked, in a
few microseconds, whether anything in it could be found at all; the question is wider than every rule.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from loopbox_agent.mask import mask, mask_json
from loopbox_agent.secrets_in_text import LOOKS_SECRET
from loopbox_trainer.rows import Call, Message, Row, RowError, canonical

_MOST_CACHED: Final = 4096
_MOST_CACHED_TEXT: Final = 16 << 10

#: What secrets are named by, what their frames begin with; in small letters.
_NAMES: Final = (
    "pass", "pwd", "kennwort", "secret", "key", "token", "credential", "authorization", "cookie", "session", "bearer",
    "basic", "-----begin", "putty",
)  # fmt: skip
#: Six digits with what may stand between the digits of one number, or how tax numbers and accounts begin.
_NUMBERS: Final = re.compile(r"\d(?:[ .()/-]{0,2}\d){5}|[A-Z]{2}\d\d ?[A-Z0-9]|[A-Z]{6}\d\d")
#: Credentials that are known by their form have no shorter run.
_RUN: Final = re.compile(r"[A-Za-z0-9_+/=~.:-]{16}")
_DIGITS: Final = "[0-9@]|"
if not LOOKS_SECRET.pattern.startswith(_DIGITS):
    raise ImportError("the agent's first look has changed: masking must learn the new one")
_FORMS: Final = re.compile(LOOKS_SECRET.pattern.removeprefix(_DIGITS), re.IGNORECASE)


def may_hold(text: str) -> bool:
    """Return whether the rules could find anything; False is certain."""
    if "@" in text or _NUMBERS.search(text):
        return True
    small = text.lower()
    return any(name in small for name in _NAMES) or bool(_RUN.search(text) and _FORMS.search(text))


class Masker:
    """Masks rows. Remembers texts that come again, as rules and results do."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def text(self, text: str) -> str:
        """Return a text without secrets and personal data."""
        if not may_hold(text):
            return text
        known = self._known.get(text)
        if known is None:
            known = mask(text).text
            if len(self._known) >= _MOST_CACHED:
                self._known.clear()
            if len(text) <= _MOST_CACHED_TEXT:
                self._known[text] = known
        return known

    def row(self, row: Row) -> Row:
        """Return a row masked; the same object when nothing was found. Raises RowError."""
        messages = tuple(self._message(message) for message in row.messages)
        if messages == row.messages:
            return row
        return msgspec.structs.replace(row, messages=messages)

    def _message(self, message: Message) -> Message:
        content = self.text(message.content)
        calls = tuple(self._call(call) for call in message.tool_calls)
        if content is message.content and calls == message.tool_calls:
            return message
        return msgspec.structs.replace(message, content=content, tool_calls=calls)

    def _call(self, call: Call) -> Call:
        try:
            told = canonical(call.arguments).decode()
        except UnicodeError as error:
            raise RowError("not_text", str(error)) from error
        if not may_hold(told):
            return call
        masked: dict[str, Any] = mask_json(call.arguments)  # Any: JSON
        return call if masked == call.arguments else Call(call.name, masked)
