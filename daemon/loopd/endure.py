"""endure: owns going on while state.db cannot be written: work that fails for it is begun again, not given up.

A loopd that ended would supervise nothing, and could not even start again on a full disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import structlog

from loopd.state import StateWriteError

AGAIN_S = 5.0

log = structlog.get_logger("loopd.endure")


async def endure(name: str, work: Callable[[], Coroutine[None, None, None]], *, again_s: float = AGAIN_S) -> None:
    """Run work that never ends; begin it anew after ``again_s`` seconds whenever the state could not be written.

    Each of loopd's loops may be begun anew at any time, as after a kill. Any other error is raised.
    """
    while True:
        try:
            await work()
        except StateWriteError as error:
            log.error("state.unwritable", task=name, error=str(error), again_s=again_s)  # noqa: TRY400 known cause
        else:
            return
        await asyncio.sleep(again_s)
