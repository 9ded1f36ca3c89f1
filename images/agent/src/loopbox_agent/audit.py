"""audit: owns what the agent tells the audit trail: sent in batches to loopd, kept until it is taken.

While loopd is away entries go to a file, and from there when it is back; loopd writes each key once. A crash of the
agent loses what was said in the last quarter of a second; the run log and the call journal do not.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import structlog

from loopbox_agent.principal import Principal

Scalar = str | int | float | bool | None

FLUSH_S = 0.25
BATCH = 250
MOST_WAITING = 20_000  # in memory
MOST_SPOOL_BYTES = 64 << 20
RETRY_S = 2.0
SEND_S = 10.0
MOST_SUBJECT = 300
MOST_VALUE = 1000

log = structlog.get_logger("agent.audit")


class Audit:
    """The agent's side of the trail."""

    def __init__(self, broker_socket: Path, spool: Path) -> None:
        self._http = httpx2.AsyncClient(
            base_url="http://loopd",
            transport=httpx2.AsyncHTTPTransport(uds=str(broker_socket), verify=False),  # no TLS on a unix socket
            timeout=SEND_S,
            trust_env=False,
        )
        self._spool = spool
        self._waiting: list[dict[str, Any]] = []  # Any: JSON
        self._boot = secrets.token_hex(6)
        self._number = 0
        self._dropped = 0
        self._wake = asyncio.Event()

    def tell(
        self, event: str, principal: Principal, subject: str = "", *, correlation_id: str = "", **detail: Scalar
    ) -> None:
        """Have an entry written: who did what to what."""
        if len(self._waiting) >= MOST_WAITING:
            self._dropped += 1
            return
        self._number += 1
        self._waiting.append(
            {
                "id": f"{self._boot}:{self._number}",
                "at": datetime.now(UTC).isoformat(timespec="microseconds"),
                "event": event,
                "user": principal.user,
                "subject": subject[:MOST_SUBJECT],
                "correlation_id": correlation_id,
                "detail": {key: _short(value) for key, value in detail.items()},
            }
        )
        self._wake.set()

    async def send_forever(self) -> None:
        """Send what was told."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(FLUSH_S)  # more comes, and goes together
            self._wake.clear()
            if not await self.flush():
                await asyncio.sleep(RETRY_S)
                self._wake.set()

    async def flush(self) -> bool:
        """Send all, or put it on the disk; tell whether loopd took it."""
        if self._dropped:
            log.error("audit.dropped", entries=self._dropped)
            self._dropped = 0
        spooled = await asyncio.to_thread(self._read_spool)
        if spooled:
            if not await self._send(spooled):
                await self._keep()
                return False
            await asyncio.to_thread(self._spool.unlink, missing_ok=True)
        while batch := self._waiting[:BATCH]:
            if not await self._send(batch):
                await self._keep()
                return False
            del self._waiting[: len(batch)]
        return True

    async def close(self) -> None:
        """Send what is left, or keep it for the next start."""
        await self.flush()
        await self._http.aclose()

    async def _send(self, entries: Sequence[Mapping[str, Any]]) -> bool:  # Any: JSON
        for start in range(0, len(entries), BATCH):
            try:
                response = await self._http.post("/v1/audit", json={"entries": entries[start : start + BATCH]})
            except httpx2.HTTPError:
                return False
            if response.status_code == httpx2.codes.UNPROCESSABLE_CONTENT:
                # Sent again it would be refused again, and hold back all that follows.
                log.error("audit.refused", answer=response.text[:500])
            elif response.status_code != httpx2.codes.NO_CONTENT:
                return False
        return True

    async def _keep(self) -> None:
        """Put what waits on the disk."""
        batch, self._waiting = self._waiting, []
        if not await asyncio.to_thread(self._append_spool, batch):
            log.error("audit.dropped", entries=len(batch), why="the spool is full")

    def _read_spool(self) -> list[dict[str, Any]]:  # Any: JSON that we wrote
        try:
            lines = self._spool.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [entry for line in lines if (entry := _parse(line)) is not None]

    def _append_spool(self, entries: Iterable[Mapping[str, Any]]) -> bool:  # Any: JSON
        with self._spool.open("a") as file:
            if file.tell() > MOST_SPOOL_BYTES:
                return False
            for entry in entries:
                file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return True


def _short(value: Scalar) -> Scalar:
    return value[:MOST_VALUE] if isinstance(value, str) else value


def _parse(line: str) -> dict[str, Any] | None:  # Any: JSON that we wrote
    try:
        entry = json.loads(line)
    except ValueError:  # the last line of an agent that was killed while it wrote
        return None
    return entry if isinstance(entry, dict) else None
