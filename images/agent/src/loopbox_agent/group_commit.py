"""group_commit: owns the one writer: many callers' units of work share a transaction, and so one wait for the disk.

While one batch is being made durable, the next gathers; with no one else waiting, a unit is its own batch. When one
unit of a batch fails, the batch is undone and run again with a savepoint for each, so that the failed one is undone
alone: savepoints for all from the start would cost as much as the work. A caller goes on when its unit is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection

from loopbox_agent.database_errors import DatabaseBusyError, DatabaseClosedError, is_fatal

log = structlog.get_logger("agent.database")

T = TypeVar("T")
#: Reads and writes through the connection it is given and returns what the caller wants to know. It touches nothing
#: else and may run twice: after a neighbour's failure or a lost connection it runs again, in a new transaction.
Unit = Callable[[Connection], T]

MOST_WAITING = 4096  #: units; far above what 100 concurrent runs write, and a few MiB at most
MOST_IN_BATCH = 256  #: units; bounds how long the first of them waits for the last


@dataclass(frozen=True, slots=True)
class Done:
    """A unit's result."""

    value: object


@dataclass(frozen=True, slots=True)
class Undone:
    """A unit failed, and nothing of it was kept."""

    error: Exception


Outcome = Done | Undone


def together(*units: Unit[Any]) -> Unit[tuple[Any, ...]]:  # Any: each unit's own result
    """Return one unit that does several: all of them, or none, with one wait for the disk."""
    return lambda connection: tuple(unit(connection) for unit in units)


def perform(connection: Connection, units: Sequence[Unit[object]]) -> list[Outcome]:
    """Run units in the transaction that is open. Raises what one of them raises; then all must be undone."""
    return [Done(unit(connection)) for unit in units]


def perform_apart(
    connection: Connection, units: Sequence[Unit[object]], execute: Callable[[str], object]
) -> list[Outcome]:
    """Run units in the transaction that is open, each with a savepoint. Raises what ends the whole transaction.

    execute: runs SQL that has no values.
    """
    outcomes: list[Outcome] = []
    for unit in units:
        execute("SAVEPOINT unit")
        try:
            value = unit(connection)
        except Exception as error:
            if is_fatal(error):
                raise
            execute("ROLLBACK TO SAVEPOINT unit")
            outcomes.append(Undone(error))
        else:
            outcomes.append(Done(value))
        execute("RELEASE SAVEPOINT unit")
    return outcomes


def goes_apart(error: Exception, units: Sequence[Unit[object]]) -> bool:
    """Whether a failed batch is worth another try, each unit for itself: one of several failed, not the database."""
    return len(units) > 1 and not is_fatal(error)


@dataclass(slots=True)
class _Waiting:
    unit: Unit[object]
    future: asyncio.Future[object]


@dataclass
class Writer:
    """Takes units from any task of one event loop; one task commits them."""

    commit: Callable[[Sequence[Unit[object]]], Awaitable[Sequence[Outcome]]]  #: in one transaction, durable on return
    most_waiting: int = MOST_WAITING
    batches: int = 0  #: transactions so far
    units: int = 0  #: units so far
    _queue: deque[_Waiting] = field(default_factory=deque)
    _more: asyncio.Event = field(default_factory=asyncio.Event)
    _closing: bool = False
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to commit."""
        self._task = asyncio.create_task(self._run(), name="database.writer")

    async def close(self) -> None:
        """Take no more, commit what waits, end."""
        self._closing = True
        self._more.set()
        if self._task is not None:
            await self._task

    def submit(self, unit: Unit[T]) -> asyncio.Future[T]:
        """Queue a unit; the future is done when it is durable. Raises DatabaseBusyError, DatabaseClosedError."""
        if self._closing:
            raise DatabaseClosedError("The agent is stopping; nothing was written. Ask again in a moment.")
        if len(self._queue) >= self.most_waiting:
            raise DatabaseBusyError(
                f"{len(self._queue)} changes wait for the disk, which is as many as may; nothing was written. "
                "Try again in a second; if it stays so, the disk is too slow.",
                retry_after_s=1,
            )
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(unit, future))  # type: ignore[arg-type]  # a Future[T] holds an object
        self._more.set()
        return future

    async def _run(self) -> None:
        batch: list[_Waiting] = []
        try:
            await self._commit_batches(batch)
        finally:
            # However this ends, nobody waits for ever.
            self._closing = True
            for waiting in (*batch, *self._queue):
                if not waiting.future.done():
                    waiting.future.set_exception(DatabaseClosedError("The agent is stopping; ask again in a moment."))

    async def _commit_batches(self, batch: list[_Waiting]) -> None:
        """Commit until closed; batch: what is being committed."""
        while self._queue or not self._closing:
            if not self._queue:
                self._more.clear()
                await self._more.wait()
                continue
            taken = [self._queue.popleft() for _ in range(min(len(self._queue), MOST_IN_BATCH))]
            # Nobody waits for a cancelled caller's unit; what has begun is finished all the same.
            batch[:] = [waiting for waiting in taken if not waiting.future.cancelled()]
            if batch:
                await self._commit(batch)

    async def _commit(self, batch: list[_Waiting]) -> None:
        try:
            outcomes = await self.commit([waiting.unit for waiting in batch])
        except Exception as error:  # noqa: BLE001 told to each caller
            outcomes = [Undone(error) for _ in batch]
        self.batches += 1
        self.units += len(batch)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            with contextlib.suppress(asyncio.InvalidStateError):  # cancelled meanwhile
                match outcome:
                    case Done(value):
                        waiting.future.set_result(value)
                    case Undone(cause):
                        waiting.future.set_exception(cause)
