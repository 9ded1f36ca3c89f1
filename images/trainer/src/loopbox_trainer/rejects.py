"""rejects: owns the rows that were kept aside: where each came from, why, and how it begins. Bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from loopbox_trainer.rows import RowError

MOST_OF_ONE: Final = 50  #: of one source, step and reason; the counts in the manifest are of all
MOST: Final = 5000
_MOST_READ: Final = 2000  #: characters of a row that are looked at
_MOST_SHOWN: Final = 300  #: characters of a row that are kept, masked


@dataclass
class Rejects:
    """What was kept aside."""

    masked: Callable[[str], str]
    _lines: list[bytes] = field(default_factory=list)
    _seen: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    # Four facts and a row; nothing would be clearer for a record around them.
    def add(self, source: str, number: int, step: str, fault: RowError, row: Any) -> None:
        """Keep a row aside, unless enough like it are there. number: of the record in its source, from 1."""
        key = (source, step, fault.reason)
        self._seen[key] += 1
        if self._seen[key] > MOST_OF_ONE or len(self._lines) >= MOST:
            return
        told = {
            "source": source,
            "number": number,
            "step": step,
            "reason": fault.reason,
            "detail": self.masked(fault.detail),
            "begins": self.masked(_text(row)[:_MOST_READ])[:_MOST_SHOWN],
        }
        self._lines.append(msgspec.json.encode(told))

    def lines(self) -> Iterator[bytes]:
        """Yield what is written."""
        yield from self._lines


def _text(row: Any) -> str:  # Any: JSON
    if isinstance(row, bytes):
        return row[: _MOST_READ * 4].decode(errors="replace")
    try:
        return msgspec.json.encode(row).decode()
    except (TypeError, UnicodeError, RecursionError, msgspec.MsgspecError):
        return repr(row)
