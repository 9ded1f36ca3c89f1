"""Finding the ledger's end and following it, against a ledger in memory."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopd.api.schema import EventView
from loopd.cli import follow as following
from loopd.cli.events import about
from loopd.cli.exits import UnreachableError
from loopd.cli.follow import find_last, find_newest, follow, naps

if TYPE_CHECKING:
    from loopd.cli.client import Client


def entry(seq: int, subject: str = "gateway", **detail: str) -> EventView:
    return EventView(
        seq=seq,
        at=datetime(2026, 3, 1, tzinfo=UTC),
        event="unit.started",
        subject=subject,
        cause="it was absent",
        correlation_id="",
        detail=dict(detail),
        hash="0",
    )


class Ledger:
    """Answers as loopd does, and counts requests."""

    def __init__(self, entries: list[EventView], streams: list[Iterator[EventView | None]] | None = None) -> None:
        self.entries = entries
        self.streams = iter(streams or [])
        self.requests = 0
        self.resumed_at: list[int] = []

    def events(self, *, after: int = 0, limit: int = 500) -> list[EventView]:
        self.requests += 1
        return [e for e in self.entries if e.seq > after][:limit]

    def stream(self, after: int, *, tick_s: float) -> Generator[EventView | None]:
        assert tick_s > 0
        self.resumed_at.append(after)
        yield from next(self.streams)


def client(ledger: Ledger) -> Client:
    return cast("Client", ledger)


@given(gaps=st.lists(st.integers(1, 40), max_size=60), dense=st.integers(0, 3000))
def test_the_newest_entry_is_found(gaps: list[int], dense: int) -> None:
    """Reading a ledger of a million entries from its beginning would take minutes."""
    seqs = list(range(1, dense + 1))
    for gap in gaps:
        seqs.append((seqs[-1] if seqs else 0) + gap)
    ledger = Ledger([entry(seq) for seq in seqs])
    assert find_newest(client(ledger)) == (seqs[-1] if seqs else 0)
    assert ledger.requests <= 30


def test_the_last_entries_about_a_subject_are_found_far_back() -> None:
    """The latest page alone need not mention what is asked about; details count as well as subjects."""
    entries = [entry(seq) for seq in range(1, 2001)]
    entries[9] = entry(10, "engine-a")
    entries[699] = entry(700, "release", file="engine-a")
    entries[1499] = entry(1500, "engine-a")
    ledger = client(Ledger(entries))
    assert [e.seq for e in find_last(ledger, about({"engine-a"}), 2)] == [700, 1500]
    assert [e.seq for e in find_last(ledger, about({"engine-a"}), 9)] == [10, 700, 1500]
    assert [e.seq for e in find_last(ledger, about(set()), 3)] == [1998, 1999, 2000]
    assert find_last(client(Ledger([])), about(set()), 3) == []


def test_the_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is nowhere must not read the whole ledger."""
    monkeypatch.setattr(following, "MOST_LOOKED_AT", 1000)
    ledger = Ledger([entry(seq, "old" if seq == 1 else "gateway") for seq in range(1, 5001)])
    assert find_last(client(ledger), about({"old"}), 1) == []
    assert ledger.requests < 40


def broken(*entries: EventView | None) -> Iterator[EventView | None]:
    yield from entries
    raise UnreachableError("the stream broke off")


@pytest.fixture
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopd.cli.follow.time.sleep", lambda _: None)


@pytest.mark.usefixtures("_no_waits")
def test_a_broken_stream_is_taken_up_where_it_broke() -> None:
    """Twice or never seen entries are the defects; one that the server sends again is passed over."""
    said: list[str] = []
    ledger = Ledger(
        [],
        [broken(entry(4), entry(5)), broken(), iter([entry(5), entry(6), None]), iter([entry(7)])],
    )
    with closing(follow(client(ledger), 3, tick_s=1.0, say=said.append)) as entries:
        seen: list[int] = []
        while len(seen) < 4:
            if found := next(entries):
                seen.append(found.seq)
    assert seen == [4, 5, 6, 7]
    assert ledger.resumed_at == [3, 5, 5, 6]
    assert ["trying again in 0.25 s" in text for text in said] == [True, False, True]
    assert "trying again in 0.5 s, from entry 5 on" in said[1]
    assert "loopd ended the stream" in said[2]


@pytest.mark.usefixtures("_no_waits")
def test_patience_ends() -> None:
    """A script that waits for a rollout must not wait for ever for a loopd that is gone."""
    with (
        closing(follow(client(Ledger([], [broken()])), 0, tick_s=1.0, say=lambda _: None, patience_s=0.0)) as entries,
        pytest.raises(UnreachableError),
    ):
        next(entries)


def test_a_wait_is_cut_into_ticks() -> None:
    """While following waits to connect again, its reader still gets its ticks."""
    assert list(naps(2.5, 1.0)) == [1.0, 1.0, 0.5]
