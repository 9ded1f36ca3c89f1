"""ledger: owns reading what a loopd under measurement wrote down, beside it and without asking it anything."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from faults.rig import Rig

POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; its time in seconds of the epoch."""

    seq: int
    event: str
    at: float
    subject: str
    cause: str
    detail: dict[str, Any]  # Any: JSON scalars


def epoch(written: str) -> float:
    """Return one of state.db's times in seconds of the epoch."""
    return datetime.fromisoformat(written).timestamp()


def entries(rig: Rig, after: int, *events: str) -> list[Entry]:
    """Return the entries of these kinds, of all for none, oldest first."""
    try:
        rows = rig.query("SELECT seq, event, at, subject, cause, detail FROM ledger WHERE seq > ? ORDER BY seq", after)
    except sqlite3.OperationalError:  # busy at this moment
        return []
    found = [Entry(row[0], row[1], epoch(row[2]), row[3], row[4], json.loads(row[5])) for row in rows]
    return [entry for entry in found if not events or entry.event in events]


def wait_entry(rig: Rig, after: int, *events: str, subject: str = "", seconds: float) -> Entry | None:
    """Return the first such entry as soon as it is there; None when it does not come in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for entry in entries(rig, after, *events):
            if subject in ("", entry.subject):
                return entry
        time.sleep(POLL_S)
    return None
