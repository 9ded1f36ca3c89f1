"""clean: owns what of a text may leave at all: valid Unicode, no control characters, no tokens of chat templates. Pure.

``show()`` for a whole answer, ``StreamShow`` for one that arrives in pieces: both clean it, then mask it, and show the
same however it was cut. ``defuse()`` only cleans, text that comes in. How much may be told is live_run's.
"""

from __future__ import annotations

import re

from loopbox_agent.mask import EVERYWHERE, Masked, MaskRules, StreamMask

# Names inside the bars are those of ChatML, Llama 3, Phi, Qwen and DeepSeek (whose bars are full-width), and of what
# else is made like them. <s> and </s> are not here: they are HTML, too.
_BAR = r"(?:\||\uff5c)"
_WORD = r"[a-z0-9_\u2581-]"
_NAME = 40
_TOKEN = re.compile(
    rf"<{_BAR}({_WORD}{{1,{_NAME}}}){_BAR}>"
    r"|<((?:start|end)_of_turn|unused\d{1,3}|/?tool_call|/?tool_response)>"
    r"|\[(/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT))\]"
    r"|<<(/?SYS)>>",
    re.IGNORECASE,
)
_LONGEST = _NAME + 4
_PARTIAL = re.compile(
    rf"(?:<{_BAR}{_WORD}{{0,{_NAME}}}{_BAR}?|<<?/?[a-z0-9_]{{0,{_NAME}}}>?|\[/?[a-z_]{{0,20}})$", re.IGNORECASE
)
_OPENS = ("<", "[")
# What may not leave: controls but tab and newline (C0, DEL, C1), and code points that never are characters.
_GONE = dict.fromkeys(
    [
        *(code for code in range(0x20) if chr(code) not in "\t\n"),
        *range(0x7F, 0xA0),
        *range(0xFDD0, 0xFDF0),
        *(plane << 16 | last for plane in range(17) for last in (0xFFFE, 0xFFFF)),
    ]
)
_UNWANTED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)
_SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]")
_HIGH = ("\ud800", "\udbff")
_PAIR = 2


def defuse(text: str) -> str:
    """Return a text that comes from outside without what a chat template would take for its own marks."""
    cleaning = _Clean()
    return cleaning.feed(text) + cleaning.flush()


def show(text: str, rules: MaskRules = EVERYWHERE) -> Masked:
    """Return a whole answer as it may be shown."""
    stream = StreamShow(rules)
    shown = stream.feed(text) + stream.flush()
    return Masked(shown, tuple(stream.found))


class StreamShow:
    """Shows an answer that arrives in pieces; used like StreamMask. Not for several tasks at once."""

    def __init__(self, rules: MaskRules = EVERYWHERE) -> None:
        self._cleaning = _Clean()
        self._masking = StreamMask(rules)

    @property
    def found(self) -> list[str]:
        """What was masked so far, in order."""
        return self._masking.found

    @property
    def held(self) -> int:
        """Return how many characters are held back."""
        return self._cleaning.held + self._masking.held

    def feed(self, piece: str) -> str:
        """Take a piece, return what can be shown by now."""
        return self._masking.feed(self._cleaning.feed(piece))

    def flush(self) -> str:
        """Return what was held back; nothing more is fed after this."""
        return self._masking.feed(self._cleaning.flush()) + self._masking.flush()


class _Clean:
    """Takes out what may not be there, in two steps: characters, then the tokens that the rest spells."""

    def __init__(self) -> None:
        self._high = ""  # half of a surrogate pair
        self._rest = ""  # what may be the beginning of a token

    @property
    def held(self) -> int:
        return len(self._high) + len(self._rest)

    def feed(self, piece: str) -> str:
        # Controls go first: one between the halves of a pair, or inside a token, hides neither.
        text, self._high = self._high + _uncontrolled(piece), ""
        if text and _HIGH[0] <= text[-1] <= _HIGH[1]:
            text, self._high = text[:-1], text[-1]
        text, self._rest = self._rest + _SURROGATES.sub(_joined, text), ""
        tail = max(0, len(text) - _LONGEST)
        if any(mark in text[tail:] for mark in _OPENS) and (open_ := _PARTIAL.search(text, tail)):
            whole = _TOKEN.match(text, open_.start())
            if whole is None or whole.end() < len(text):
                text, self._rest = text[: open_.start()], text[open_.start() :]
        return _untokened(text)

    def flush(self) -> str:
        text, self._rest, self._high = self._rest + ("\ufffd" if self._high else ""), "", ""
        return _untokened(text)


def _uncontrolled(text: str) -> str:
    return text.translate(_GONE) if _UNWANTED.search(text) else text


def _joined(found: re.Match[str]) -> str:
    """Return the character that a pair of surrogates stands for: JSON may bring one in two pieces."""
    pair = found[0]
    return pair.encode("utf-16", "surrogatepass").decode("utf-16") if len(pair) == _PAIR else "\ufffd"


def _untokened(text: str) -> str:
    return _TOKEN.sub(_named, text) if any(mark in text for mark in _OPENS) else text


def _named(found: re.Match[str]) -> str:
    """Return the token's name in the form of what is masked: seen, and no token any more."""
    return f"[control:{next(filter(None, found.groups()))}]"
