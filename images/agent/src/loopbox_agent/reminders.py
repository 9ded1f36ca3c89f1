"""reminders: owns what the system reminds the model of at the beginning of a turn. Pure.

Each kind comes once in so many turns at most, the most pressing first, and all together have a bounded length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

Kind = Literal["time", "budget", "loop", "errors", "compression", "memory"]

MOST_CHARACTERS: Final = 1200  # of all reminders of a turn
_SHOWN_TITLES: Final = 5
_LONGEST_NAME: Final = 64
_LONGEST_TITLE: Final = 80


@dataclass(frozen=True, slots=True)
class CallSeen:
    """One tool call of the run so far."""

    tool: str
    key: str  #: equal for equal calls, as loop_watch.call_key makes it
    failure: str = ""  #: its category, '' when it went well
    advice: str = ""  #: what to do about that


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFacts:
    """A run at the beginning of a turn."""

    turn: int  #: from 1
    left_s: float | None = None  #: until the deadline; None: there is none
    total_s: float | None = None  #: that the run was given
    tokens: int = 0  #: spent
    most_tokens: int | None = None
    calls: Sequence[CallSeen] = ()  #: oldest first; the last ones are enough
    made: int = 0  #: calls in all, where ``calls`` are not all of them
    most_calls: int | None = None
    notes: Sequence[str] = ()  #: titles of long-term notes that fit this task and were not shown yet
    dropped: int = 0  #: messages that were compressed away since the last turn
    read_back: str = ""  #: the tool that reads them back, '' where there is none


@dataclass(frozen=True, slots=True)
class Limits:
    """When to remind."""

    every_turns: int = 5  #: the same kind once in so many turns at most
    same_error: int = 3  #: failures of one tool in one way, one after another
    same_call: int = 3  #: equal calls among the last ones
    looked_at: int = 24  #: calls looked back on
    low_share: float = 0.2  #: of time left
    low_s: float = 20.0  #: or less than that, in seconds
    spent_share: float = 0.85  #: of tokens or calls


@dataclass(frozen=True, slots=True)
class Reminder:
    """One reminder."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Told:
    """When the model was last reminded of what: the turn by kind."""

    turns: Mapping[Kind, int] = field(default_factory=lambda: MappingProxyType({}))


def plan_reminders(facts: TurnFacts, told: Told, limits: Limits | None = None) -> tuple[tuple[Reminder, ...], Told]:
    """Return the reminders of this turn, the most pressing first, and what was told then."""
    rules = limits or Limits()
    due: list[Reminder] = []
    length = 0
    for kind, text in (
        ("time", _time(facts, rules)),
        ("budget", _budget(facts, rules)),
        ("loop", _loop(facts, rules)),
        ("errors", _errors(facts, rules)),
        ("compression", _compression(facts)),
        ("memory", _memory(facts)),
    ):
        reminder = Reminder(kind, text)  # type: ignore[arg-type]  # the pairs above are of its kinds, which a tuple loses
        last = told.turns.get(reminder.kind)
        if not text or (last is not None and facts.turn - last < rules.every_turns):
            continue
        if length + len(text) > MOST_CHARACTERS:
            continue
        length += len(text)
        due.append(reminder)
    now: dict[Kind, int] = {**told.turns, **{reminder.kind: facts.turn for reminder in due}}
    return tuple(due), Told(MappingProxyType(now))


def as_text(reminders: Sequence[Reminder]) -> str:
    """Return the reminders as one text for the model, '' for none."""
    if not reminders:
        return ""
    lines = "\n".join(f"- {reminder.text}" for reminder in reminders)
    return f"[reminder from the system, not from the user]\n{lines}"


def _time(facts: TurnFacts, rules: Limits) -> str:
    left, total = facts.left_s, facts.total_s
    if left is None or not (left < rules.low_s or (total is not None and left < rules.low_share * total)):
        return ""
    return f"About {max(0, int(left))} s are left for this run. Begin nothing new: give your answer now."


def _budget(facts: TurnFacts, rules: Limits) -> str:
    parts = []
    if facts.most_tokens and facts.tokens >= rules.spent_share * facts.most_tokens:
        parts.append(f"{facts.tokens} of {facts.most_tokens} tokens")
    made = max(facts.made, len(facts.calls))
    if facts.most_calls and made >= rules.spent_share * facts.most_calls:
        parts.append(f"{made} of {facts.most_calls} tool calls")
    if not parts:
        return ""
    return f"{' and '.join(parts)} are used up. Do only what the answer needs, then answer."


def _loop(facts: TurnFacts, rules: Limits) -> str:
    last = facts.calls[-rules.looked_at :]
    if not last:
        return ""
    newest = last[-1]
    times = sum(call.key == newest.key for call in last)
    if times < rules.same_call:
        return ""
    return (
        f"You called {_name(newest.tool)} {times} times with the same arguments. It will not say anything else: use "
        "what it said, change the arguments, or do without."
    )


def _errors(facts: TurnFacts, rules: Limits) -> str:
    if not facts.calls or not facts.calls[-1].failure:
        return ""
    newest, times = facts.calls[-1], 0
    for call in reversed(facts.calls):
        if call.tool != newest.tool:
            continue  # other tools between change nothing about this one
        if call.failure != newest.failure:
            break
        times += 1
    if times < rules.same_error:
        return ""
    advice = newest.advice[:240]
    return (
        f"{_name(newest.tool)} failed {times} times in the same way ({_name(newest.failure)}). Try something else."
        f"{' ' if advice else ''}{advice}"
    )


def _compression(facts: TurnFacts) -> str:
    if facts.dropped <= 0:
        return ""
    back = f" If you need a detail of them, read it back with {_name(facts.read_back)}." if facts.read_back else ""
    return f"{facts.dropped} earlier messages were replaced by a summary.{back} Do not ask the user for them again."


def _memory(facts: TurnFacts) -> str:
    if not facts.notes:
        return ""
    titles = "; ".join(" ".join(title.split())[:_LONGEST_TITLE] for title in facts.notes[:_SHOWN_TITLES])
    more = f" and {len(facts.notes) - _SHOWN_TITLES} more" if len(facts.notes) > _SHOWN_TITLES else ""
    return f"Notes from earlier conversations may help: {titles}{more}."


def _name(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[:_LONGEST_NAME])
