"""tool_schedule: owns when a tool call may start beside others: what conflicts runs in the order it came.

A call waits for every earlier one that it conflicts with, running or waiting, and for no other. So reads go at once,
nothing overtakes a waiting write that it conflicts with, and nobody starves. One schedule is shared by all agents that
use the same sandbox.

Once a program ran in a domain, two names there may be one file, through a symbolic link. From then on a write has the
domain's files to itself; reads still go at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

from loopbox_agent.errors import AgentError
from loopbox_agent.tool_access import Access, conflict


class TooManyCallsError(AgentError):
    """More tool calls wait than are held; this one was not run."""

    code: ClassVar[str] = "too_many_tool_calls"
    status: ClassVar[int] = 429


@dataclass(slots=True, eq=False)
class _Call:
    access: Access
    start: asyncio.Future[None]
    blockers: int = 0  #: earlier calls that have to end first
    blocks: list[_Call] = field(default_factory=list)  #: later calls that wait for this one
    running: bool = False


class Schedule:
    """Orders calls. Not for several event loops."""

    def __init__(self, *, most_running: int = 32, most_waiting: int = 256) -> None:
        self._most_running = most_running
        self._most_waiting = most_waiting
        self._calls: dict[_Call, None] = {}  #: running and waiting, in order of arrival
        self._ready: deque[_Call] = deque()  #: nothing blocks them but the number that may run
        self._running = 0
        self._linked: set[str] = set()  #: domains in which something ran that could have made a symbolic link

    @property
    def running(self) -> int:
        """Calls that run now."""
        return self._running

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self._calls) - self._running

    def distrust(self, domain: str) -> None:
        """Take a domain's paths for uncertain from now on: files came into it from elsewhere, perhaps links."""
        self._linked.add(domain)

    @asynccontextmanager
    async def turn(self, access: Access) -> AsyncIterator[None]:
        """Wait for this call's turn and hold it. The order is that of entering. Raises TooManyCallsError.

        Cancelled while it waits, it leaves no trace. A call must not enter again inside its own turn: where the two
        conflict, it would wait for itself.
        """
        if self.waiting >= self._most_waiting:
            raise TooManyCallsError(
                f"{self._most_waiting} tool calls wait already; this one was not run. Make fewer at a time."
            )
        if access.domain in self._linked:
            access = replace(access, certain=False)
        if access.exclusive:
            self._linked.add(access.domain)
        call = _Call(access, asyncio.get_running_loop().create_future())
        for earlier in self._calls:
            if conflict(earlier.access, access):
                earlier.blocks.append(call)
                call.blockers += 1
        self._calls[call] = None
        if not call.blockers:
            self._ready.append(call)
        self._start_ready()
        try:
            await call.start
            yield
        finally:
            self._leave(call)

    def _start_ready(self) -> None:
        while self._ready and self._running < self._most_running:
            call = self._ready.popleft()
            call.running = True
            self._running += 1
            if not call.start.done():
                call.start.set_result(None)

    def _leave(self, call: _Call) -> None:
        """Take a call out, whether it ran or was cancelled while it waited."""
        del self._calls[call]
        if call.running:
            self._running -= 1
        elif not call.blockers:
            self._ready.remove(call)
        for later in call.blocks:
            later.blockers -= 1
            if not later.blockers and later in self._calls:
                self._ready.append(later)
        self._start_ready()
