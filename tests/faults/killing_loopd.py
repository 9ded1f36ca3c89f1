"""killing_loopd: owns a loopd that kills itself with SIGKILL at one boundary of its journal, and else is loopd.

Boundaries are counted from 1: before and after each begin(), done() and failed() of rollouts newer than
KILL_AFTER_ROLLOUT. KILL_AT names the one to die at (0: none); COUNT_TO a file to which each boundary passed is written.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from loopd.app import main
from loopd.journal import Journal
from loopd.steps import Step, kind

KILL_AT = int(os.environ.pop("KILL_AT", "0"))
AFTER = int(os.environ.pop("KILL_AFTER_ROLLOUT", "0"))
COUNT_TO = os.environ.pop("COUNT_TO", "")

begin, done, failed = Journal.begin, Journal.done, Journal.failed
watched: dict[int, str] = {}  #: journal row -> kind of its step
passed = 0


def boundary(name: str) -> None:
    """Count, note, and die when it is the one."""
    global passed  # noqa: PLW0603 the count of this process
    passed += 1
    if COUNT_TO:
        with Path(COUNT_TO).open("a") as file:
            file.write(f"{name}\n")
    if passed == KILL_AT:
        os.kill(os.getpid(), signal.SIGKILL)


async def begin_or_die(self: Journal, rollout: int, step: Step) -> int:
    """begin() with a boundary on both sides."""
    if rollout <= AFTER:
        return await begin(self, rollout, step)
    boundary(f"before {kind(step)} is begun")
    row = await begin(self, rollout, step)
    watched[row] = kind(step)
    boundary(f"after {kind(step)} is begun")
    return row


async def done_or_die(self: Journal, seq: int) -> None:
    """done() with a boundary on both sides."""
    if seq not in watched:
        return await done(self, seq)
    boundary(f"before {watched[seq]} is done")
    await done(self, seq)
    boundary(f"after {watched[seq]} is done")
    return None


async def fail_or_die(self: Journal, seq: int, error: str) -> None:
    """failed() with a boundary on both sides."""
    if seq not in watched:
        return await failed(self, seq, error)
    boundary(f"before {watched[seq]} has failed")
    await failed(self, seq, error)
    boundary(f"after {watched[seq]} has failed")
    return None


if __name__ == "__main__":
    Journal.begin = begin_or_die  # type: ignore[method-assign]  # what this file is for
    Journal.done = done_or_die  # type: ignore[method-assign]
    Journal.failed = fail_or_die  # type: ignore[method-assign]
    main()
