"""dump: owns reading a dump of the agent's store: the runs that their users let be learnt from, nothing else of it.

Conversations lie in it, too, of everybody; only the table of interactions holds what was agreed to.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from loopbox_trainer.errors import TrainerError
from loopbox_trainer.sources import Record, Room, read_packed_lines

FORMAT: Final = "loopbox-agent-dump-1"
_WANTED: Final = b'{"table": "interactions", '
_JSON_COLUMNS: Final = ("messages", "tools")


def read_dump(path: Path, room: Room) -> Iterator[Record]:
    """Yield interactions. Raises TrainerError: unreadable, and when a limit is passed."""
    try:
        number = 0
        for line in read_packed_lines(path, room):
            if number == 0:
                _check_head(line)
                number = 1
            elif line.startswith(_WANTED):
                row = msgspec.json.decode(line)["row"]
                room.take(0)
                yield Record(number, value=row | {name: msgspec.json.decode(row[name]) for name in _JSON_COLUMNS})
                number += 1
    except (KeyError, TypeError, ValueError, AttributeError, msgspec.DecodeError) as error:
        message = f"{path.name} is no dump of the agent: {error}. Nothing was written."
        raise TrainerError("unreadable", message) from error


def _check_head(line: bytes) -> None:
    if msgspec.json.decode(line).get("format") != FORMAT:
        raise ValueError("it does not begin as one")
