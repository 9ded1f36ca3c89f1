"""threat_text: owns what text says once its disguises are taken off. Pure, in time that grows with the length alone.

Compatibility forms become plain ones, invisible characters go, letters of other alphabets inside a Latin word become
the Latin ones they look like, and spans that are encoded are decoded, two levels deep, within a budget.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import unquote

LONGEST = 65_536  #: characters that are read; of a longer text the beginning and the end
_HEAD = 49_152
_MOST_SPANS = 8
_LONGEST_SPAN = 8192
_DECODED_BUDGET = 16_384  #: characters of all that was decoded
_LEAST_DECODED = 8

_ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u180e\u034f\u115f\u1160\u3164\uffa0\u2061\u2062\u2063\u2064"
_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
_VARIATION = "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
_TAGS = "".join(map(chr, range(0xE0000, 0xE0080)))
_INVISIBLE = frozenset(_ZERO_WIDTH + _BIDI + _VARIATION + _TAGS)
_GONE = dict.fromkeys(map(ord, _INVISIBLE))
_OVERRIDES = frozenset("\u202d\u202e\u2066\u2067\u2068")
_MANY_STYLED = 9
_TAG_RUN = re.compile("[\U000e0020-\U000e007e]{4,4096}")
# Joiners are part of emoji and of some scripts; between two Latin letters they hide something.
_HIDDEN_JOINER = re.compile(f"[A-Za-z][{_ZERO_WIDTH}]+(?=[A-Za-z])")

_LOOK_ALIKES = str.maketrans(
    "аеорсухікмнтвѕјԁһԛԝɡαοερνικτυχγωіΑΒΕΖΗΙΚΜΝΟΡΤΥΧАВЕКМНОРСТУХІЅЈ",
    "aeopcyxikmhtbsjdhqwgaoepviktuxywiABEZHIKMNOPTYXABEKMHOPCTYXISJ",
)
_LOOKING_LATIN = frozenset(map(chr, _LOOK_ALIKES))
_MIXED = re.compile(r"(?=\w{0,40}[A-Za-z])(?=\w{0,40}[\u0370-\u052f])\w{2,40}")
_SPACED = re.compile(r"(?<![\w])(?:[A-Za-z][ .*_\-]{1,2}){6,200}[A-Za-z](?![\w])")
_LEET = str.maketrans("013457@$!", "oieastasi")
_LEET_WORD = re.compile(r"(?<![\w@$!])(?:[A-Za-z]{0,12}[013457@$!]{1,3}[A-Za-z]{1,12}){1,4}[013457@$!]{0,3}(?![\w@$!])")
_LEET_INSIDE = re.compile(r"[A-Za-z][013457@$!]+[A-Za-z]")
_LEAST_LEET = 3  #: words; fewer are names and versions
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{20,8192}={0,2}")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x)?(?:[0-9A-Fa-f]{2}[ :]?){10,4096}(?![0-9A-Za-z])")
_HEX_ESCAPES = re.compile(r"(?:\\x[0-9A-Fa-f]{2}|\\u00[0-9A-Fa-f]{2}){4,2048}")
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2}[\w.~-]{0,3}){6,2048}")
_ENTITIES = re.compile(r"(?:&#x?[0-9A-Fa-f]{2,6};){4,2048}")
_BINARY = re.compile(r"(?<![01])(?:[01]{8} ?){4,1024}(?![01])")
# Words of attacks, as rot13 writes them.
_ROT13 = re.compile(
    r"\b(?:vtaber|qvfertneq|sbetrg|cerivbhf|vafgehpgvbaf?|flfgrz|cebzcg|erirny|birecvqr|cnffjbeq)\b", re.IGNORECASE
)
_SPACE = re.compile(r"[ \t\u00a0\u2000-\u200a\u3000]+")


@dataclass(frozen=True, slots=True)
class Plain:
    """A text without its disguises."""

    text: str  #: as a reader would see it
    decoded: tuple[str, ...]  #: what its encoded spans say
    disguises: frozenset[str]  #: zero_width, bidi, tags, look_alikes, spaced, leet, base64, hex, percent, …
    was_cut: bool


def plain(text: str, *, decode: bool = True) -> Plain:
    """Return what a text says. Of more than 65,536 characters the middle is left out.

    decode: read encoded spans, too; Unicode tags are always read.
    """
    was_cut = len(text) > LONGEST
    if was_cut:
        text = f"{text[:_HEAD]}\n{text[_HEAD - LONGEST :]}"
    disguises: set[str] = set()
    decoded: list[str] = []
    if not text.isascii():
        text = _uncover(text, disguises, decoded)[:LONGEST]
    budget = _DECODED_BUDGET
    level = [text] if decode else []
    for _ in range(2):
        level = [span for one in level for span in _decode(one, disguises)][:_MOST_SPANS]
        for index, span in enumerate(level):
            level[index] = span = span[:budget]  # noqa: PLW2901 — within what is left
            budget -= len(span)
        level = [span for span in level if len(span) >= _LEAST_DECODED]
        decoded += level
    return Plain(_SPACE.sub(" ", text), tuple(decoded), frozenset(disguises), was_cut)


def _uncover(text: str, disguises: set[str], decoded: list[str]) -> str:
    """Return the text with what can't be seen gone, and letters that only look Latin as Latin ones."""
    others = {char for char in set(text) if not char.isascii()}  # a look at each character once; the rest is rare
    if others & _INVISIBLE:
        for run in _TAG_RUN.findall(text)[:_MOST_SPANS]:
            decoded.append("".join(chr(ord(char) - 0xE0000) for char in run))
            disguises.add("tags")
        if _HIDDEN_JOINER.search(text):
            disguises.add("zero_width")
        if others & _OVERRIDES:
            disguises.add("bidi")
        text = text.translate(_GONE)
    # Full-width and mathematical letters; ligatures, fractions and the like are no disguise, nor is a word or two.
    styled = [
        char for char in others if len(plain_form := unicodedata.normalize("NFKC", char)) == 1 and plain_form.isascii()
    ]
    if sum(text.count(char) for char in styled if unicodedata.normalize("NFKC", char).isalpha()) >= _MANY_STYLED:
        disguises.add("compatibility_forms")
    folded = unicodedata.normalize("NFKC", text)
    if others & _LOOKING_LATIN:

        def latin(found: re.Match[str]) -> str:
            disguises.add("look_alikes")
            return found[0].translate(_LOOK_ALIKES)

        folded = _MIXED.sub(latin, folded)
    return folded


def _decode(text: str, disguises: set[str]) -> list[str]:
    """Return what the encoded spans of a text say, those that say anything readable."""
    spans: list[tuple[str, str]] = []
    for kind, pattern in (("hex", _HEX), ("base64", _BASE64), ("binary", _BINARY)):
        for found in list(pattern.finditer(text))[: _MOST_SPANS * 4]:
            if said := _readable(kind, found[0]):
                spans.append((kind, said))  # noqa: PERF401 — a name for what was said
    if "\\" in text:
        spans += [
            ("escapes", bytes.fromhex(re.sub(r"\\x|\\u00", "", one)).decode("latin-1"))
            for one in _HEX_ESCAPES.findall(text)[:_MOST_SPANS]
        ]
    if "%" in text:
        spans += [("percent", unquote(one[:_LONGEST_SPAN])) for one in _PERCENT.findall(text)[:_MOST_SPANS]]
    if "&#" in text:
        spans += [("entities", html.unescape(one)) for one in _ENTITIES.findall(text)[:_MOST_SPANS]]
    spans += [("spaced", re.sub(r"[ .*_\-]", "", one)) for one in _SPACED.findall(text)[:_MOST_SPANS]]
    if _ROT13.search(text):
        spans.append(("rot13", codecs.decode(text[:_LONGEST_SPAN], "rot13")))
    leet = [one for one in _LEET_WORD.findall(text[:_LONGEST_SPAN]) if _LEET_INSIDE.search(one)]
    if len(leet) >= _LEAST_LEET:
        spans.append(("leet", _LEET_WORD.sub(lambda found: found[0].lower().translate(_LEET), text[:_LONGEST_SPAN])))
    spans = spans[:_MOST_SPANS]
    disguises.update(kind for kind, _ in spans)
    return [said for _, said in spans]


def _readable(kind: str, span: str) -> str:
    """Return what an encoded span says, "" if it is no text: a digest, a picture, a word."""
    span = span[:_LONGEST_SPAN]
    try:
        if kind == "hex":
            raw = bytes.fromhex(re.sub(r"^0x|[ :]", "", span))
        elif kind == "binary":
            bits = span.replace(" ", "")
            raw = int(bits, 2).to_bytes(len(bits) // 8, "big")
        else:
            body = span.rstrip("=").translate(str.maketrans("-_", "+/"))
            raw = base64.b64decode(body[: len(body) // 4 * 4] if len(body) % 4 == 1 else body + "=" * (-len(body) % 4))
        said = raw.decode()
    except (ValueError, binascii.Error):
        return ""
    readable = sum(char.isalnum() or char in " .,:;!?'\"\n-_/()" for char in said)
    return said if len(said) >= _LEAST_DECODED and readable >= 0.9 * len(said) and any(map(str.isalpha, said)) else ""
