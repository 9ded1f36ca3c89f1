"""pool: owns the warm sandboxes of one kind, the queue of who waits for one, and the plan of what to start. No I/O.

Who waits is served in order: a sandbox that is ready goes to the first in the queue, and nobody takes one past it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from loopd.units import SandboxKind


@dataclass(kw_only=True)
class Pool:
    """Sandboxes of one kind that are ready, and who waits for the next."""

    target: int  #: kept warm
    warm: list[str] = field(default_factory=list)  #: oldest first
    starting: int = 0
    _waiting: deque[asyncio.Future[str]] = field(default_factory=deque)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(not one.done() for one in self._waiting)

    @property
    def wanted(self) -> int:
        """How many more should be started."""
        return max(0, self.target + self.waiting - len(self.warm) - self.starting)

    def offer(self, sandbox: str) -> None:
        """Give a ready one to the first who waits, or keep it warm."""
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():
                first.set_result(sandbox)
                return
        self.warm.append(sandbox)

    async def take(self, wait_s: float) -> str:
        """Return a ready one, waiting for it in turn. Raises TimeoutError."""
        if self.warm and not self.waiting:
            return self.warm.pop(0)
        turn: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(wait_s):
                return await asyncio.shield(turn)
        except BaseException:
            with contextlib.suppress(ValueError):
                self._waiting.remove(turn)
            if turn.done() and not turn.cancelled():  # given at the moment the wait ended
                self.offer(turn.result())
            turn.cancel()
            raise


@dataclass(frozen=True, slots=True)
class Need:
    """What one kind has and wants, for the plan."""

    wanted: int  #: more to be started
    waiting: int
    spare: int  #: warm ones


@dataclass(frozen=True, slots=True)
class Fill:
    """What to do now."""

    start: tuple[SandboxKind, ...]
    evict: tuple[SandboxKind, ...]  #: a warm one of this kind makes room for one that is waited for


def plan_fill(needs: Mapping[SandboxKind, Need], *, room: int, at_once: int) -> Fill:
    """Return what to start: first what is waited for, then what is to be warm.

    room: how many more sandboxes there may be. at_once: how many more may be starting. Only where somebody waits and
    there is no room, warm ones that nobody waits for are given up.
    """
    start: list[SandboxKind] = []
    evict: list[SandboxKind] = []
    spare = {kind: need.spare for kind, need in needs.items() if not need.waiting}
    for kind, need in needs.items():
        for _ in range(min(need.wanted, need.waiting)):
            if len(start) >= at_once:
                break
            if room <= 0:
                victim = next((other for other, left in spare.items() if left and other != kind), None)
                if victim is None:
                    break
                spare[victim] -= 1
                evict.append(victim)
                room += 1
            start.append(kind)
            room -= 1
    for kind, need in needs.items():
        for _ in range(need.wanted - min(need.wanted, need.waiting)):
            if len(start) >= at_once or room <= 0 or evict:
                break
            start.append(kind)
            room -= 1
    return Fill(tuple(start), tuple(evict))
