"""events: owns `loopctl events`: the ledger, its latest entries or each new one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Annotated

import typer

from loopd.api.schema import EventView
from loopd.cli.follow import PAGE, find_last, find_newest, follow
from loopd.cli.screen import Screen, open_screen
from loopd.cli.session import open_client
from loopd.cli.words import clock, plain, scalar

TICK_S = 5.0


def events(
    *,
    follow_on: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with each new entry, over restarts of loopd, until Ctrl-C.")
    ] = False,
    after: Annotated[
        int | None, typer.Option("--after", min=0, max=2**53, help="Begin after this sequence number.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=PAGE, help="At most so many past entries.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object a line.")] = False,
    subject: Annotated[
        str, typer.Option("--subject", "-s", help="Only entries about this service, release or file.")
    ] = "",
) -> None:
    """Show what happened and why: the latest entries of the ledger, oldest first.

    With --after, entries from there on. With --follow and --after, all of them and then each new one.
    """
    screen = open_screen()
    names = {subject} if subject else set()
    with open_client() as client:
        wanted = about(names)
        if after is not None and follow_on:
            past, newest = [], after
        elif after is not None:
            past, newest = take(client.events, after, wanted, limit), 0
        else:
            newest = find_newest(client) if follow_on else 0
            past = [e for e in find_last(client, wanted, limit) if not follow_on or e.seq <= newest]
        write(past, screen, as_json=json)
        if follow_on:
            with closing(follow(client, newest, tick_s=TICK_S, say=screen.remark)) as entries:
                for entry in entries:
                    if entry and wanted(entry):
                        write([entry], screen, as_json=json)


def take(
    read: Callable[..., list[EventView]], after: int, wanted: Callable[[EventView], bool], limit: int
) -> list[EventView]:
    """Return the first entries after a sequence number that are wanted."""
    found: list[EventView] = []
    while len(found) < limit and (page := read(after=after, limit=PAGE)):
        found += filter(wanted, page)
        after = page[-1].seq
    return found[:limit]


def about(names: set[str]) -> Callable[[EventView], bool]:
    """Return the test for entries whose subject or one of whose details is one of these names; none: all are."""

    def wanted(entry: EventView) -> bool:
        return not names or entry.subject in names or any(value in names for value in entry.detail.values())

    return wanted


def write(entries: Iterable[EventView], screen: Screen, *, as_json: bool) -> None:
    """Write each entry on a line."""
    for entry in entries:
        if as_json:
            screen.json(entry, indent=None)
        else:
            screen.line(sentence(entry))


def sentence(entry: EventView) -> str:
    """Return an entry on one line."""
    detail = "".join(f" {key}={scalar(value)}" for key, value in entry.detail.items() if value is not None)
    return f"{entry.seq:>6}  {clock(entry.at)}  {entry.event:<20} {plain(entry.subject)}: {plain(entry.cause)}{detail}"
