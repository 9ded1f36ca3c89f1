"""mask: owns what people, logs and stores get to see of text: secrets and personal data replaced by their kind. Pure.

``mask()`` for a whole text, ``StreamMask`` for one that arrives in pieces: both show the same. ``mask_json()`` for
stored values, ``mask_processor()`` for log lines.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopbox_agent.mask_cut import cut
from loopbox_agent.mask_span import replace_spans
from loopbox_agent.pii import find_pii
from loopbox_agent.secrets_in_text import LOOKS_SECRET, STRONG_NAMES, find_secrets

LONGEST_KEY = 16384  #: characters of a private key that are swallowed; what follows is shown again
_KEY_LINE = 4096  #: characters of one line of it that are looked at before they are swallowed
_KEY_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,64}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-[23]:")
_KEY_END = re.compile(r"-----END [A-Z0-9 ]{0,64}-----")
_PUTTY_END = re.compile(r"Private-MAC: ?[0-9a-f]{0,128}")
# Base64, a header, or base64 whose line ends became spaces or were escaped. Prose has shorter words and other signs.
_KEY_TEXT = re.compile(
    r"[A-Za-z0-9+/=]{0,4096}\r?|[A-Za-z][A-Za-z-]{1,30}: ?[^\n]{0,200}|(?:[A-Za-z0-9+/=]|\\[nr]){0,4096}"
    r"| ?(?:[A-Za-z0-9+/=]{32,4096} ){1,64}[A-Za-z0-9+/=]{0,4096}"
)
_DEEPEST = 32
_MOST_VALUES = 20_000
_SECRET_KEY = re.compile(rf"(?:^|[_.-])(?:{STRONG_NAMES}|authorization|set-cookie|secret|token)$", re.IGNORECASE)
#: Fields of a log line that the logger itself writes.
_OWN_FIELDS = frozenset({"timestamp", "level", "logger", "correlation_id"})


@dataclass(frozen=True, slots=True)
class Masked:
    """A text that may be shown."""

    text: str
    found: tuple[str, ...]  #: what was replaced, in order: secret:… and pii:…


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRules:
    """What is masked besides the forms that are always."""

    known: tuple[str, ...] = ()  #: values that are secret here, like this process's own passwords; no spaces in them
    addresses: bool = False  #: IPv4 addresses too
    pii: bool = True  #: personal data at all


EVERYWHERE = MaskRules()


def mask(text: str, rules: MaskRules = EVERYWHERE) -> Masked:
    """Return the text with its secrets and personal data replaced, like ``[secret:jwt]`` and ``[pii:email]``."""
    stream = StreamMask(rules)
    shown = stream.feed(text) + stream.flush()
    return Masked(shown, tuple(stream.found))


class StreamMask:
    """Masks a text that arrives in pieces. What it has shown at the end is what ``mask()`` makes of the whole.

    Holds back the last unfinished word, and what may be the name, the quoted value or the groups of a number around
    it: 4,400 characters at the very most, one word in ordinary text. Not for several tasks at once.
    """

    def __init__(self, rules: MaskRules = EVERYWHERE) -> None:
        self.found: list[str] = []  #: what was replaced so far, in order
        self._rules = rules
        self._rest = ""
        self._swallowed = -1  # characters of a private key so far; -1: not in one

    @property
    def held(self) -> int:
        """Return how many characters are held back."""
        return len(self._rest)

    def feed(self, piece: str) -> str:
        """Take a piece, return what can be shown by now."""
        return self._go(piece, final=False)

    def flush(self) -> str:
        """Return what was held back; nothing more is fed after this."""
        return self._go("", final=True)

    def _go(self, piece: str, *, final: bool) -> str:
        text, self._rest = self._rest + piece, ""
        shown: list[str] = []
        at = 0
        while at < len(text):
            if self._swallowed >= 0:
                stop = self._swallow(text, at, final=final)
            else:
                stop, is_segment = cut(text, at, final=final, every=bool(self._rules.known))
                part = text[at:stop] if stop >= 0 else ""
                if not is_segment:
                    shown.append(part)
                elif stop >= 0:
                    stop = at + self._show(part, shown)
            if stop < 0:
                self._rest = text[at:]
                break
            at = stop
        return "".join(shown)

    def _show(self, segment: str, shown: list[str]) -> int:
        """Add what of a segment may be shown; return how much of it was read: a private key begins behind that."""
        if not (LOOKS_SECRET.search(segment) or self._rules.known):
            shown.append(segment)
            return len(segment)
        begin = _KEY_BEGIN.search(segment) if "-----B" in segment or "PuTTY" in segment else None
        if begin is None:
            shown.append(self._masked(segment))
            return len(segment)
        shown += (self._masked(segment[: begin.start()]), "[secret:private_key]")
        self.found.append("secret:private_key")
        self._swallowed = 0
        return begin.end()

    def _masked(self, segment: str) -> str:
        spans = list(find_secrets(segment, self._rules.known))
        if self._rules.pii:
            spans += find_pii(segment, addresses=self._rules.addresses)
        if not spans:
            return segment
        text, kinds = replace_spans(segment, spans)
        self.found += kinds
        return text

    def _swallow(self, text: str, at: int, *, final: bool) -> int:
        """Return what comes behind one line of a private key, or behind the key; -1: more text is needed to say."""
        newline = text.find("\n", at, at + _KEY_LINE)
        stop = newline if newline >= 0 else min(len(text), at + _KEY_LINE)
        whole = newline >= 0 or final or stop - at == _KEY_LINE
        end = _KEY_END.search(text, at, stop) or (_PUTTY_END.match(text, at, stop) if whole else None)
        if end:
            self._swallowed = -1
            return end.end()
        if not whole:
            return -1
        if not _KEY_TEXT.fullmatch(text, at, stop) or self._swallowed > LONGEST_KEY:
            self._swallowed = -1
            return at
        behind = stop + (newline >= 0)
        self._swallowed += behind - at
        return behind


# Any: a JSON value, of which only the strings are of interest.
def mask_json(value: Any, rules: MaskRules = EVERYWHERE) -> Any:
    """Return a JSON value with its strings masked, and what stands under a name of secrets replaced.

    What is nested more than 32 deep, and what comes after 20,000 values, is replaced by ``[unread]``: nothing that was
    not looked at is stored.
    """
    return _JsonMask(rules).mask(value, depth=0)


class _JsonMask:
    def __init__(self, rules: MaskRules) -> None:
        self._rules = rules
        self._left = _MOST_VALUES

    # Any: see mask_json.
    def mask(self, value: Any, *, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            return "[unread]"
        if isinstance(value, str):
            return mask(value, self._rules).text
        if isinstance(value, MutableMapping):
            return {str(key): self._member(str(key), one, depth) for key, one in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
            return [self.mask(one, depth=depth + 1) for one in value]
        return value

    # Any: see mask_json.
    def _member(self, key: str, value: Any, depth: int) -> Any:
        if isinstance(value, str) and value and _SECRET_KEY.search(key):
            return "[secret:assigned]"
        return self.mask(value, depth=depth + 1)


# Any: structlog's own signature.
def mask_processor(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask every field of a log line but those that the logger itself writes. A structlog processor."""
    for key, value in event.items():
        if key not in _OWN_FIELDS:
            event[key] = _JsonMask(EVERYWHERE)._member(key, value, 0)  # noqa: SLF001 — this module's own
    return event
