"""words: owns how times, sizes and foreign text read on a screen. Pure: the clock is an argument."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR
_STEP = 1024
_TENTHS_BELOW_S = 10


def plain(text: str, *, keep: str = "") -> str:
    """Return text that cannot steer a terminal: each control or format character but those in ``keep`` is shown.

    Ledger entries quote file names and models write what they like, escape sequences included.
    """
    return "".join(
        c if c in keep or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else f"\\u{ord(c):04x}"
        for c in text
    )


def span(seconds: float) -> str:
    """Return a length of time: ``4.1 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds < _TENTHS_BELOW_S:
        return f"{max(seconds, 0):.1f} s"
    whole = int(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


def ago(at: datetime, now: datetime) -> str:
    """Return how long ago something was."""
    return f"{span((now - at).total_seconds())} ago"


def clock(at: datetime) -> str:
    """Return a time in UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def size(count: int) -> str:
    """Return bytes in the unit that keeps the number short."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < _STEP:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= _STEP
    return f"{amount:.1f} TiB"


def scalar(value: str | float | bool | None) -> str:  # noqa: FBT001 a ledger detail is what it is
    """Return a ledger detail as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else plain(str(value))


def count(number: int, one: str, many: str) -> str:
    """Return ``1 entry``, ``2 entries``."""
    return f"{number} {one if number == 1 else many}"
