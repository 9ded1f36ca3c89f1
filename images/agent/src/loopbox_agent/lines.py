"""lines: owns the cutting of a byte stream into lines of bounded length. Pure but for the stream it reads."""

from __future__ import annotations

from collections.abc import AsyncIterator


class LineTooLongError(ValueError):
    """A line is longer than any honest answer's."""


async def cut_lines(chunks: AsyncIterator[bytes], *, longest: int) -> AsyncIterator[bytes]:
    """Yield the non-blank lines without their ends; what follows the last line end is yielded too.

    Cuts at line feeds only: text libraries also cut at separators that are lawful inside a JSON string.
    longest: bytes of one line. Raises LineTooLongError.
    """
    rest = bytearray()
    async for chunk in chunks:
        rest += chunk
        *whole, last = rest.split(b"\n")
        for line in whole:
            if len(line) > longest:
                raise LineTooLongError(f"a line has more than {longest} bytes")
            if line.strip():
                yield bytes(line)
        rest = last
        if len(rest) > longest:
            raise LineTooLongError(f"a line has more than {longest} bytes")
    if rest.strip():
        yield bytes(rest)
