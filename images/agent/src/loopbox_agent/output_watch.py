"""output_watch: owns the look at one run's answer, while it is told and when it is whole, and what follows from it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loopbox_agent.audit import Audit
from loopbox_agent.live_run import LiveRun
from loopbox_agent.metrics import Metrics
from loopbox_agent.moderation import Moderated, Moderation, Verdict

STEP = 160  #: characters that are told between two looks
INLINE = 2048  #: characters that are looked at on the event loop; a longer answer goes to a thread
_KEPT = 1024  # characters behind that a look takes in: more than any rule reaches


@dataclass
class OutputWatch:
    """Watches one answer. What would be held is stopped while it is told; all else is said of it at its end."""

    run: LiveRun
    moderation: Moderation
    urgent: Moderation  #: the rules that hold by themselves
    audit: Audit
    metrics: Metrics
    stopped: Moderated | None = None  #: why it was stopped while it was told
    _tail: str = field(default="", repr=False)
    _fresh: int = field(default=0, repr=False)

    def tell(self, name: str, body: Mapping[str, Any]) -> None:  # Any: JSON
        """Pass an event on; a piece of text is looked at before, with what came before it."""
        if name == "text.reset":
            self._tail, self._fresh = "", 0
        elif name == "text.delta" and self.stopped is None:
            text = body["text"]
            self._tail, self._fresh = (self._tail + text)[-_KEPT - len(text) :], self._fresh + len(text)
            if self._fresh >= STEP:
                seen = self.urgent.assess(self._tail, growing=True)
                if seen.verdict is Verdict.HOLD:
                    self.stopped = seen
                    self.run.withdraw()
                self._tail, self._fresh = self._tail[-_KEPT:], 0
        self.run.tell(name, body)

    async def judge(self, output: str) -> Moderated:
        """Return what a whole answer says, told of and counted; held means that it is withdrawn already."""
        if len(output) <= INLINE:
            moderated = self.moderation.assess(output)
        else:
            moderated = await asyncio.to_thread(self.moderation.assess, output)
        if moderated.verdict is not Verdict.HOLD and self.stopped is not None:
            moderated = self.stopped  # of a turn before the last one
        if moderated.verdict is Verdict.ALLOW:
            return moderated
        verdict, rules = moderated.verdict.value, ",".join(one.id for one in moderated.found)
        categories = ",".join(moderated.categories)
        if moderated.verdict is Verdict.HOLD:
            self.run.withdraw()
        for category in moderated.categories:
            self.metrics.outputs_flagged.labels(category=category, verdict=verdict).inc()
        self.run.tell("output.flagged", {"score": moderated.score, "categories": categories, "findings": rules})
        self.audit.tell(
            "output.held" if moderated.verdict is Verdict.HOLD else "output.flagged",
            self.run.principal,
            self.run.id,
            correlation_id=self.run.correlation_id,
            score=moderated.score,
            categories=categories,
            findings=rules,
        )
        return moderated
