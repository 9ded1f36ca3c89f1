"""alerts: owns telling people of what they must look at: a spool on disk, and the tries until each channel took it.

A spooled alert survives restarts. It is tried ever later for a day, then given up, which the ledger says.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loopd.ledger import Ledger, Scalar
from loopd.state import now

MOST_SPOOLED = 500  # a flood of alerts is one problem; what is beyond is counted in the log only
FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 600.0
GIVE_UP = timedelta(days=1)
IDLE_S = 3600.0

log = structlog.get_logger("loopd.alerts")


class Alert(BaseModel):
    """One thing that somebody must look at."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(default_factory=lambda: secrets.token_hex(8))
    at: str = Field(default_factory=now)
    event: str  #: noun.verb, e.g. ``input.quarantined``
    subject: str
    text: str  #: one sentence for a person
    detail: Mapping[str, Scalar] = {}


class Spooled(BaseModel):
    """An alert on disk, with what is still to do."""

    model_config = ConfigDict(frozen=True)

    alert: Alert
    left: tuple[str, ...]  #: channels that have not taken it
    tries: int = 0
    last_error: str = ""


class NotDeliveredError(Exception):
    """A channel did not take an alert; the text says why, without secrets."""


class Channel(Protocol):
    """One way to tell people."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    async def send(self, alert: Alert) -> None:
        """Tell. Raises NotDeliveredError."""
        ...


@dataclass(kw_only=True)
class Alerts:
    """The spool and its delivery."""

    folder: Path
    channels: tuple[Channel, ...]
    ledger: Ledger
    first_retry_s: float = FIRST_RETRY_S
    _due: dict[str, float] = field(default_factory=dict)  #: when each is tried next, by the loop's clock
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def raise_alert(self, alert: Alert) -> bool:
        """Have people told; False where no channel is set or the spool is full."""
        if not self.channels:
            return False
        if not await asyncio.to_thread(self._spool, Spooled(alert=alert, left=tuple(c.name for c in self.channels))):
            log.warning("alert.dropped", event_of=alert.event, subject=alert.subject, why="the spool is full")
            return False
        self._wake.set()
        return True

    async def run_forever(self) -> None:
        """Deliver what is spooled."""
        while True:
            self._wake.clear()
            wait = await self.deliver()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    async def deliver(self) -> float:
        """Try what is due; return the seconds until something is due again."""
        loop = asyncio.get_running_loop()
        wait = IDLE_S
        for path in await asyncio.to_thread(lambda: sorted(self.folder.glob("*.json"))):
            due = self._due.get(path.name, 0.0)
            if due > loop.time():
                wait = min(wait, due - loop.time())
                continue
            delay = await self._try(path)
            if delay is None:
                self._due.pop(path.name, None)
            else:
                self._due[path.name] = loop.time() + delay
                wait = min(wait, delay)
        return wait

    async def _try(self, path: Path) -> float | None:
        """Try one; return when to try again, None when it is done with."""
        try:
            spooled = Spooled.model_validate_json(await asyncio.to_thread(path.read_bytes))
        except (OSError, ValidationError) as error:
            log.warning("alert.unreadable", file=path.name, error=str(error)[:200])
            await asyncio.to_thread(path.unlink, missing_ok=True)
            return None
        alert, left, told = spooled.alert, [], ""
        for channel in self.channels:
            if channel.name not in spooled.left:
                continue
            try:
                await channel.send(alert)
            except NotDeliveredError as error:
                left.append(channel.name)
                told = f"{channel.name}: {error}"
        if not left:
            await asyncio.to_thread(path.unlink, missing_ok=True)
            await self.ledger.append("alert.delivered", alert.subject, alert.text, alert=alert.id, event_of=alert.event)
            return None
        if datetime.now(UTC) - datetime.fromisoformat(alert.at) > GIVE_UP:
            await asyncio.to_thread(path.unlink, missing_ok=True)
            await self.ledger.append(
                "alert.given_up", alert.subject, f"not taken within a day ({told})", alert=alert.id
            )
            return None
        tries = spooled.tries + 1
        log.warning("alert.not_delivered", alert=alert.id, tries=tries, error=told)
        await asyncio.to_thread(
            self._write, path, Spooled(alert=alert, left=tuple(left), tries=tries, last_error=told[:300])
        )
        return min(LONGEST_RETRY_S, self.first_retry_s * 2.0 ** (tries - 1))

    def _spool(self, spooled: Spooled) -> bool:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if len(list(self.folder.iterdir())) >= MOST_SPOOLED:
            return False
        self._write(self.folder / f"{spooled.alert.at.replace(':', '')}-{spooled.alert.id}.json", spooled)
        return True

    @staticmethod
    def _write(path: Path, spooled: Spooled) -> None:
        draft = path.with_suffix(".new")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(spooled.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
