"""mutate: owns the making of a broken file from a valid one: changes that know the format, and some that do not."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from typing import Final

from fuzz.corpus import Field, Seed

NUMBERS: Final = (
    *(0, 1, 2, 3, 7, 8, 9, 12, 13, 31, 32, 33, 63, 64, 127, 128, 255, 256, 511, 512, 513, 1023, 4096, 65_535, 65_536),
    *((1 << 20), (1 << 24), (1 << 28), (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 60, 1 << 61),
    *((1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1),
)
NUMERIC: Final = frozenset({"version", "count", "length", "type", "dimension", "offset"})
FORMS: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}


def number(data: bytearray, fields: list[Field], random: Random) -> None:
    """Give a number another value: one of interest, its neighbour, or any."""
    one = random.choice([f for f in fields if f.kind in NUMERIC or (f.kind == "value" and f.length in FORMS)])
    if one.start + one.length > len(data):
        return
    form = struct.Struct("<" + FORMS[one.length])
    (old,) = form.unpack_from(data, one.start)
    new = random.choice(
        (random.choice(NUMBERS), old + random.randint(-4, 4), old * 2, random.getrandbits(one.length * 8))
    )
    form.pack_into(data, one.start, new & ((1 << one.length * 8) - 1))


def grow(data: bytearray, fields: list[Field], random: Random) -> None:
    """Make a string or the bytes behind a length longer, and say so, so that all behind it moves."""
    index = random.randrange(len(fields) - 1)
    one, after = fields[index], fields[index + 1]
    if one.kind != "length" or one.start + 8 > len(data):
        return
    more = random.choice((1, 2, 31, 64, 300, 5000))
    (old,) = struct.unpack_from("<Q", data, one.start)
    struct.pack_into("<Q", data, one.start, (old + more) & ((1 << 64) - 1))
    data[after.start : after.start] = random.randbytes(1) * more


def swap(data: bytearray, fields: list[Field], random: Random) -> None:
    """Put the bytes of one field in the place of another."""
    source, target = random.choice(fields), random.choice(fields)
    data[target.start : target.start + target.length] = data[source.start : source.start + source.length]


def copy_entry(data: bytearray, fields: list[Field], random: Random) -> None:
    """Put a run of fields in a second time, or take it out."""
    first = random.randrange(len(fields))
    last = min(len(fields) - 1, first + random.randrange(1, 8))
    start, end = fields[first].start, fields[last].start
    if random.random() < 0.5:
        data[start:start] = data[start:end] * random.choice((1, 1, 50))
    else:
        del data[start:end]


def flip(data: bytearray, fields: list[Field], random: Random) -> None:
    """Change bits anywhere, mostly before the weights."""
    del fields
    if data:
        data[random.randrange(len(data))] ^= random.randrange(1, 256)


def cut(data: bytearray, fields: list[Field], random: Random) -> None:
    """End the file early, at a field or anywhere, or add to it."""
    where = random.choice(fields).start if random.random() < 0.5 else random.randrange(len(data) + 1)
    if random.random() < 0.2:
        data += random.randbytes(random.choice((1, 32, 5000)))
    else:
        del data[where:]


def weights(data: bytearray, fields: list[Field], random: Random) -> None:
    """Fill a field with one byte: zeros, not-a-number, NUL."""
    one = random.choice(fields)
    data[one.start : one.start + one.length] = random.choice((b"\0", b"\xff", b"\x7f", b"A")) * one.length


CHANGES: Final[tuple[Callable[[bytearray, list[Field], Random], None], ...]] = (
    *(number, number, number, number),
    *(grow, swap, copy_entry, flip, flip, cut, weights),
)


def mutant(seeds: list[Seed], number_of: int, salt: int) -> bytes:
    """Return the mutant of this number: the same number and salt give the same bytes."""
    random = Random(f"{salt}:{number_of}")  # noqa: S311 - repeatable, not secret
    seed = random.choice(seeds)
    data = bytearray(seed.data)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5))):
        random.choice(CHANGES)(data, seed.fields, random)
    return bytes(data)
