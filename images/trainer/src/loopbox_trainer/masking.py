"""masking: owns that no row holds secrets or personal data: what was imported is masked by the agent's own rules.

The rules look at every word with a digit or a name, and take a millisecond for a KiB. So a text is first asked, in a
few microseconds, whether anything in it could be found at all; the question is wider than every rule.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from loopbox_agent.mask import mask, mask_json
from loopbox_agent.secrets_in_text import LOOKS_SECRET, STRONG_NAMES, WEAK_NAMES
from loopbox_trainer.rows import Call, Message, Row, RowError, canonical

_MOST_CACHED: Final = 4096
_MOST_CACHED_TEXT: Final = 16 << 10

#: What secrets are named by, what their frames begin with; in small letters.
_NAMES: Final = (
    "pass", "pwd", "kennwort", "secret", "key", "token", "credential", "authorization", "cookie", "session", "bearer",
    "-----begin", "putty",
)  # fmt: skip
#: Such a name with what makes the next word its value.
_NAMED: Final = re.compile(
    rf"""(?:{STRONG_NAMES}|{WEAK_NAMES})[\\"'`\])]{{0,3}}[ \t]{{0,2}}(?:[:=]|is\b)|--(?:{STRONG_NAMES}|{WEAK_NAMES})"""
    r"|bearer|authorization|-----begin|putty"
)  # of small letters
_AROUND: Final = 24  #: characters before and behind a name that belong to it
#: Six digits with what may stand between the digits of one number; how accounts and tax numbers begin.
_NUMBERS: Final = (re.compile(r"\d(?:[ .()/-]{0,2}\d){5}"), re.compile(r"[A-Z]{2}\d\d"))
#: Credentials that are known by their form have no shorter run.
_RUN: Final = re.compile(r"[A-Za-z0-9_+/=~.:-]{16,}")
_DIGITS: Final = "[0-9@]|"
if not LOOKS_SECRET.pattern.startswith(_DIGITS):
    raise ImportError("the agent's first look has changed: masking must learn the new one")
_FORMS: Final = re.compile(LOOKS_SECRET.pattern.removeprefix(_DIGITS), re.IGNORECASE)


def may_hold(text: str) -> bool:
    """Return whether the rules could find anything; False is certain."""
    if "@" in text or any(number.search(text) for number in _NUMBERS):
        return True
    small = text.lower()
    if any(name in small and _is_named(small, name) for name in _NAMES):
        return True
    return any(_FORMS.search(run) for run in _RUN.findall(text))


def _is_named(small: str, name: str) -> bool:
    """Return whether a value may follow one of the places where a name stands."""
    at = small.find(name)
    while at >= 0:
        if _NAMED.search(small, max(0, at - _AROUND), at + _AROUND):
            return True
        at = small.find(name, at + 1)
    return False


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
        better = row.meta.get("better")
        told = {"better": self.text(better)} if isinstance(better, str) else {}
        if messages == row.messages and told.get("better") == better:
            return row
        return msgspec.structs.replace(row, messages=messages, meta={**row.meta, **told})

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
