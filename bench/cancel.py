"""cancel: how long a cancel takes until nothing of the run is left, at random moments of runs in several states.

``make bench BENCH=cancel``; the last line is one JSON object. Real loopd, real sandboxes, the agent's real process; the
engine is a stub that says a word now and then. The time runs from sending POST /agents/runs/{id}/cancel until all of
this holds: it is answered, no process of the run's call lives in any sandbox, the engine writes for it no more, and the
conversation has the turn. A moment is random in the first SPAN_S=1 seconds of a run, so that some hit the loan of the
sandbox or the start of the tool. Sizes: CANCELS=200, SEED=1, WARM=4 sandboxes kept. Images must be built.

stream: the model is talking. tool: bash waits, with children. stubborn: bash, a child, and one in a session of its own
ignore SIGTERM. deep: a sub-agent's model is talking; left out, and said, while the agent offers no such tool.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.agent_load import Client, agent_command, agent_environment, child, request, wait_ready
from bench.agent_stub import Engine, serve_engine
from bench.figures import quantile

from appliance import free_ports
from faults.rig import open_rig, wait_for

CANCELS = int(os.environ.get("CANCELS", "200"))
SEED = int(os.environ.get("SEED", "1"))
SPAN_S = float(os.environ.get("SPAN_S", "1"))
WARM = int(os.environ.get("WARM", "4"))
RATE = 20.0  # pieces a second
PIECES = 2000  # of an answer that nobody cancels
PATIENCE_S = 15.0  # for each thing that a cancel must bring about
NEVER_MS = PATIENCE_S * 1e3  # what did not come about counts as this long
POLL_S = 0.005
CGROUPS = Path("/sys/fs/cgroup/pids/docker")
DELEGATE = "delegate"
COMMANDS = {
    "tool": "export LOOPBOX_MARK={mark}; sleep 300 & (sleep 300; true) & wait",
    "stubborn": (
        "export LOOPBOX_MARK={mark}; trap '' TERM INT HUP; (while :; do sleep 0.1; done) & "
        "setsid bash -c \"trap '' TERM INT HUP; while :; do sleep 0.1; done\" & while :; do sleep 0.1; done"
    ),
}
STATES = ("stream", "tool", "stubborn", "deep")


@dataclass
class Cancelled:
    """One cancel. Milliseconds from its request; NEVER_MS: not within the patience."""

    state: str
    mark: str  #: in the command line or the environment of each process of the call
    reached: bool  #: the run was in this state when the cancel was sent
    answered_ms: float = 0.0
    silent_ms: float = 0.0  #: the engine writes no more
    gone_ms: float = 0.0  #: no process is left
    saved_ms: float = 0.0  #: the conversation has the turn
    left: list[str] = field(default_factory=list)  #: command lines that lived on

    @property
    def ms(self) -> float:
        """Return the whole of it."""
        return max(self.answered_ms, self.silent_ms, self.gone_ms, self.saved_ms)


def marked(mark: str) -> list[str]:
    """Return the command lines of living processes of a call, in any container of this host."""
    found = []
    folders = {path.parent for path in CGROUPS.glob("*/cgroup.procs")}
    pids = {pid for folder in folders for pid in _pids(folder)} if folders else set(_all_pids())
    for pid in pids:
        with contextlib.suppress(OSError):  # it ended meanwhile
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if mark.encode() in line or mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(line.replace(b"\0", b" ").decode(errors="replace")[:100])
    return found


def _pids(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return (folder / "cgroup.procs").read_text().split()
    return []


def _all_pids() -> list[str]:
    return [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]


@dataclass
class Bench:
    """The agent, and what it works with."""

    agent: Client
    engine: Engine

    async def one(self, state: str, moment_s: float) -> Cancelled:
        """Start a run, cancel it at a moment, and see what is left of it."""
        mark = f"m{secrets.token_hex(8)}"
        thread: Any = await self.agent.json("POST", "/agents/threads", {})  # Any: JSON, here and below
        path = f"/agents/threads/{thread['thread_id']}/messages"
        body = {"instruction": f"Wait {mark}.", "thread_id": thread["thread_id"], "background": True}
        body["max_output_tokens"] = PIECES
        if state in COMMANDS:
            self.engine.behaviour.tool = "bash"
            self.engine.behaviour.arguments = {"command": COMMANDS[state].format(mark=mark)}
            body["tools"] = ["bash"]
        elif state == "deep":
            self.engine.behaviour.tool = DELEGATE
            self.engine.behaviour.arguments = {"task": f"Wait {mark}."}
            body["tools"] = [DELEGATE]
        run: Any = await self.agent.json("POST", "/agents/run-agent", body)
        await asyncio.sleep(moment_s)
        reached = bool(await asyncio.to_thread(marked, mark)) if state in COMMANDS else self.engine.seen.under_way > 0
        done = Cancelled(state, mark, reached)
        sent = time.perf_counter()

        async def answered() -> bool:
            told: Any = await self.agent.json("POST", f"/agents/runs/{run['run_id']}/cancel")
            if told.get("status") != "cancelled":
                print(f"{state}: the cancel was answered {str(told)[:300]}", file=sys.stderr)
            return True

        async def silent() -> bool:
            return self.engine.seen.under_way == 0

        async def gone() -> bool:
            done.left = await asyncio.to_thread(marked, mark)
            return not done.left

        async def saved() -> bool:
            told: Any = await self.agent.json("GET", path)
            return mark in json.dumps(told)

        # The cancel first: what follows looks at what it does.
        answering = asyncio.create_task(_until(answered, sent))
        await asyncio.sleep(0)
        rest = await asyncio.gather(_until(silent, sent), _until(gone, sent))
        done.answered_ms = await answering
        done.silent_ms, done.gone_ms = rest
        done.saved_ms = await _until(saved, sent)
        if not await gone():  # one that was started after the others were gone
            done.gone_ms = await _until(gone, sent)
        return done

    async def offers(self, tool: str) -> bool:
        """Tell whether the agent has a tool of this name."""
        body = {"instruction": "Hello.", "tools": [tool], "max_output_tokens": 1}
        self.engine.behaviour.tool = "none"
        record, answer = await self.agent.ask(request("POST", "/agents/run-agent", body), time.time())
        if record.fault:
            return False
        told: Any = json.loads(answer.body)
        return bool(told.get("status") == "completed")


async def _until(holds: Callable[[], Any], sent: float) -> float:  # Any: an awaitable of a bool
    while not await holds():
        if time.perf_counter() - sent > PATIENCE_S:
            return NEVER_MS
        await asyncio.sleep(POLL_S)
    return (time.perf_counter() - sent) * 1e3


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Bench]:
    """Start loopd, its sandboxes, the engine and the agent; all is gone at the end."""
    engine = Engine()
    engine.behaviour.rate = RATE
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lbc")))
        rig = stack.enter_context(open_rig({"LOOPBOX_SANDBOX__WARM": str(WARM), "LOOPBOX_SANDBOX__MOST": "24"}))
        rig.start()
        wait_for("the pool is warm", lambda: int(rig.status()["sandboxes"]["warm"]) >= WARM)
        server, url = await serve_engine(engine)
        stack.callback(server.close)
        [port] = free_ports(1)
        environment = agent_environment(url, port, folder) | {
            "AGENT_BROKER_SOCKET": str(rig.run_dir / "broker" / "broker.sock"),
            "AGENT_LEASES_DIR": str(rig.run_dir / "leases"),
            "AGENT_NUM_CTX": "16384",  # an answer of PIECES must fit
        }
        log = folder / "agent.log"
        process = stack.enter_context(
            child(agent_command(), log=log, environment=environment, stop=signal.SIGINT, pipes=False)
        )
        agent = Client(port)
        stack.callback(agent.close)
        await wait_ready(agent, process, log)
        yield Bench(agent, engine)


def figures(done: list[Cancelled], skipped: list[str]) -> dict[str, Any]:  # Any: numbers and words
    """Return everything that is printed."""
    told: dict[str, Any] = {"cancels": len(done), "skipped": skipped}  # Any: as above
    for name, some in (("", done), *((f"{s}_", [one for one in done if one.state == s]) for s in STATES)):
        taken = [one.ms for one in some]
        told |= {f"{name}cancel_p{q}_ms": quantile(taken, q / 100) for q in (50, 99)}
        told[f"{name}cancel_max_ms"] = quantile(taken, 1.0)
    for part in ("answered", "silent", "gone", "saved"):
        told[f"{part}_p99_ms"] = quantile([getattr(one, f"{part}_ms") for one in done], 0.99)
    return told | {
        "reached": sum(one.reached for one in done),
        "leftovers": sum(bool(one.left) or one.gone_ms == NEVER_MS for one in done),
        "talked_on": sum(one.silent_ms == NEVER_MS for one in done),
        "unsaved": sum(one.saved_ms == NEVER_MS for one in done),
        "unsaved_early": sum(one.saved_ms == NEVER_MS and not one.reached for one in done),
        "loadavg": [round(value, 1) for value in os.getloadavg()],
    }


async def measure() -> dict[str, Any]:  # Any: as in figures
    """Cancel, and look."""
    chance = random.Random(SEED)  # noqa: S311 moments, no secrets
    done: list[Cancelled] = []
    async with opened() as bench:
        deep = await bench.offers(DELEGATE)
        states = [state for state in STATES if state != "deep" or deep]
        if not deep:
            print(f"deep is left out: the agent offers no tool {DELEGATE!r}", file=sys.stderr)
        for number in range(CANCELS):
            one = await bench.one(states[number % len(states)], chance.uniform(0, SPAN_S))
            done.append(one)
            print(f"{number + 1}/{CANCELS}: {one}", file=sys.stderr)
        await asyncio.sleep(1)
        for one in done:  # what came up after all
            one.left = await asyncio.to_thread(marked, one.mark)
    return figures(done, [] if deep else ["deep"])


def main() -> None:
    """Measure and print."""
    print(json.dumps(asyncio.run(measure())))


if __name__ == "__main__":
    main()
