"""dedup: owns which rows say the same: exactly, by their content's hash, or nearly, by MinHash and bands (LSH). Pure.

Two rows are near duplicates when the sets of their word triples overlap by the threshold or more (Jaccard), as 120
minima tell it. That two rows are near depends on these two alone, so a second pass over what a first one left finds
nothing. What is compared is what people and the model said and the calls, never the tools' lists and results: those
make all rows of one appliance look alike.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from loopbox_trainer.rows import Message
from loopbox_trainer.split import Components

MINIMA: Final = 120
BANDS: Final = 20  #: of six minima: of pairs alike by 0.8 they miss 2 in 1,000, of those alike by 0.7 8 in 100
MOST_WORDS: Final = 4096  #: of one row that are looked at
MOST_COMPARED: Final = 256  #: rows in one bucket that are compared with each other; more are taken for alike
_BATCH: Final = 128
_MOST_CACHED: Final = 1 << 18

Signatures = npt.NDArray[np.uint32]  #: (rows, MINIMA)

_UNSPACED: Final = re.compile("[぀-ヿ㐀-鿿가-힯]")  # scripts without spaces count by the character
_WORD_BYTES: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_") | frozenset(range(0x80, 0x100))
#: What is no letter or digit becomes a space; bytes beyond ASCII are letters of some script.
_SPACED: Final = bytes(byte if byte in _WORD_BYTES else 0x20 for byte in range(0x100))
_ARGUMENTS: Final = msgspec.json.Encoder(order="deterministic")


def _odd(seed: int, size: int) -> npt.NDArray[np.uint64]:
    """Return fixed odd numbers: the same on every machine and in every version."""
    state = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    return _mixed(state) | np.uint64(1)


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return 64-bit values whose every bit depends on all bits of the given ones (splitmix64's finaliser)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


with np.errstate(over="ignore"):
    _TRIPLE: Final = _odd(1, 3)
    _FACTORS: Final = _odd(2, MINIMA).astype(np.uint32) | np.uint32(1)
    _ADDENDS: Final = _odd(3, MINIMA).astype(np.uint32)
    _BAND: Final = _odd(4, MINIMA)


def said(messages: Sequence[Message]) -> str:
    """Return what is compared of a conversation."""
    return " \n".join(_said(messages))


def _said(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        if message.role in ("user", "assistant"):
            yield message.content
            for call in message.tool_calls:
                yield call.name
                yield _ARGUMENTS.encode(call.arguments).decode()


class MinHash:
    """Makes signatures. Remembers the hashes of words, within bounds."""

    def __init__(self) -> None:
        self._words: dict[bytes, int] = {}

    def signatures(self, texts: Sequence[str]) -> Signatures:
        """Return one row of minima for each text."""
        made = np.empty((len(texts), MINIMA), dtype=np.uint32)
        for start in range(0, len(texts), _BATCH):
            batch = texts[start : start + _BATCH]
            made[start : start + len(batch)] = self._batch(batch)
        return made

    def _batch(self, texts: Sequence[str]) -> Signatures:
        ids: list[int] = []
        bounds: list[int] = []
        for text in texts:
            bounds.append(len(ids))
            ids += self._hashes(text)
            bounds.append(len(ids))
            ids += (0, 0)  # so that no triple reaches into the next text
        words = np.array(ids, dtype=np.uint64)
        triples = words[:-2] * _TRIPLE[0] ^ words[1:-1] * _TRIPLE[1] ^ words[2:] * _TRIPLE[2]
        hashes = (_mixed(triples) >> np.uint64(32)).astype(np.uint32)
        # The last bound is the end of the hashes, where reduceat takes no index.
        places = np.array(bounds[:-1], dtype=np.intp)
        made = np.empty((len(texts), MINIMA), dtype=np.uint32)
        for number in range(MINIMA):
            made[:, number] = np.minimum.reduceat(hashes * _FACTORS[number] + _ADDENDS[number], places)[::2]
        return made

    def _hashes(self, text: str) -> list[int]:
        if _UNSPACED.search(text):
            text = _UNSPACED.sub(r" \g<0> ", text)
        words = text.lower().encode("utf-8", "surrogatepass").translate(_SPACED).split()[:MOST_WORDS] or [b""]
        known = self._words
        try:
            return [known[word] for word in words]
        except KeyError:
            if len(known) > _MOST_CACHED:
                known.clear()
            for word in words:
                if word not in known:
                    known[word] = zlib.crc32(word) + 1
        return [known[word] for word in words]


def join_near(components: Components, signatures: Signatures, threshold: float) -> None:
    """Join near duplicates in the components, of which each signature is one item."""
    least = threshold * MINIMA
    short = signatures.astype(np.uint8)  # eight bits tell a minimum from another well enough, at a quarter of the work
    width = MINIMA // BANDS
    for band in range(BANDS):
        columns = slice(band * width, (band + 1) * width)
        keys = (signatures[:, columns].astype(np.uint64) * _BAND[columns]).sum(axis=1, dtype=np.uint64)
        for bucket in _buckets(keys):
            if len({components.root(item) for item in bucket}) > 1:
                _join_bucket(components, short, bucket, least)


def _buckets(keys: npt.NDArray[np.uint64]) -> Iterator[list[int]]:
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    changes = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    starts = np.concatenate(([0], changes))
    ends = np.concatenate((changes, [len(keys)]))
    many = np.flatnonzero(ends - starts > 1)
    for start, end in zip(starts[many].tolist(), ends[many].tolist(), strict=True):
        yield order[start:end].tolist()


def _join_bucket(components: Components, short: npt.NDArray[np.uint8], bucket: list[int], least: float) -> None:
    if len(bucket) > MOST_COMPARED:
        for item in bucket[1:]:
            components.join(bucket[0], item)
        return
    rows = short[bucket]
    equal = (rows[:, None, :] == rows[None, :, :]).sum(axis=2) >= least
    ones, others = np.nonzero(np.triu(equal, 1))
    for one, other in zip(ones.tolist(), others.tolist(), strict=True):
        components.join(bucket[one], bucket[other])
