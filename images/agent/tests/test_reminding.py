"""The facts that a run's reminders are made of."""

from __future__ import annotations

from loopbox_agent.deadline import Deadline
from loopbox_agent.reminding import Reminding


def test_what_was_compressed_away_is_told_of_once_and_again_when_more_is() -> None:
    dropped = 0
    reminding = Reminding(Deadline.never(), None, 8, dropped=lambda: dropped)
    assert reminding.words() == ""
    dropped = 12
    assert "12 earlier messages were replaced" in reminding.words()
    assert reminding.words() == ""
    dropped = 15
    told = [words for _ in range(6) if (words := reminding.words())]
    assert len(told) == 1
    assert "3 earlier messages" in told[0]


def test_notes_are_told_of_once_however_long_the_run() -> None:
    reminding = Reminding(Deadline.never(), None, 8, notes=["The boat is called Fulmar."])
    told = [words for _ in range(20) if (words := reminding.words())]
    assert len(told) == 1
    assert "Fulmar" in told[0]


def test_tokens_are_told_of_where_they_have_a_limit() -> None:
    assert Reminding(Deadline.never(), None, 8, tokens=lambda: 99).words() == ""
    limited = Reminding(Deadline.never(), None, 8, tokens=lambda: 99, most_tokens=100)
    assert "99 of 100 tokens" in limited.words()
