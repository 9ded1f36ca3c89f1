"""counts: owns what each step of a curation took in, added, dropped for which reason, and gave on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Step:
    """One step's counts. taken + added == given + all that was dropped."""

    name: str
    taken: int = 0
    added: int = 0
    given: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)  #: what was changed without being dropped

    def drop(self, reason: str) -> None:
        """Count a row that goes no further."""
        self.dropped[reason] += 1

    @property
    def adds_up(self) -> bool:
        """Whether nothing got lost."""
        return self.taken + self.added == self.given + self.dropped.total()

    def told(self) -> dict[str, Any]:  # Any: JSON
        """Return it for the manifest."""
        return {
            "name": self.name,
            "in": self.taken,
            "added": self.added,
            "out": self.given,
            "dropped": dict(sorted((+self.dropped).items())),
            "noted": dict(sorted((+self.noted).items())),
        }
