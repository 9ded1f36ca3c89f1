"""sandbox: owns the lease broker: a warm pool of single-use sandbox containers, lent one a session.

A lease is a hard link of the sandbox's socket in the directory the agent sees: it can reach what it was lent and
nothing else. Ended or expired, the container is removed, never lent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from loopd.config import Settings
from loopd.engine import Engine, InstanceState, Unit
from loopd.errors import LoopdError, NotFoundError, UnavailableError
from loopd.ledger import Ledger
from loopd.loading import own
from loopd.metrics import Metrics
from loopd.state import Database
from loopd.toolbox import Toolbox
from loopd.units import SANDBOX_PREFIX, TOOL_SOCKET, TOOLRUNNER_UID, Layout, sandbox_unit

READY_S = 20.0  # container start to tool runner answering
TICK_S = 5.0  # how often expired leases are looked for
RETRY_S = 2.0

log = structlog.get_logger("loopd.sandbox")


class PoolEmptyError(UnavailableError):
    """Every sandbox is lent; leases end by themselves, so try again."""

    code = "sandboxes_busy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A sandbox lent."""

    id: str
    sandbox: str
    session: str
    expires_at: datetime

    @property
    def socket(self) -> str:
        """Path of the tool runner's socket below the lease directory."""
        return f"{self.id}/{TOOL_SOCKET}"


class Leases:
    """The leases in state.db; they survive loopd."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, lease: Lease) -> None:
        """Write one down."""
        await self._database.execute(
            "INSERT INTO leases (id, sandbox, session, expires_at) VALUES (?,?,?,?)",
            (lease.id, lease.sandbox, lease.session, lease.expires_at.isoformat()),
        )

    async def all(self) -> list[Lease]:
        """Return every lease."""
        rows = await self._database.fetch_all("SELECT * FROM leases")
        return [Lease(**{**dict(r), "expires_at": datetime.fromisoformat(r["expires_at"])}) for r in rows]

    async def drop(self, lease: str) -> None:
        """Forget one."""
        await self._database.execute("DELETE FROM leases WHERE id = ?", (lease,))


@dataclass(kw_only=True)
class Broker:
    """Keeps the pool warm and lends from it."""

    settings: Settings
    layout: Layout
    engine: Engine
    leases: Leases
    ledger: Ledger
    metrics: Metrics
    toolbox: Toolbox
    image: str
    warm: list[str] = field(default_factory=list)  #: sandboxes that answer, oldest first
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _held: dict[str, Lease] = field(default_factory=dict)  #: by id; state.db's leases
    _borrowed: int = 0  #: taken from the pool, not yet written down

    async def run_forever(self) -> None:
        """Adopt what is there, then keep the pool full and end what has expired."""
        while True:
            try:
                await self.adopt()
                break
            except LoopdError as error:
                log.warning("sandbox.adopt_failed", error=str(error))
                await asyncio.sleep(RETRY_S)
        while True:
            self._wake.clear()
            delay = TICK_S
            try:
                await self.expire()
                await self.fill()
            except LoopdError as error:
                log.warning("sandbox.fill_failed", error=str(error))
                delay = RETRY_S
            self._show()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wake.wait()

    async def adopt(self) -> None:
        """Take over sandboxes of an earlier loopd: lent ones stay lent, warm ones of the same kind stay warm."""
        await self.engine.open()
        running = {
            i.unit.removeprefix(SANDBOX_PREFIX): i
            for i in await self.engine.observe()
            if i.unit.startswith(SANDBOX_PREFIX)
        }
        for lease in await self.leases.all():
            self._held[lease.id] = lease
            if lease.sandbox not in running or running[lease.sandbox].state is not InstanceState.RUNNING:
                await self._end(lease, "its container is gone")
        lent = {lease.sandbox for lease in self._held.values()}
        for sandbox, instance in running.items():
            fresh = instance.fingerprint == self._unit(sandbox).fingerprint
            if sandbox in lent:
                continue
            if fresh and instance.state is InstanceState.RUNNING and await self._answers(sandbox):
                await asyncio.to_thread(self._take_back, sandbox)
                self.warm.append(sandbox)
            else:
                await self._discard(sandbox)
        await asyncio.to_thread(self._sweep, {*running})

    async def acquire(self, session: str, ttl_s: float, *, wait_s: float = 10.0) -> Lease:
        """Lend a sandbox, waiting ``wait_s`` seconds at most for one to be ready. Raises PoolEmptyError."""
        with self.metrics.lease_seconds.time():
            sandbox = await self._take(wait_s)
            lease = Lease(
                id=secrets.token_hex(16),
                sandbox=sandbox,
                session=session,
                expires_at=datetime.now(UTC) + timedelta(seconds=min(ttl_s, self.settings.sandbox.lease_s)),
            )
            self._held[lease.id] = lease
            self._borrowed -= 1
            try:
                await self.leases.add(lease)
                await asyncio.to_thread(self._link, lease)
            except BaseException:
                await asyncio.shield(self._end(lease, "it could not be lent"))
                raise
        self._wake.set()
        self._show()
        return lease

    async def _take(self, wait_s: float) -> str:
        try:
            async with asyncio.timeout(wait_s), self._arrived:
                self._wake.set()
                await self._arrived.wait_for(lambda: bool(self.warm))
                self._borrowed += 1
                return self.warm.pop(0)
        except TimeoutError as error:
            raise PoolEmptyError(
                f"no sandbox was free within {wait_s:g} s ({self.lent} lent, at most "
                f"{self.settings.sandbox.most}); end a session or raise sandbox.most"
            ) from error

    async def release(self, lease_id: str, *, reason: str = "given back") -> None:
        """End a lease and remove its container. Raises NotFoundError."""
        if (lease := self._held.get(lease_id)) is None:
            raise NotFoundError(f"there is no lease {lease_id[:40]}; it may have expired")
        await self._end(lease, reason)
        self._wake.set()

    async def expire(self) -> None:
        """End the leases whose time is over."""
        now = datetime.now(UTC)
        for lease in list(self._held.values()):
            if lease.expires_at <= now:
                await self.ledger.append("lease.expired", lease.sandbox, f"its time was over at {lease.expires_at}")
                await self._end(lease, "expired")

    async def fill(self) -> None:
        """Start sandboxes until the pool is full; drop warm ones that died."""
        alive = {i.unit for i in await self.engine.observe() if i.state is InstanceState.RUNNING}
        for sandbox in [s for s in self.warm if f"{SANDBOX_PREFIX}{s}" not in alive]:
            self.warm.remove(sandbox)
            await self._discard(sandbox)
        box = self.settings.sandbox
        while len(self.warm) < box.warm and len(self.warm) + self.lent < box.most:
            sandbox = secrets.token_hex(6)
            try:
                await asyncio.to_thread(self._make_directory, sandbox)
                await self.engine.apply(self._unit(sandbox))
                await self._wait_answering(sandbox)
                await asyncio.to_thread(self._take_back, sandbox)
            except BaseException:
                await asyncio.shield(self._discard(sandbox))
                raise
            async with self._arrived:
                self.warm.append(sandbox)
                self._arrived.notify_all()

    @property
    def lent(self) -> int:
        """How many sandboxes are lent."""
        return len(self._held) + self._borrowed

    def _unit(self, sandbox: str) -> Unit:
        return sandbox_unit(self.settings, self.image, sandbox)

    async def _wait_answering(self, sandbox: str) -> None:
        try:
            async with asyncio.timeout(READY_S):
                while not await self._answers(sandbox):  # noqa: ASYNC110 a socket file's birth is no event here
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            words = (await self.engine.logs(f"{SANDBOX_PREFIX}{sandbox}", tail=5)).strip()[-400:]
            raise UnavailableError(f"a sandbox did not answer within {READY_S:g} s: {words}") from error

    async def _answers(self, sandbox: str) -> bool:
        return await self.toolbox.answers(self.layout.sandboxes / sandbox / TOOL_SOCKET)

    async def _end(self, lease: Lease, reason: str) -> None:
        log.info("lease.ended", lease=lease.id, sandbox=lease.sandbox, reason=reason)
        await asyncio.to_thread(shutil.rmtree, self.layout.leases / lease.id, ignore_errors=True)
        await self._discard(lease.sandbox)
        await self.leases.drop(lease.id)
        self._held.pop(lease.id, None)

    async def _discard(self, sandbox: str) -> None:
        await self.engine.remove(f"{SANDBOX_PREFIX}{sandbox}", grace_s=0)
        await asyncio.to_thread(shutil.rmtree, self.layout.sandboxes / sandbox, ignore_errors=True)

    def _make_directory(self, sandbox: str) -> None:
        directory = self.layout.sandboxes / sandbox
        directory.mkdir(mode=0o700)
        own(directory, TOOLRUNNER_UID)

    def _take_back(self, sandbox: str) -> None:
        """Make the socket's directory root's, before any code of a session runs in the sandbox.

        It lies on the host, without a quota, and what is in it is trusted: code inside could fill the disk, or put a
        link in the socket's place. The socket itself goes on working.
        """
        directory = self.layout.sandboxes / sandbox
        own(directory, 0)
        directory.chmod(0o711)

    def _link(self, lease: Lease) -> None:
        directory = self.layout.leases / lease.id
        directory.mkdir(mode=0o755)
        os.link(self.layout.sandboxes / lease.sandbox / TOOL_SOCKET, directory / TOOL_SOCKET)

    def _sweep(self, running: Iterable[str]) -> None:
        """Remove socket directories whose container is gone."""
        for entry in self.layout.sandboxes.iterdir():
            if entry.name not in running:
                shutil.rmtree(entry, ignore_errors=True)

    def _show(self) -> None:
        self.metrics.sandboxes.labels(state="warm").set(len(self.warm))
        self.metrics.sandboxes.labels(state="leased").set(self.lent)
