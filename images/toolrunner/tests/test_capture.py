"""Head and tail of a stream."""

from __future__ import annotations

import re
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from loopbox_toolrunner.capture import Capture, whole_end, whole_start

MISSING = re.compile(r"\n\[… (\d+) bytes left out …\]\n")


def fed(chunks: list[bytes], limit: int) -> Capture:
    capture = Capture(limit)
    for chunk in chunks:
        capture.feed(chunk)
    return capture


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(1, 300))
def test_what_fits_is_kept_whole_and_what_does_not_keeps_both_ends(chunks: list[bytes], limit: int) -> None:
    """Chunk borders once decided what was lost."""
    whole = b"".join(chunks).replace(b"\xe2", b"x").replace(b"\n", b"y")
    sizes = [len(chunk) for chunk in chunks]
    pieces, at = [], 0
    for size in sizes:
        pieces.append(whole[at : at + size])
        at += size
    capture = fed(pieces, limit)
    assert capture.total == len(whole)
    assert capture.truncated == (len(whole) > limit)
    if not capture.truncated:
        assert capture.text() == whole.decode(errors="replace")


@given(st.text(max_size=300), st.integers(8, 100), st.integers(1, 7))
def test_no_character_is_cut_in_two_and_the_missing_bytes_are_counted(text: str, limit: int, step: int) -> None:
    """A cut inside a character would show replacement marks that the command never wrote."""
    text = text.replace("[", "(")
    raw = text.encode()
    capture = fed([raw[i : i + step] for i in range(0, len(raw), step)], limit)
    shown = capture.text()
    if not capture.truncated:
        assert shown == text
        return
    head, count, tail = MISSING.split(shown)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head.encode()) + int(count) + len(tail.encode()) == len(raw)
    assert limit - 6 <= len(head.encode()) + len(tail.encode()) <= limit


@given(st.binary(max_size=20))
def test_trimming_rubbish_takes_three_bytes_at_most(raw: bytes) -> None:
    """Bytes that are no text must not vanish altogether."""
    assert len(whole_end(raw)) >= len(raw) - 3
    assert len(whole_start(raw)) >= len(raw) - 3
    assert raw.startswith(whole_end(raw))
    assert raw.endswith(whole_start(raw))


def test_a_long_stream_in_tiny_chunks_takes_constant_memory() -> None:
    """A deque of one-byte chunks weighs fifty times its bytes."""
    capture = Capture(64 << 10)
    tracemalloc.start()
    for _ in range(300_000):
        capture.feed(b"x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert capture.total == 300_000
    assert peak < 1 << 20
