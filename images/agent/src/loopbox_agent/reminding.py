"""reminding: owns what one run's model was reminded of, and the facts that reminders are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from loopbox_agent.deadline import Deadline
from loopbox_agent.reminders import Told, TurnFacts, as_text, plan_reminders
from loopbox_agent.run_tools import RunTools


@dataclass
class Reminding:
    """The reminders of one run."""

    deadline: Deadline
    tools: RunTools | None
    most_calls: int
    _told: Told = field(default_factory=Told)
    _turn: int = 0
    _total_s: float | None = None

    def words(self) -> str:
        """Return what the system says before the next turn, '' for nothing."""
        self._turn += 1
        left = self.deadline.left()
        known = None if math.isinf(left) else left
        self._total_s = known if self._total_s is None else self._total_s
        facts = TurnFacts(
            turn=self._turn,
            left_s=known,
            total_s=self._total_s,
            calls=self.tools.guard.seen if self.tools else (),
            made=self.tools.guard.made if self.tools else 0,
            most_calls=self.most_calls if self.tools else None,
        )
        due, self._told = plan_reminders(facts, self._told)
        return as_text(due)
