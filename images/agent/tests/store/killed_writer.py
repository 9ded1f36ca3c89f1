"""Run as a process of its own: writes events of many runs at once and says which are acknowledged, till killed."""

from __future__ import annotations

import asyncio
import os
import sys

from loopbox_agent.database import open_database
from loopbox_agent.run_log import RunEvent, RunLog

RUNS = 20


async def main(url: str) -> None:
    async with open_database(url) as database:
        log = RunLog(database)

        async def write(run: str) -> None:
            await log.start(run, "ada", {})
            seq = 0
            while True:
                seq += 1
                await log.append(run, [RunEvent(seq, "text.delta", {"text": "x" * 300})])
                os.write(1, f"{run} {seq}\n".encode())

        await asyncio.gather(*(write(f"run_{number}") for number in range(RUNS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
