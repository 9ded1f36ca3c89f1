"""The parser of event streams: any cut gives the same messages, nothing makes it grow or fall over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopd.cli.sse import Message, Parser, StreamLimitError

WORD = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=20)
MESSAGES = st.lists(
    st.builds(
        Message,
        event=WORD.filter(bool),
        data=st.lists(WORD, min_size=1, max_size=4).map("\n".join),
        id=WORD,
    ),
    max_size=5,
)
PIECES = st.lists(
    st.sampled_from(
        [b"data: x", b"data:", b"event: a", b"id: 7", b":", b"\n", b"\r", b"\r\n", b"\xef\xbb\xbf", b"\xff"]
    ),
    max_size=30,
)


def encode(message: Message, end: str) -> bytes:
    lines = [f"id: {message.id}", f"event: {message.event}", *(f"data: {line}" for line in message.data.split("\n"))]
    return "".join(line + end for line in [*lines, ""]).encode()


@given(messages=MESSAGES, end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_what_is_encoded_is_read_back(messages: list[Message], end: str) -> None:
    """A colon, a leading space or an empty line within the data would change it."""
    # A lone CR at the very end may be half of a CRLF; loopd's comment after it settles that.
    stream = b"".join(encode(m, end) for m in messages) + b": alive\n"
    assert Parser().feed(stream) == messages


@given(pieces=PIECES, cuts=st.lists(st.integers(0, 200), max_size=12))
def test_cuts_make_no_difference(pieces: list[bytes], cuts: list[int]) -> None:
    """TCP cuts anywhere: between CR and LF, in a mark, in a character."""
    stream = b"".join(pieces)
    whole = Parser().feed(stream)
    parser, found, start = Parser(), [], 0
    for cut in [*sorted(c for c in cuts if c < len(stream)), len(stream)]:
        found += parser.feed(stream[start:cut])
        start = cut
    assert found == whole


@given(stream=st.binary(max_size=400))
def test_any_bytes_give_messages_or_the_limit(stream: bytes) -> None:
    """Foreign bytes end in a known error at worst, and what is kept stays below the limits."""
    parser = Parser(max_line_bytes=40, max_message_bytes=90)
    try:
        for at in range(0, len(stream), 7):
            parser.feed(stream[at : at + 7])
    except StreamLimitError:
        return
    assert len(parser._rest) <= 40
    assert parser._held <= 90


@pytest.mark.parametrize(
    "stream",
    [b"data: " + b"x" * 50, b"data: " + b"x" * 50 + b"\n\n", b"data: 123456789\n" * 20, b"event: 123456789\n" * 20],
)
def test_too_much_is_refused(stream: bytes) -> None:
    """A server that never ends a line or a message must not fill the memory."""
    with pytest.raises(StreamLimitError, match="larger than"):
        Parser(max_line_bytes=40, max_message_bytes=90).feed(stream)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"event: only\n\n", []),
        (b"data\n\n", [Message("message", "", "")]),
        (b"data:a\ndata: b\ndata:  c\n\n", [Message("message", "a\nb\n c", "")]),
        (b"id: 1\ndata: a\n\ndata: b\n\n", [Message("message", "a", "1"), Message("message", "b", "1")]),
        (b"id: 1\n\nid: 2\0\ndata: a\n\n", [Message("message", "a", "1")]),
        (b"retry: 5\nnew: x\n: note\ndata: a\n\n", [Message("message", "a", "")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Message("message", "a", "")]),
        (b"data: \xff\n\n", [Message("message", "\N{REPLACEMENT CHARACTER}", "")]),
        (b"data: unfinished\n", []),
    ],
)
def test_rules_of_the_format(stream: bytes, expected: list[Message]) -> None:
    """Each rule of the format that a simple split would get wrong."""
    assert Parser().feed(stream) == expected
