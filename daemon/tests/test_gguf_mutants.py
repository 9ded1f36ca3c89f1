"""A mutator over the tiny model: the parser answers or refuses, and never anything else.

The number of examples comes from the hypothesis profile; `make fuzz` may raise it by LOOPBOX_FUZZ_EXAMPLES.
"""

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopd.gguf import GgufError, Summary, inspect
from tiny_gguf import make_tiny_gguf

EXAMPLES = int(os.environ.get("LOOPBOX_FUZZ_EXAMPLES", "300"))
#: Longest time one file may take, in seconds; the bar is 2 on a quiet machine, this leaves room for a busy one.
LONGEST = 5.0
INTERESTING = (0, 1, 2, 7, 8, 9, 31, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 60, 1 << 61, 1 << 63, (1 << 64) - 1)
#: Where the header of the tiny model ends, about; damage there is worth more than damage to the weights.
HEADER = 7000

Change = Callable[[bytearray], None]


def flip(position: int, bits: int) -> Change:
    def change(data: bytearray) -> None:
        if data:
            data[position % len(data)] ^= bits

    return change


def splice(position: int, number: int, width: int) -> Change:
    def change(data: bytearray) -> None:
        raw = struct.pack("<Q", number)[:width]
        start = position % max(1, len(data) - width)
        data[start : start + width] = raw

    return change


def cut(position: int) -> Change:
    def change(data: bytearray) -> None:
        del data[position % (len(data) + 1) :]

    return change


def remove(position: int, length: int) -> Change:
    def change(data: bytearray) -> None:
        start = position % (len(data) + 1)
        del data[start : start + length]

    return change


def repeat(source: int, length: int, target: int) -> Change:
    def change(data: bytearray) -> None:
        start = source % (len(data) + 1)
        place = target % (len(data) + 1)
        data[place:place] = data[start : start + length]

    return change


PLACE = st.one_of(st.integers(0, HEADER), st.integers(0, 500_000))
CHANGE: st.SearchStrategy[Change] = st.one_of(
    st.builds(flip, PLACE, st.integers(1, 255)),
    st.builds(splice, PLACE, st.sampled_from(INTERESTING), st.sampled_from((1, 2, 4, 8))),
    st.builds(splice, st.integers(0, 23), st.integers(0, (1 << 64) - 1), st.just(8)),
    st.builds(cut, PLACE),
    st.builds(remove, PLACE, st.integers(1, 64)),
    st.builds(repeat, PLACE, st.integers(1, 256), PLACE),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    path = make_tiny_gguf(tmp_path_factory.mktemp("mutants") / "base.gguf")
    return path.read_bytes(), path.with_name("mutant.gguf")


def verdict(path: Path) -> Summary | GgufError:
    try:
        return inspect(path)
    except GgufError as error:
        return error


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(CHANGE, min_size=1, max_size=6))
def test_a_mutant_is_read_or_refused(base: tuple[bytes, Path], changes: list[Change]) -> None:
    """Guards against any other exception, and against a file that holds the reader."""
    data = bytearray(base[0])
    for change in changes:
        change(data)
    base[1].write_bytes(data)
    start = time.monotonic()
    answer = verdict(base[1])
    assert isinstance(answer, Summary) or (answer.code and len(str(answer)) < 600)
    assert time.monotonic() - start < LONGEST


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=400))
def test_junk_behind_a_good_magic_is_refused(base: tuple[bytes, Path], junk: bytes) -> None:
    """Guards the reader from its first byte on."""
    base[1].write_bytes(b"GGUF\3\0\0\0" + junk)
    with pytest.raises(GgufError):
        inspect(base[1])
