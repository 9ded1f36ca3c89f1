"""reminding: owns what one run's model was reminded of, and the facts that reminders are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loopbox_agent.deadline import Deadline
from loopbox_agent.reminders import Told, TurnFacts, as_text, plan_reminders
from loopbox_agent.run_tools import RunTools

READ_BACK = "read_back"


@dataclass
class Reminding:
    """The reminders of one run."""

    deadline: Deadline
    tools: RunTools | None
    most_calls: int
    most_tokens: int | None = None  #: a run of its own has no limit of tokens, a sub-agent has
    tokens: Callable[[], int] = lambda: 0  #: spent so far
    dropped: Callable[[], int] = lambda: 0  #: messages that were compressed away so far
    notes: Sequence[str] = ()  #: long-term notes that fit the task; told of once
    _told: Told = field(default_factory=Told)
    _turn: int = 0
    _total_s: float | None = None
    _dropped: int = 0  #: of them, those that the model was told of

    def words(self) -> str:
        """Return what the system says before the next turn, '' for nothing."""
        self._turn += 1
        left = self.deadline.left()
        known = None if math.isinf(left) else left
        self._total_s = known if self._total_s is None else self._total_s
        dropped = self.dropped()
        facts = TurnFacts(
            turn=self._turn,
            left_s=known,
            total_s=self._total_s,
            calls=self.tools.guard.seen if self.tools else (),
            made=self.tools.guard.made if self.tools else 0,
            most_calls=self.most_calls if self.tools else None,
            tokens=self.tokens(),
            most_tokens=self.most_tokens,
            notes=self.notes,
            dropped=dropped - self._dropped,
            read_back=READ_BACK if self.tools and self.tools.offers(READ_BACK) else "",
        )
        due, self._told = plan_reminders(facts, self._told)
        for reminder in due:
            if reminder.kind == "compression":
                self._dropped = dropped
            elif reminder.kind == "memory":
                self.notes = ()
        return as_text(due)
