"""outputs: owns what a model is shown of a long output: its head and its tail, and where the whole of it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import structlog

MAX_BYTES = 16 << 10  # shown; about 4,000 tokens
MAX_LINES = 400
MAX_KEPT = 8 << 20  # bytes handed to ``keep``

log = structlog.get_logger("agent.outputs")


class Keep(Protocol):
    """Stores a text whole. Whatever it raises is told to the model as "not kept"."""

    async def __call__(self, name: str, text: str) -> str:
        """Return the reference by which the model can read it again: a path, or a tool and its arguments."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A text within bounds, in two pieces where something was left out."""

    head: str
    tail: str = ""
    left_bytes: int = 0
    left_lines: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return self.left_bytes == 0


@dataclass(frozen=True, slots=True)
class Shown:
    """What the model gets."""

    text: str
    whole: bool
    reference: str = ""  #: of the whole text; "" when it is all shown, or could not be kept


def cut(text: str, *, max_bytes: int = MAX_BYTES, max_lines: int = MAX_LINES) -> Cut:
    """Return a text's first and last half of the bounds, at line ends where a line ends near."""
    raw = text.encode(errors="replace")
    lines = raw.count(b"\n") + (not raw.endswith(b"\n"))
    if len(raw) <= max_bytes and lines <= max_lines:
        return Cut(raw.decode())
    half_bytes, half_lines = max_bytes // 2, max(1, max_lines // 2)
    start = _end_of_head(raw, half_bytes, half_lines)
    end = max(start, _start_of_tail(raw, max_bytes - half_bytes, max(1, max_lines - half_lines)))
    left = raw[start:end]
    if not left:
        return Cut(raw.decode())
    # Half a character at a cut is left out with the rest.
    return Cut(
        raw[:start].decode(errors="ignore"), raw[end:].decode(errors="ignore"), len(left), max(1, left.count(b"\n"))
    )


async def fit(
    name: str, text: str, keep: Keep | None, *, max_bytes: int = MAX_BYTES, max_lines: int = MAX_LINES
) -> Shown:
    """Return what the model is shown of an output; one past the bounds is kept whole, with a note where.

    name: of the tool, for the reference. keep: None where the output can't be kept, or is kept already.
    """
    pieces = cut(text, max_bytes=max_bytes, max_lines=max_lines)
    if pieces.whole:
        return Shown(pieces.head, whole=True)
    reference = ""
    if keep is not None:
        try:
            reference = await keep(name, text if len(text) <= MAX_KEPT else text[:MAX_KEPT])
        except Exception as error:  # noqa: BLE001 a full disk must not cost the run its tool result
            log.warning("output.not_kept", tool=name, error=repr(error)[:300])
    where = f"the whole output is kept: {reference}" if reference else "the rest was not kept; ask for less at a time"
    note = f"[… {pieces.left_bytes} bytes in {pieces.left_lines} lines left out; {where} …]"
    head = pieces.head if pieces.head.endswith("\n") or not pieces.head else pieces.head + "\n"
    return Shown(f"{head}{note}\n{pieces.tail}", whole=False, reference=reference)


def _end_of_head(raw: bytes, most: int, lines: int) -> int:
    end = min(most, len(raw))
    at = -1
    for _ in range(lines):
        at = raw.find(b"\n", at + 1, end)
        if at < 0:
            break
    else:
        return at + 1
    newline = raw.rfind(b"\n", end // 2, end)
    return newline + 1 if newline >= 0 else end


def _start_of_tail(raw: bytes, most: int, lines: int) -> int:
    start = max(0, len(raw) - most)
    at = len(raw) - 1 if raw.endswith(b"\n") else len(raw)
    for _ in range(lines):
        at = raw.rfind(b"\n", start, at)
        if at < 0:
            break
    else:
        return at + 1
    newline = raw.find(b"\n", start, start + most // 2)
    return newline + 1 if newline >= 0 else start
