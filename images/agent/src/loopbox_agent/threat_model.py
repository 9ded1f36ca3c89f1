"""threat_model: owns the classifier, a logistic regression over hashed words, pairs of words and runs of bytes. Pure.

Made by tools/train-guard; nothing but the standard library is needed to ask it.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from array import array
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from zlib import crc32

BUCKETS = 131_071  #: a prime, so that runs of bytes taken modulo spread evenly
WINDOW = 1000  #: characters judged at once; a longer text is judged by its most suspicious window
_WINDOWS = 4
_SENTENCES = 8
_SHORTEST_SENTENCE = 20
_FIRST = 60  #: characters of a sentence that its first three words are looked for in
_CAPITALS = re.compile(r"\b[A-ZÄÖÜ]{3,}\b")
_MANY_CAPITALS = 3  #: words in capitals
OWN_MODEL = Path(__file__).with_name("threat_model.bin")
_MAGIC = b"LBTM2\n"
_HEADER = struct.Struct("<6sIff")
_WORD = re.compile(r"\w+|[^\w\s]")
_SENTENCE_END = re.compile(r"(?<=[.!?:\n])\s+")
# Where in a long text an instruction to a model may stand.
_CUE = re.compile(
    r"\b(?:ignore|disregard|forget|override|instructions?|prompt|system|pretend|you are|act as|vergiss|ignorier\w*"
    r"|anweisung\w*)\b",
    re.IGNORECASE,
)


def features(text: str) -> set[int]:
    """Return the buckets of a text of at most WINDOW characters: what training and asking both see.

    Runs of three and four bytes, words, pairs of words, the first words of each sentence (orders begin with a verb),
    and whether much is written in capitals.
    """
    lowered = text.lower()
    raw = f" {' '.join(lowered.split())} ".encode()
    runs: set[int] = set()
    for offset in range(4):
        numbers = array("I")
        numbers.frombytes(raw[offset : offset + (len(raw) - offset) // 4 * 4])
        if sys.byteorder == "big":
            numbers.byteswap()
        runs.update(numbers)
    found = {run % BUCKETS for run in runs}
    found.update([((run & 0xFFFFFF) * 31 + 77) % BUCKETS for run in runs])
    words = [word.encode() for word in _WORD.findall(lowered)]
    found.update([crc32(word) % BUCKETS for word in words])
    found.update([crc32(a + b" " + b) % BUCKETS for a, b in pairwise(words)])
    for sentence in _SENTENCE_END.split(lowered, maxsplit=_SENTENCES)[:_SENTENCES]:
        first = [word.encode() for word in _WORD.findall(sentence[:_FIRST])[:3]]
        found.update([crc32(b"\2" + b" ".join(first[:count])) % BUCKETS for count in range(1, len(first) + 1)])
    if len(_CAPITALS.findall(text)) >= _MANY_CAPITALS:
        found.update([crc32(b"\1caps%d" % number) % BUCKETS for number in range(3)])
    return found


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """The weights, and how they become a probability."""

    weights: array[int]  #: one signed byte a bucket
    scale: float  #: what one step of a weight is worth
    bias: float

    @classmethod
    def read(cls, path: Path = OWN_MODEL) -> ThreatModel:
        """Read the file that tools/train-guard wrote. Raises ValueError if it is none."""
        raw = path.read_bytes()
        if len(raw) != _HEADER.size + BUCKETS:
            raise ValueError(f"{path.name} has {len(raw)} bytes, not {_HEADER.size + BUCKETS}: run tools/train-guard")
        magic, buckets, scale, bias = _HEADER.unpack_from(raw)
        if magic != _MAGIC or buckets != BUCKETS:
            raise ValueError(f"{path.name} was made for other features: run tools/train-guard")
        return cls(array("b", raw[_HEADER.size :]), scale, bias)

    def to_bytes(self) -> bytes:
        """Return what read() reads."""
        return _HEADER.pack(_MAGIC, BUCKETS, self.scale, self.bias) + self.weights.tobytes()

    def probability(self, text: str) -> float:
        """Return how likely a text is an attack, 0 to 1: of a long one, its most suspicious part.

        A long text gets several chances to look suspicious, so the odds of each part are divided by their number.
        """
        parts = windows(text)
        chances = len(parts) if len(text) > WINDOW else 1
        return max((self._window(part, chances) for part in parts), default=0.0)

    def _window(self, text: str, chances: int) -> float:
        found = features(text)
        if not found:
            return 0.0
        logit = sum(map(self.weights.__getitem__, found)) * self.scale / math.sqrt(len(found)) + self.bias
        return 1 / (1 + chances * math.exp(-max(-30.0, min(30.0, logit))))


def windows(text: str) -> list[str]:
    """Return the parts of a text that are judged, the whole or its beginning first.

    A short text: itself and up to eight of its sentences, since an order behind a harmless question is a known form.
    A long one: its beginning, its end, and where instructions seem to stand.
    """
    if len(text) <= WINDOW:
        sentences = _SENTENCE_END.split(text, maxsplit=_SENTENCES)[:_SENTENCES] if text.strip() else []
        return [text] * bool(sentences) + [one for one in sentences if _SHORTEST_SENTENCE <= len(one) < len(text)]
    starts = [0, len(text) - WINDOW]
    for found in _CUE.finditer(text):
        if len(starts) == _WINDOWS:
            break
        if all(not start <= found.start() < start + WINDOW - WINDOW // 8 for start in starts):
            starts.append(max(0, found.start() - WINDOW // 4))
    return [text[start : start + WINDOW] for start in starts]
