"""recovery: owns what a start does about runs that the agent's last end broke off: each is written down as interrupted.

A run that held its thread gets its turn there, in the same transaction: a crash in between leaves both or neither,
and the next start goes on where this one was.
"""

from __future__ import annotations

import asyncio

import structlog

from loopbox_agent.call_journal import CallJournal
from loopbox_agent.database import Database
from loopbox_agent.database_errors import DatabaseError
from loopbox_agent.errors import AgentError, error_body
from loopbox_agent.group_commit import together
from loopbox_agent.interrupted import MOST_CALLS, interrupted_turn, told
from loopbox_agent.run_log import MOST_EVENTS, Ended, Run, RunEvent, RunLog
from loopbox_agent.threads import Threads

CODE = "interrupted"

log = structlog.get_logger("agent.recovery")


async def recover_runs(database: Database) -> list[str]:
    """Call every running run interrupted, at start: none of before is under way. Returns their ids.

    A run whose turn cannot be added, as to a thread that is full, is interrupted without it. Raises DatabaseError.
    """
    run_log, threads, calls = RunLog(database), Threads(database), CallJournal(database)
    ids = await run_log.running()
    for run_id in ids:
        run = await run_log.of_anybody(run_id)
        journaled = await calls.last_of_run(run_id, MOST_CALLS)
        body = error_body(CODE, told(journaled)).model_dump(mode="json")
        # The last number there is: clients may have seen events that nobody stored, and ask for what came after them.
        last = RunEvent(MOST_EVENTS, "run.failed", body)
        ending = run_log.finishing(run_id, Ended(status="interrupted", error=body), [last])
        if run.thread_id is None:
            await database.write(ending)
            continue
        try:
            turn = await asyncio.to_thread(interrupted_turn, _instruction(run), journaled)  # masks up to some MiB
            await database.write(together(threads.adding_turn(run.thread_id, run_id, turn), ending))
        except DatabaseError:
            raise
        except AgentError as error:
            log.warning("run.turn_not_saved", run_id=run_id, error=str(error))
            await database.write(ending)
    return ids


def _instruction(run: Run) -> str:
    asked = run.request.get("instruction") if isinstance(run.request, dict) else None
    return asked if isinstance(asked, str) else "[the instruction is not known]"
