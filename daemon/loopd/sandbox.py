"""sandbox: owns the lease broker: warm pools of single-use sandbox containers, lent one a session.

A lease is a hard link of the sandbox's socket in the directory the agent sees: it can reach what it was lent and
nothing else. Ended or expired, the container is removed, never lent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from loopd.boxes import Boxes
from loopd.config import Settings
from loopd.egress import Egress
from loopd.egress_rules import Rule, grant
from loopd.engine import InstanceState
from loopd.errors import LoopdError, NotFoundError, UnavailableError
from loopd.lease import Lease, Leases
from loopd.ledger import Ledger
from loopd.metrics import Metrics
from loopd.pool import Need, Pool, plan_fill
from loopd.units import (
    EGRESS_SOCKET,
    Layout,
    SandboxKind,
)

READY_S = 20.0  # container start to tool runner answering
TICK_S = 5.0  # how often it is looked whether warm ones are alive
RETRY_S = 2.0
REFILL_AFTER_S = 0.05  # the session's first call comes before the next sandbox's start
READY, LENT = 0o711, 0o1711  # modes of a sandbox's directory: never lent, lent once
GVISOR = "runsc"

log = structlog.get_logger("loopd.sandbox")


class PoolEmptyError(UnavailableError):
    """Every sandbox is lent; leases end by themselves, so try again."""

    code = "sandboxes_busy"


class TooManyLeasesError(LoopdError):
    """This session holds all that one session may hold: give one back first."""

    code = "too_many_leases"
    status = 429


class NoSuchKindError(LoopdError):
    """This host has no image for that kind of sandbox; nothing was lent."""

    code = "no_such_sandbox"
    status = 404


@dataclass(kw_only=True)
class Broker:
    """Keeps the pools warm and lends from them."""

    settings: Settings
    layout: Layout
    boxes: Boxes
    leases: Leases
    ledger: Ledger
    metrics: Metrics
    egress: Egress
    _pools: dict[SandboxKind, Pool] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _held: dict[str, Lease] = field(default_factory=dict)  #: by id; state.db's leases
    _borrowed: dict[str, int] = field(default_factory=dict)  #: by session: asked for, not yet written down
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _writing: dict[str, asyncio.Task[None]] = field(default_factory=dict)  #: by lease: its row in state.db
    _looked_at: float = 0.0  #: when it was last looked whether warm ones are alive; the loop's clock

    def __post_init__(self) -> None:
        """Make a pool for each kind there is."""
        box = self.settings.sandbox
        targets: dict[SandboxKind, int] = {"tools": box.warm, "browser": box.browser_warm}
        self._pools = {kind: Pool(target=targets[kind]) for kind in self.boxes.images}

    @property
    def warm(self) -> list[str]:
        """Sandboxes that answer and are not lent."""
        return [sandbox for pool in self._pools.values() for sandbox in pool.warm]

    @property
    def lent(self) -> int:
        """How many sandboxes are lent."""
        return len(self._held)

    async def run_forever(self) -> None:
        """Adopt what is there, then keep the pools full and end what has expired."""
        while True:
            try:
                await self.adopt()
                break
            except LoopdError as error:
                log.warning("sandbox.adopt_failed", error=str(error))
                await asyncio.sleep(RETRY_S)
        try:
            while True:
                self._wake.clear()
                await self._tend()
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _tend(self) -> None:
        """Look once; then wait for the next reason to."""
        delay = TICK_S
        try:
            await self.expire()
            if asyncio.get_running_loop().time() - self._looked_at >= TICK_S:
                await self._drop_dead()
            self._start_missing(quiet=True)
            ends = [lease.expires_at for lease in self._held.values()]
            if ends:
                delay = min(delay, max(0.0, (min(ends) - datetime.now(UTC)).total_seconds()))
        except LoopdError as error:
            log.warning("sandbox.fill_failed", error=str(error))
            delay = RETRY_S
        self._show()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._wake.wait()
        if not any(pool.waiting for pool in self._pools.values()):
            await asyncio.sleep(REFILL_AFTER_S)

    async def adopt(self) -> None:
        """Take over sandboxes of an earlier loopd: lent ones stay lent, warm ones of the same kind stay warm."""
        running = await self.boxes.open()
        for lease in await self.leases.all():
            self._held[lease.id] = lease
            if lease.sandbox not in running or running[lease.sandbox].state is not InstanceState.RUNNING:
                await self._end(lease, "its container is gone")
            elif lease.hosts:
                await self._restore_grant(lease)
        lent = {lease.sandbox for lease in self._held.values()}
        for sandbox, instance in running.items():
            if sandbox in lent:
                continue
            if (kind := await self.boxes.find_fresh(sandbox, instance)) is not None:
                self._pools[kind].offer(sandbox)
            else:
                await self.boxes.discard(sandbox)
        await asyncio.to_thread(self.boxes.sweep, {*running}, {*self._held})

    async def acquire(
        self,
        session: str,
        ttl_s: float,
        *,
        kind: SandboxKind = "tools",
        hosts: Sequence[str] = (),
        wait_s: float = 10.0,
    ) -> Lease:
        """Lend a sandbox, waiting ``wait_s`` seconds at most for one to be ready; who waits is served in order.

        hosts: what it may reach through the proxy; each must be covered by the operator's egress.allow.
        Raises PoolEmptyError, TooManyLeasesError, NoSuchKindError, HostNotAllowedError, EgressDownError.
        """
        if kind not in self._pools:
            raise NoSuchKindError(
                f"this host has no image for sandboxes of kind {kind}; `make up` builds what there is"
            )
        rules = grant(hosts, self.settings.egress.allow)
        self._count(session)
        with self.metrics.lease_seconds.time():
            self._borrowed[session] = self._borrowed.get(session, 0) + 1
            try:
                sandbox = await self._take(kind, wait_s)
                now = datetime.now(UTC)
                end = now + timedelta(seconds=min(ttl_s, self.settings.sandbox.lease_s, self.settings.sandbox.life_s))
                lease = Lease(
                    id=secrets.token_hex(16),
                    sandbox=sandbox,
                    session=session,
                    kind=kind,
                    hosts=tuple(hosts),
                    started_at=now,
                    expires_at=end,
                )
                self._held[lease.id] = lease
            finally:
                self._borrowed[session] -= 1
                if not self._borrowed[session]:
                    del self._borrowed[session]
            try:
                if rules:
                    await self._grant(lease, rules)
                await asyncio.to_thread(self.boxes.link, lease)
                self._writing[lease.id] = self._spawn(self.leases.add(lease))
            except BaseException:
                await asyncio.shield(self._end(lease, "it could not be lent"))
                raise
        self._wake.set()
        self._show()
        return lease

    async def renew(self, lease_id: str, ttl_s: float) -> Lease:
        """Let a lease end ``ttl_s`` seconds from now, within the settings' bounds. Raises NotFoundError."""
        box = self.settings.sandbox
        held = await self._lease(lease_id)
        lease = held.renewed(datetime.now(UTC), min(ttl_s, box.lease_s), life_s=box.life_s)
        self._held[lease.id] = lease
        await self._written(lease_id)
        await self.leases.extend(lease)
        return lease

    async def release(self, lease_id: str, *, reason: str = "given back") -> None:
        """End a lease and remove its container. Raises NotFoundError."""
        await self._end(await self._lease(lease_id), reason)
        self._wake.set()

    def release_soon(self, lease_id: str) -> None:
        """End a lease whose holder need not wait for the container's end; what fails is tried again at its expiry."""
        if (lease := self._held.get(lease_id)) is not None:
            self._spawn(self._end(lease, "given back"))

    async def expire(self) -> None:
        """End the leases whose time is over."""
        now = datetime.now(UTC)
        for lease in list(self._held.values()):
            if lease.expires_at <= now:
                await self.ledger.append("lease.expired", lease.sandbox, f"its time was over at {lease.expires_at}")
                await self._end(lease, "expired")

    async def settle(self) -> None:
        """Wait until everything that goes on beside the rest is done."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def fill(self) -> None:
        """Drop warm ones that died, and start what the pools lack; return when all of it answers."""
        await self._drop_dead()
        while started := self._start_missing(quiet=False):
            await asyncio.wait(started)
            for task in started:
                task.result()

    async def _drop_dead(self) -> None:
        self._looked_at = asyncio.get_running_loop().time()
        alive = await self.boxes.alive()
        for pool in self._pools.values():
            for sandbox in [s for s in pool.warm if s not in alive]:
                if sandbox in pool.warm:  # else it was lent while we looked
                    pool.warm.remove(sandbox)
                    await self.boxes.discard(sandbox)

    def _start_missing(self, *, quiet: bool) -> list[asyncio.Task[None]]:
        plan = self._plan()
        for kind in plan:
            self._pools[kind].starting += 1
        return [self._spawn(self._start(kind, quiet=quiet)) for kind in plan]

    def _plan(self) -> tuple[SandboxKind, ...]:
        box = self.settings.sandbox
        starting = sum(pool.starting for pool in self._pools.values())
        plan = plan_fill(
            {kind: Need(pool.wanted, pool.waiting, len(pool.warm)) for kind, pool in self._pools.items()},
            room=box.most - len(self.warm) - self.lent - starting,
            at_once=box.starting - starting,
        )
        for kind in plan.evict:
            self._spawn(self.boxes.discard(self._pools[kind].warm.pop(0)))
        return plan.start

    async def _start(self, kind: SandboxKind, *, quiet: bool) -> None:
        pool = self._pools[kind]
        try:
            sandbox = await self.boxes.start(kind)
        except LoopdError as error:
            if not quiet:
                raise
            log.warning("sandbox.start_failed", kind=kind, error=str(error))
            return  # the next look tries again
        finally:
            pool.starting -= 1
        pool.offer(sandbox)
        self._wake.set()

    async def _take(self, kind: SandboxKind, wait_s: float) -> str:
        self._wake.set()
        try:
            return await self._pools[kind].take(wait_s)
        except TimeoutError as error:
            raise PoolEmptyError(
                f"no sandbox was free within {wait_s:g} s ({self.lent} lent, at most "
                f"{self.settings.sandbox.most}); end a session or raise sandbox.most"
            ) from error

    def _count(self, session: str) -> None:
        most = self.settings.sandbox.per_session
        held = sum(lease.session == session for lease in self._held.values()) + self._borrowed.get(session, 0)
        if held >= most:
            raise TooManyLeasesError(f"this session holds {held} sandboxes, and may hold {most}: give one back first")

    async def _lease(self, lease_id: str) -> Lease:
        """Return a lease, also one of an earlier loopd that is not adopted yet."""
        if (lease := self._held.get(lease_id)) is not None:
            return lease
        for lease in await self.leases.all():
            if lease.id == lease_id:
                return lease
        raise NotFoundError(f"there is no lease {lease_id[:40]}; it may have expired")

    async def _grant(self, lease: Lease, rules: tuple[Rule, ...]) -> None:
        path = self.layout.sandboxes / lease.sandbox / EGRESS_SOCKET
        await self.egress.open(lease.id, session=lease.session, rules=rules, path=path)
        hosts = ", ".join(lease.hosts)
        await self.ledger.append("egress.granted", lease.session, f"it may reach {hosts[:400]}", lease=lease.id)

    async def _restore_grant(self, lease: Lease) -> None:
        """Open the way out again; hosts that the operator no longer allows are not."""
        path = self.layout.sandboxes / lease.sandbox / EGRESS_SOCKET
        try:
            rules = grant(lease.hosts, self.settings.egress.allow)
            await self.egress.restore(lease.id, session=lease.session, rules=rules, path=path)
        except (LoopdError, OSError) as error:
            log.warning("egress.not_restored", lease=lease.id, error=str(error))

    async def _end(self, lease: Lease, reason: str) -> None:
        log.info("lease.ended", lease=lease.id, sandbox=lease.sandbox, reason=reason)
        await asyncio.to_thread(shutil.rmtree, self.layout.leases / lease.id, ignore_errors=True)
        await self.egress.close(lease.id)
        await self.boxes.discard(lease.sandbox)
        await self._written(lease.id)
        await self.leases.drop(lease.id)
        self._held.pop(lease.id, None)

    async def _written(self, lease_id: str) -> None:
        """Wait until a lease's row is in state.db, or could not be written."""
        if (writing := self._writing.pop(lease_id, None)) is not None:
            await asyncio.wait({writing})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:  # Any: nothing is sent or yielded
        """Do something beside the rest; what is known to go wrong is logged, and tried again by the next look."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)
        return task

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("sandbox.failed", error=str(error), exc_info=None if isinstance(error, LoopdError) else error)
        self._wake.set()

    def _show(self) -> None:
        self.metrics.sandboxes.labels(state="warm").set(len(self.warm))
        self.metrics.sandboxes.labels(state="leased").set(self.lent)
