"""kill -9 of the agent's process loses nothing that was acknowledged; on both databases."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path

import pytest

from loopbox_agent.database import open_database
from loopbox_agent.recovery import recover_runs
from loopbox_agent.run_log import RunLog

WRITER = Path(__file__).with_name("killed_writer.py")
WAIT_S = 60.0


@pytest.mark.parametrize("moment", [1, 37, 200, 1000])
async def test_what_was_acknowledged_survives_a_kill(url: str, moment: int) -> None:
    """Each run has all its acknowledged events, at most one more (in flight), and no gap.

    moment: acknowledgements until the kill, which meets whatever the process is doing then.
    """
    environment = {"PYTHONPATH": ":".join(sys.path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, WRITER, url, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    acknowledged: Counter[str] = Counter()
    async with asyncio.timeout(WAIT_S):
        while acknowledged.total() < moment:
            run, seq = (await process.stdout.readline()).split()
            acknowledged[run.decode()] = int(seq)
        process.kill()
        async for line in process.stdout:  # what it said before it died
            if line.endswith(b"\n"):
                run, seq = line.split()
                acknowledged[run.decode()] = int(seq)
        await process.wait()
    async with open_database(url) as database:
        log = RunLog(database)
        for name, last in acknowledged.items():
            kept = list[int]()
            while page := await log.events(name, after=kept[-1] if kept else 0):
                kept += [event.seq for event in page]
            assert kept == list(range(1, len(kept) + 1))
            assert len(kept) in (last, last + 1)
        assert set(await recover_runs(database)) >= set(acknowledged)
        assert {run.status for run in await log.recent("ada")} == {"interrupted"}
