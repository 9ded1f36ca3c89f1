"""carried_through: owns finishing what must not be left half done, whoever cancels meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def carried_through(work: Coroutine[Any, Any, T]) -> T:  # Any: what a coroutine yields and is sent
    """Return what ``work`` gives; a cancel is let through once it has ended. Raises what it raises.

    In a task of its own: a scope that shields does not keep out ``Task.cancel()``, nor a deadline of asyncio's.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at, so that it is not told of as forgotten
        raise cancelled
    return task.result()
