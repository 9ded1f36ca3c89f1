"""egress: owns who may reach what outside: the listeners of granted leases, the proxy that serves them, its records.

The proxy runs only while somebody was granted something. loopd makes each listening socket and hands it over; a proxy
that was started anew is told all of them again, and a loopd that was started anew makes them again from the leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from loopd.config import Settings
from loopd.egress_link import EgressDownError, EgressLink, Message, listen_at, listening, peer_uid
from loopd.egress_rules import Rule, parse_rules
from loopd.engine import Engine
from loopd.errors import LoopdError
from loopd.ledger import Ledger
from loopd.units import AGENT, AGENT_UID, CONTROL_SOCKET, EGRESS, EGRESS_SOCKET, EGRESS_UID, Layout, egress_unit

UP_S = 20.0  # from nothing to a proxy that answers
IDLE_S = 60.0  # a proxy that nobody needs is kept so long
TICK_S = 1.0
TOLD_MOST = 50  # ledger entries about hosts of one session; all connections are in the log

log = structlog.get_logger("loopd.egress")


@dataclass(kw_only=True)
class Listener:
    """One socket on which a session, or the agent, asks for what it was granted."""

    id: str
    session: str
    rules: tuple[Rule, ...]
    socket: socket.socket
    path: Path
    told: set[tuple[str, str]] = field(default_factory=set)  #: host and verdict of what the ledger has
    sums: Counter[str] = field(default_factory=Counter)


@dataclass(kw_only=True)
class Egress:
    """Opens and closes listeners, and keeps the proxy running while there are any."""

    settings: Settings
    layout: Layout
    engine: Engine
    ledger: Ledger
    image: str | None
    listeners: dict[str, Listener] = field(default_factory=dict)
    _link: EgressLink | None = None
    _up: asyncio.Event = field(default_factory=asyncio.Event)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _records: asyncio.Queue[Message] = field(default_factory=lambda: asyncio.Queue(1000))
    _idle_since: float | None = None
    _trouble: str = ""  #: why the proxy could not be started the last time

    async def open(self, name: str, *, session: str, rules: tuple[Rule, ...], path: Path) -> None:
        """Have a listener at ``path``; when this returns, it is served. Raises EgressDownError."""
        if self.image is None:
            raise EgressDownError("this host has no egress image, so no host can be granted: `make up` builds it")
        try:
            listener = await self._add(name, session=session, rules=rules, path=path, uid=0)
            async with asyncio.timeout(UP_S):
                await self._up.wait()
            await self._tell(listener)
        except BaseException as error:
            await self.close(name)
            if isinstance(error, TimeoutError):
                why = f" ({self._trouble})" if self._trouble else ""
                raise EgressDownError(f"no egress proxy answered in {UP_S:g} s{why}; no host was granted") from error
            raise

    async def restore(self, name: str, *, session: str, rules: tuple[Rule, ...], path: Path, uid: int = 0) -> None:
        """Have a listener at ``path`` that is served as soon as there is a proxy. Raises OSError."""
        listener = await self._add(name, session=session, rules=rules, path=path, uid=uid)
        if self._up.is_set():
            with contextlib.suppress(EgressDownError):  # the next proxy is told
                await self._tell(listener)

    async def _add(self, name: str, *, session: str, rules: tuple[Rule, ...], path: Path, uid: int) -> Listener:
        made = await asyncio.to_thread(listen_at, path, 0o600 if uid else 0o666, uid)
        if (old := self.listeners.pop(name, None)) is not None:
            old.socket.close()
        listener = self.listeners[name] = Listener(id=name, session=session, rules=rules, socket=made, path=path)
        self._wake.set()
        return listener

    async def close(self, name: str) -> None:
        """Take a listener away and end its connections; absent is fine."""
        if (listener := self.listeners.pop(name, None)) is None:
            return
        listener.socket.close()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(listener.path.unlink, missing_ok=True)
        if self._link is not None:
            with contextlib.suppress(EgressDownError):  # then it is gone, or synced when it is back
                await self._link.order("close", id=name)
        if listener.sums:
            sums = dict(listener.sums)
            cause = f"{sums.get('connections', 0)} connections, {sums.get('refused', 0)} refused"
            await self.ledger.append("egress.closed", listener.session, cause, **sums)
        self._wake.set()

    async def run_forever(self) -> None:
        """Wait for the proxy, keep it running while it is needed, write down what it reports."""
        with listening(self.layout.egress_control / CONTROL_SOCKET, EGRESS_UID) as door:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._welcome(door))
                tasks.create_task(self._keep())
                tasks.create_task(self._write_down())

    async def _keep(self) -> None:
        await self._grant_agent()
        while True:
            self._wake.clear()
            trouble = ""
            try:
                await self._ensure()
            except LoopdError as error:
                trouble = str(error)
                if trouble != self._trouble:
                    log.warning("egress.start_failed", error=trouble)
            self._trouble = trouble
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S if self.listeners or self._idle_since else None):
                    await self._wake.wait()

    async def _ensure(self) -> None:
        """Start the proxy when it is needed and not there; remove it when it has not been needed for a while."""
        now = asyncio.get_running_loop().time()
        if self.listeners:
            self._idle_since = None
            if self._link is None and self.image is not None:
                await self.engine.open()
                await self.engine.apply(egress_unit(self.settings, self.image))
            return
        if self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= IDLE_S:
            await self.engine.remove(EGRESS, grace_s=1)
            self._idle_since = None
            await self._wake.wait()

    async def _grant_agent(self) -> None:
        """Open the agent's own way out, where it was granted hosts."""
        path = self.layout.egress / EGRESS_SOCKET
        rules = parse_rules(self.settings.egress.agent)
        if not rules:
            await asyncio.to_thread(path.unlink, missing_ok=True)
            return
        await self.restore(AGENT, session=AGENT, rules=rules, path=path, uid=AGENT_UID)

    async def _welcome(self, door: socket.socket) -> None:
        """Talk with one proxy after the other; the newest counts."""
        loop = asyncio.get_running_loop()
        talking: asyncio.Task[None] | None = None
        try:
            while True:
                link, _ = await loop.sock_accept(door)
                if peer_uid(link) not in (EGRESS_UID, os.geteuid()):
                    link.close()
                    continue
                await _end(talking)
                talking = asyncio.create_task(self._talk(link))
        finally:
            await _end(talking)

    async def _talk(self, link: socket.socket) -> None:
        with link:
            link.setblocking(False)
            peer = EgressLink(link, self._take)
            reading = asyncio.create_task(peer.read_forever())
            self._link = peer
            try:
                for listener in list(self.listeners.values()):
                    await self._tell(listener)
                await peer.order("synced")
                self._up.set()
                log.info("egress.up", listeners=len(self.listeners))
                await asyncio.gather(reading, return_exceptions=True)
            except EgressDownError as error:
                log.warning("egress.lost", error=str(error))
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                self._link = None
                self._up.clear()
                self._wake.set()

    async def _tell(self, listener: Listener) -> None:
        if self._link is None:
            raise EgressDownError("the egress proxy has just gone away; try again")
        rules = [rule.told() for rule in listener.rules]
        await self._link.order("open", listener.socket.fileno(), id=listener.id, rules=rules)

    def _take(self, record: Message) -> None:
        if self._records.full():
            self._records.get_nowait()
        self._records.put_nowait(record)

    async def _write_down(self) -> None:
        while True:
            record = await self._records.get()
            try:
                await self._note(record)
            except LoopdError as error:  # a full disk; the log has it
                log.warning("egress.not_in_ledger", error=str(error))

    async def _note(self, record: Message) -> None:
        """Log a connection; the ledger gets each host and verdict once a session, and the sums at its end."""
        listener = self.listeners.get(str(record.get("listener")))
        session = listener.session if listener else ""
        host = f"{record.get('host')}:{record.get('port')}"
        verdict = str(record.get("verdict"))
        log.info("egress.connection", session=session, **{k: v for k, v in record.items() if k != "event"})
        if listener is None:
            return
        listener.sums.update(
            connections=1,
            refused=int(not record.get("address")),
            up=int(record.get("up", 0)),
            down=int(record.get("down", 0)),
        )
        if (host, verdict) not in listener.told and len(listener.told) < TOLD_MOST:
            listener.told.add((host, verdict))
            cause = f"{host[:300]}: {verdict[:40]}"
            await self.ledger.append("egress.connection", session, cause, address=str(record.get("address", "")))


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
