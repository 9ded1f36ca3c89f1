"""live_run: owns a run that is under way: its numbered events, who follows them, and the ways to reach into it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from loopbox_agent.errors import AgentError
from loopbox_agent.principal import Principal

MOST_EVENT_BYTES = 16 << 20  # of one run, kept in memory so that a client can come back
MOST_TOGETHER = 64  # events handed to a follower at once, who may be slow in taking them
MOST_STEERS = 16  # waiting to be read by the model

ENDINGS = frozenset({"run.completed", "run.failed", "run.cancelled", "run.held"})


class TooMuchToldError(AgentError):
    """A run told more than is kept of one."""

    code: ClassVar[str] = "output_too_large"
    status: ClassVar[int] = 502


class RunEndedError(AgentError):
    """The run has ended; nothing more can be told to it."""

    code: ClassVar[str] = "run_ended"
    status: ClassVar[int] = 409


class TooManySteersError(AgentError):
    """As many messages wait to be read by the model as may."""

    code: ClassVar[str] = "too_many_messages"
    status: ClassVar[int] = 429


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a run, numbered from 1."""

    number: int
    name: str
    body: Mapping[str, Any]  #: Any: JSON

    @property
    def ends(self) -> bool:
        """Whether nothing follows it."""
        return self.name in ENDINGS

    def frame(self) -> bytes:
        """Return it as a server-sent event."""
        return f"id: {self.number}\nevent: {self.name}\ndata: {json.dumps(self.body)}\n\n".encode()


@dataclass(eq=False)
class LiveRun:
    """A run under way, or one that ended a moment ago."""

    id: str
    principal: Principal
    correlation_id: str
    thread: str | None = None
    grace_s: float = 0.0  #: how long it goes on without a follower; infinite: to its end
    begun: float = field(default_factory=time.monotonic)
    events: list[Event] = field(default_factory=list)
    steers: list[str] = field(default_factory=list)  #: messages into the run that its loop has not taken yet
    followers: int = 0
    mute: bool = False  #: what it says is held back until somebody has looked at it
    cancelled_by: str = ""  #: why it was cancelled, '' while it was not
    error: BaseException | None = None  #: what it failed of
    task: asyncio.Task[None] | None = None
    listener: Callable[[str], object] | None = None  #: takes messages into the run while the model works
    deaf: bool = False  #: its model has given its answer; no message would be read any more
    _bytes: int = 0
    _changed: list[asyncio.Event] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether its last event was told."""
        return bool(self.events) and self.events[-1].ends

    def tell(self, name: str, body: Mapping[str, Any]) -> None:  # Any: JSON
        """Add an event. Raises TooMuchToldError, never for the one that ends the run."""
        if self.mute and name not in ENDINGS:
            return
        if name not in ENDINGS:
            self._bytes += 64 + sum(len(value) if isinstance(value, str) else 64 for value in body.values())
            if self._bytes > MOST_EVENT_BYTES:
                raise TooMuchToldError(f"The run told more than {MOST_EVENT_BYTES >> 20} MiB and was ended.")
        self.events.append(Event(len(self.events) + 1, name, body))
        for changed in self._changed:
            changed.set()

    def withdraw(self) -> None:
        """Take back the answer as far as it was told, and tell no more but the end; who has read it, has read it."""
        told = sum(len(event.body["text"]) for event in self.events if event.name == "text.delta")
        told -= sum(event.body["characters"] for event in self.events if event.name == "text.reset")
        if told:
            self.tell("text.reset", {"characters": told})
        self.events[:] = [
            Event(event.number, event.name, {"text": ""}) if event.name == "text.delta" else event
            for event in self.events
        ]
        self.mute = True

    async def follow(self, after: int = 0) -> AsyncIterator[Sequence[Event]]:
        """Yield the events after a number, as many together as there are (64 at most), until the run has ended."""
        changed = asyncio.Event()
        self._changed.append(changed)
        try:
            while True:
                changed.clear()
                while told := self.events[after : after + MOST_TOGETHER]:
                    after += len(told)
                    yield told
                if self.ended:
                    return
                await changed.wait()
        finally:
            self._changed.remove(changed)

    def steer(self, text: str) -> None:
        """Put a message into the run: the model reads it before its next turn. Raises RunEndedError."""
        if self.ended or self.deaf:
            raise RunEndedError(f"{self.id} has its answer; nothing was told to it. Start a run in its thread instead.")
        if len(self.steers) >= MOST_STEERS:
            raise TooManySteersError("The model has not read the messages before this one yet; wait for its next turn.")
        self.tell("run.steered", {"text": text})
        if self.listener is not None:
            self.listener(text)
        else:
            self.steers.append(text)

    def listen(self, listener: Callable[[str], object] | None) -> None:
        """Have messages into the run given to ``listener``, those that waited first; None: take no more of them."""
        self.listener = listener
        self.deaf = listener is None
        while listener is not None and self.steers:
            listener(self.steers.pop(0))

    def cancel(self, why: str) -> None:
        """Have it ended; its last event comes once nothing of it is left."""
        if not self.ended and not self.cancelled_by and self.task is not None:
            self.cancelled_by = why
            self.task.cancel()
