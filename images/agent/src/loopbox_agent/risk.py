"""risk: owns the assessment of what users ask, with what their conversation asked before."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import ClassVar, Literal

import structlog

from loopbox_agent.errors import AgentError
from loopbox_agent.memory import Memories
from loopbox_agent.threats import Assessment, Band, SessionRisk, Threats

Mode = Literal["on", "observe", "off"]  # the band is acted on; is logged alone; nothing is looked at

log = structlog.get_logger("agent.risk")

NOTE = "_risk"  # among the conversation's notes; a name that begins so is not shown to the model


class InputBlockedError(AgentError):
    """What was asked is too dangerous to be run."""

    code: ClassVar[str] = "input_blocked"
    status: ClassVar[int] = 403


class Risk:
    """Assesses instructions."""

    def __init__(self, threats: Threats, memories: Memories, mode: Mode = "on") -> None:
        self._threats = threats
        self._memories = memories
        self._mode = mode

    async def assess(self, text: str, thread: str | None) -> Assessment:
        """Return how dangerous a text is; a conversation's earlier risk adds to it, and is kept."""
        if self._mode == "off":
            return _HARMLESS
        before = await self._session(thread) if thread else SessionRisk()
        found = self._threats.assess(text, before)
        # Most conversations never have any: those cost no write.
        if thread and (found.session.pressure or before.turns):
            await self._memories.session.set(thread, NOTE, json.dumps(asdict(found.session)))
        if self._mode == "observe" and found.band is not Band.ALLOW:
            ids = [finding.id for finding in found.findings]
            log.warning("input.observed", score=found.score, band=found.band.value, findings=ids)
            return replace(found, band=Band.ALLOW)
        return found

    async def _session(self, thread: str) -> SessionRisk:
        kept = (await self._memories.session.all(thread)).get(NOTE)
        try:
            told = json.loads(kept) if isinstance(kept, str) else {}
            return SessionRisk(float(told["pressure"]), int(told["turns"]))
        except (ValueError, KeyError, TypeError):
            return SessionRisk()


_HARMLESS = Assessment(0, Band.ALLOW, (), 0, 0.0, SessionRisk())
