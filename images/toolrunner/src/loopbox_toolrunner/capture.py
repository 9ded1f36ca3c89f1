"""capture: owns the head and the tail of a stream, in constant memory however long it is."""

from __future__ import annotations

from collections import deque


class Capture:
    """Keeps the first half and the last half of ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._head_room = limit // 2
        self._tail_room = limit - self._head_room
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self.total = 0  #: bytes seen

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        self.total += len(chunk)
        room = self._head_room - len(self._head)
        if room > 0:
            self._head += chunk[:room]
            chunk = chunk[room:]
        if len(chunk) > self._tail_room:
            chunk = chunk[len(chunk) - self._tail_room :]
        if not chunk:
            return
        self._tail.append(chunk)
        self._tail_bytes += len(chunk)
        while self._tail_bytes - len(self._tail[0]) >= self._tail_room:
            self._tail_bytes -= len(self._tail.popleft())
        if len(self._tail) > self._tail_room // 64 + 64:  # many tiny chunks weigh more than their bytes
            self._tail = deque([b"".join(self._tail)])

    @property
    def truncated(self) -> bool:
        """Whether bytes were left out."""
        return self.total > self._head_room + self._tail_room

    def text(self, where: str = "") -> str:
        """Return what was kept, with a line that tells how many bytes are missing between head and tail.

        where: added to that line.
        """
        tail = b"".join(self._tail)
        if not self.truncated:
            return (bytes(self._head) + tail).decode(errors="replace")
        tail = tail[len(tail) - self._tail_room :] if self._tail_room else b""
        head = whole_end(bytes(self._head))
        tail = whole_start(tail)
        missing = self.total - len(head) - len(tail)
        return (
            f"{head.decode(errors='replace')}\n[… {missing} bytes left out{where} …]\n{tail.decode(errors='replace')}"
        )


def whole_end(text: bytes) -> bytes:
    """Drop a UTF-8 character that the end cuts in two."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte & 0xC0 != 0x80:  # noqa: PLR2004 not a continuation byte
            length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1  # noqa: PLR2004
            return text[:-back] if length > back else text
    return text


def whole_start(text: bytes) -> bytes:
    """Drop the rest of a UTF-8 character that the start cuts in two."""
    for index, byte in enumerate(text[:3]):
        if byte & 0xC0 != 0x80:  # noqa: PLR2004 not a continuation byte
            return text[index:]
    return text[3:]
