"""chunks: owns how a document is cut into passages: at the borders of paragraphs, overlapping. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

SIZE = 1200  #: characters, the most of one passage
OVERLAP = 150  #: characters, about, that a passage repeats of the one before

# Where a passage may end, best first: after a paragraph, a line, a sentence, a word.
_BORDERS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"[.!?;:]\s"), re.compile(r"\s"))


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a text."""

    start: int  #: of its first character
    text: str


def cut(text: str, *, size: int = SIZE, overlap: int = OVERLAP) -> list[Chunk]:
    """Return passages of at most `size` characters that together hold every character of the text but outer spaces.

    overlap: below half of size.
    """
    chunks: list[Chunk] = []
    start = 0
    while start < len(text):
        end = _end(text, start, size)
        piece = text[start:end]
        if stripped := piece.strip():
            chunks.append(Chunk(start + len(piece) - len(piece.lstrip()), stripped))
        if end >= len(text):
            break
        start = _next_start(text, start, end, overlap)
    return chunks


def _end(text: str, start: int, size: int) -> int:
    """Return where the passage that begins at start ends: at the best border of the window's second half."""
    limit = start + size
    if limit >= len(text):
        return len(text)
    for border in _BORDERS:
        ends = [match.end() for match in border.finditer(text, start + size // 2, limit)]
        if ends:
            return ends[-1]
    return limit


def _next_start(text: str, start: int, end: int, overlap: int) -> int:
    """Return where the next passage begins: a word's begin about `overlap` before the end of this one."""
    earliest = max(end - overlap, start + 1)
    word = _BORDERS[-1].search(text, earliest, end)
    return word.end() if word else end
