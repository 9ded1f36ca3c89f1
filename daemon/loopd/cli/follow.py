"""follow: owns following the ledger over broken connections, and finding its newest entries."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import TYPE_CHECKING

from loopd.api.schema import EventView
from loopd.cli.exits import UnreachableError

if TYPE_CHECKING:
    from loopd.cli.client import Client

FIRST_WAIT_S = 0.25
MOST_WAIT_S = 15.0
PAGE = 500  # loopd's own largest page
MOST_LOOKED_AT = 20_000  # entries; older ones are not searched

Say = Callable[[str], None]


def follow(
    client: Client, after: int, *, tick_s: float, say: Say, patience_s: float | None = None
) -> Generator[EventView | None]:
    """Yield entries after a sequence number for ever, each once, and None as a tick at least every ``tick_s``.

    A broken connection is taken up where it broke, after a growing wait; ``say`` is told. Raises UnreachableError
    when that has failed for ``patience_s``, ApiError when loopd refuses.
    """
    wait_s = FIRST_WAIT_S
    heard_at = time.monotonic()
    while True:
        try:
            with closing(client.stream(after, tick_s=tick_s)) as entries:
                for entry in entries:
                    heard_at, wait_s = time.monotonic(), FIRST_WAIT_S
                    if entry is None:
                        yield None
                    elif entry.seq > after:
                        after = entry.seq
                        yield entry
            cause = "loopd ended the stream"
        except UnreachableError as error:
            if patience_s is not None and time.monotonic() - heard_at > patience_s:
                raise
            cause = str(error)
        say(f"{cause}\n  trying again in {wait_s:g} s, from entry {after} on")
        for slept in naps(wait_s * (1 + secrets.randbelow(250) / 1000), tick_s):
            time.sleep(slept)
            yield None
        wait_s = min(wait_s * 2, MOST_WAIT_S)


def naps(whole_s: float, tick_s: float) -> Iterable[float]:
    """Cut a wait into pieces of at most ``tick_s``."""
    while whole_s > 0:
        piece = min(whole_s, tick_s)
        yield piece
        whole_s -= piece


def find_newest(client: Client) -> int:
    """Return the newest entry's sequence number, 0 for none, in about 2·log2(entries / 500) requests."""
    if len(page := client.events(limit=PAGE)) < PAGE:
        return page[-1].seq if page else 0
    low, step = page[-1].seq, PAGE  # an entry `low` exists
    while found := client.events(after=low + step, limit=1):
        low, step = found[-1].seq, step * 2
    high = low + step  # nothing after `high`
    while low < high:
        middle = (low + high) // 2
        if found := client.events(after=middle, limit=1):
            low = found[-1].seq
        else:
            high = middle
    return low


def find_last(client: Client, wanted: Callable[[EventView], bool], limit: int) -> list[EventView]:
    """Return the newest entries that are wanted, oldest first, searching back through MOST_LOOKED_AT entries."""
    found: deque[EventView] = deque(maxlen=limit)
    upper = newest = find_newest(client)
    while upper > max(0, newest - MOST_LOOKED_AT) and len(found) < limit:
        lower = max(0, upper - PAGE)
        page = [e for e in client.events(after=lower, limit=PAGE) if e.seq <= upper and wanted(e)]
        found.extendleft(reversed(page[-(limit - len(found)) :]))
        upper = lower
    return list(found)
