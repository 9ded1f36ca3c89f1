"""mask_cut: owns how text is cut into the segments that are masked one by one. Pure.

The cuts depend on the text alone, never on the pieces it arrived in, so a stream is masked exactly like the whole.
A segment is a run of printable ASCII, since credentials and numbers have nothing else in them; a name of secrets takes
in the value behind it, a number the groups that follow it. What is between the segments is shown as it is.
"""

from __future__ import annotations

import re

from loopbox_agent.secrets_in_text import STRONG_NAMES, WEAK_NAMES

SOFT = 256  #: characters; a longer word is cut behind its last comma, bracket or semicolon before that
HARD = 4096  #: characters; a longer word without any of those is cut here: it is data, not a credential
_MOST_GROUPED = 48  #: characters of a number in groups; the longest IBAN with its spaces has 42
_MOST_QUOTED = 160  #: characters of a quoted value with spaces in it
_MOST_JOINED = 512  #: characters of a segment that takes in another word; so none is longer than this and HARD

_WORD = re.compile(r"[!-~]+")
_GAP = re.compile(r"[^!-~]+")
_SOFT_END = re.compile(r"[,;&|<>{}()\[\]]")
# Ends with a name of secrets and perhaps its joint, so that the value comes next.
_NAMED = re.compile(
    rf"(?:{STRONG_NAMES}|{WEAK_NAMES}|bearer|basic)[\\\"'`\])]{{0,3}}[ \t]?(?:is|=>|:=|==?|:)?[ \t]?[\\\"'`]{{0,2}}$",
    re.IGNORECASE,
)
_NAMED_END = frozenset("cCdDeElLnNrRsStTyY\"'`=:>])\\")  # last characters of what _NAMED matches
_QUOTE_OPEN = re.compile(
    rf"(?:{STRONG_NAMES}|{WEAK_NAMES})[\\\"'`\])]{{0,3}}[ \t]?(?:=>|:=|==?|:)[ \t]?([\"'])[^\"'`]*$", re.IGNORECASE
)
_ANY_NAME = re.compile(rf"{STRONG_NAMES}|{WEAK_NAMES}", re.IGNORECASE)
_GROUP = re.compile(r"[+(\[\"']{0,2}\d[\d().\-/]*|\(?\+\d{1,3}\)?|[A-Z]{2}\d{2}[A-Z0-9]{0,30}")
_NEXT_GROUP = re.compile(r"[(\-/]?\d[\d().\-/]*[,;:.!?)\]\"']{0,3}|[A-Z0-9]{1,4}[,;:.!?)\]\"']{0,3}")
_DIGITS = frozenset("0123456789")
_PEM_OPEN = re.compile(r"-----BEGIN(?: [A-Z0-9]{1,16}){0,4}$")
# Short words of letters alone, with what follows them: most of a text, taken at once. None that ends like a name of
# secrets (password, token, key, …) and none as long as the shortest credential of letters alone.
_PLAIN = re.compile(
    r"(?:[A-Za-z]{1,14}(?<!ord)(?<!swd)(?<!pwd)(?<!ase)(?<!ort)(?<!ret)(?<!key)(?<!ken)(?<!ial)(?<!als)(?<!ion)(?<!kie)"
    r"(?<!nid)(?<!rer)(?<!sic)[.,;:!?)]?[^!-~]+)+",
    re.IGNORECASE,
)
LONGEST_TAIL = 96  #: characters before a cut that decide whether it is one


def cut(text: str, at: int, *, final: bool, every: bool = False) -> tuple[int, bool]:
    """Return where the part that begins here ends, and whether it is a segment to be masked.

    The end is -1 when more text is needed to say. final: nothing follows this text. every: plain words too.
    """
    if shown := _GAP.match(text, at) or (None if every else _PLAIN.match(text, at)):
        return shown.end(), False
    return _segment_end(text, at, final=final), True


def _segment_end(text: str, start: int, *, final: bool) -> int:  # noqa: PLR0911 — one line a reason to stop
    """Return where the segment that begins here ends; -1: more text is needed to say."""
    word = start  # where the last word of the segment begins
    while True:
        stop = _word_end(text, word, final=final, soft=word == start)
        if stop < 0 or stop == len(text):
            return stop
        if text[stop] not in " \t":
            return stop
        joint = _joint(text, start, word, stop)
        if joint == "":
            return stop
        if stop + 1 == len(text):
            return stop if final else -1
        following = _WORD.match(text, stop + 1)
        if following is None:
            return stop
        if following.end() == len(text) and not final and following.end() - following.start() <= HARD:
            return -1
        if joint == "number" and not _NEXT_GROUP.fullmatch(following[0]):
            return stop
        word = stop + 1


def _word_end(text: str, start: int, *, final: bool, soft: bool) -> int:
    """Return where the word ends or is cut; -1: more text is needed to say. soft: may be cut at a comma."""
    found = _WORD.match(text, start)
    stop = found.end() if found else start
    length = stop - start
    if length > SOFT and soft:
        ends = [one.end() for one in _SOFT_END.finditer(text, start, start + SOFT)]
        if ends:
            return ends[-1]
        if after := _SOFT_END.search(text, start + SOFT, min(stop, start + HARD)):
            return after.end()
    if length > HARD:
        return start + HARD
    return -1 if stop == len(text) and not final else stop


def _joint(text: str, start: int, word: int, stop: int) -> str:  # noqa: PLR0911 — one line a reason to go on
    """Return why the next word may belong to this segment: "named", "number", or "" if it does not."""
    if stop - start > _MOST_JOINED:
        return ""
    last = text[stop - 1]
    if last in _DIGITS or last == ")":
        if stop - start <= _MOST_GROUPED and _GROUP.fullmatch(text, word, stop):
            return "number"
        if stop - start <= _MOST_GROUPED and word > start and _NEXT_GROUP.fullmatch(text, word, stop):
            return "number"
    tail = text[max(start, stop - LONGEST_TAIL) : stop]
    if last in _NAMED_END and _NAMED.search(tail):
        return "named"
    if "-----BEGIN" in tail and _PEM_OPEN.search(tail):
        return "named"
    if stop - start <= _MOST_QUOTED and _ANY_NAME.search(text, start, stop) and _QUOTE_OPEN.search(text[start:stop]):
        return "named"
    return ""
