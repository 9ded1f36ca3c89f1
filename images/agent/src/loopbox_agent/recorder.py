"""recorder: owns the writing down of a run, when it begins and when it ends, so that its events can be read again.

Pieces of text that follow each other are stored as one row, which remembers where each piece ended: a client that comes
back gets exactly the events it would have got.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import structlog

from loopbox_agent.errors import AgentError
from loopbox_agent.live_run import Event, LiveRun
from loopbox_agent.mask import mask_json
from loopbox_agent.run_log import MOST_EVENTS, Ended, RunEvent, RunLog
from loopbox_agent.run_records import RunRequest

TEXT = "text.delta"

log = structlog.get_logger("agent.recorder")


class Recorder:
    """Writes one run down."""

    def __init__(self, run: LiveRun, run_log: RunLog) -> None:
        self._run = run
        self._log = run_log
        self._begun: asyncio.Task[None] | None = None

    def begin(self, asked: RunRequest) -> None:
        """Write that it begins; nobody waits for that until something depends on it."""
        request = mask_json(asked.model_dump(mode="json", exclude_defaults=True))
        work = self._log.start(self._run.id, self._run.principal.user, request, thread_id=self._run.thread)
        self._begun = asyncio.create_task(work, name=f"begin-{self._run.id}")

    async def begun(self) -> None:
        """Wait until its beginning is written. Raises AgentError when it cannot be, or its thread is not there."""
        if self._begun is not None:
            await asyncio.shield(self._begun)

    async def end(self, ended: Ended, last: Event) -> None:
        """Write how it ended. Raises AgentError."""
        await self.begun()
        await self._log.finish(self._run.id, ended, pack([*self._run.events[: MOST_EVENTS - 1], last]))


def pack(events: Sequence[Event]) -> list[RunEvent]:
    """Return events as they are stored, pieces of text joined."""
    packed: list[RunEvent] = []
    pieces: list[str] = []
    for event in events:
        if event.name == TEXT:
            pieces.append(event.body["text"])
            continue
        if pieces:
            packed.append(RunEvent(event.number - 1, TEXT, {"pieces": list[Any](pieces)}))  # Any: JSON
            pieces = []
        packed.append(RunEvent(event.number, event.name, dict(event.body)))
    if pieces:
        packed.append(RunEvent(events[-1].number, TEXT, {"pieces": list[Any](pieces)}))  # Any: JSON
    return packed


def unpack(stored: Iterable[RunEvent], after: int = 0) -> list[Event]:
    """Return the events after a number as they were told."""
    events: list[Event] = []
    for row in stored:
        body: Any = row.body  # Any: JSON that `pack` made
        if row.name == TEXT:
            first = row.seq - len(body["pieces"]) + 1
            events += [Event(first + i, TEXT, {"text": text}) for i, text in enumerate(body["pieces"])]
        else:
            events.append(Event(row.seq, row.name, body))
    return [event for event in events if event.number > after]


def trouble(error: AgentError, run: LiveRun) -> None:
    """Log that a run could not be written down; it is answered all the same."""
    log.error("run.not_recorded", run_id=run.id, error=str(error))
