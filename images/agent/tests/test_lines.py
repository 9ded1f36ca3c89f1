"""Cutting an answer's bytes into lines."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox_agent.lines import LineTooLongError, cut_lines


async def arriving(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(0, 400)))
async def test_lines_are_the_same_however_the_network_cuts_them(content: list[bytes], cuts: list[int]) -> None:
    """Guards against a chunk border inside a line, and against cutting at other separators than a line feed."""
    whole = b"\n".join(content)
    marks = sorted({0, len(whole), *(c for c in cuts if c <= len(whole))})
    chunks = [whole[a:b] for a, b in itertools.pairwise(marks)]
    got = [line async for line in cut_lines(arriving(chunks), longest=1 << 20)]
    assert got == [line for line in whole.split(b"\n") if line.strip()]


@pytest.mark.parametrize("chunks", [[b"x" * 11], [b"x" * 6, b"x" * 6], [b"x" * 11 + b"\n"]])
async def test_a_line_that_does_not_end_is_refused_before_it_fills_the_memory(chunks: list[bytes]) -> None:
    with pytest.raises(LineTooLongError):
        [_ async for _ in cut_lines(arriving(chunks), longest=10)]
