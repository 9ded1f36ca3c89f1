"""agent: what the agent adds to a turn, how many runs it carries, and what a plain pydantic-ai script takes beside it.

``make bench BENCH=agent``; the last line is one JSON object. The engine, the lease broker and the tool runner are stubs
in one process; the agent is the real process, its state on a real disk. Sizes: TOKENS=16 pieces of an answer;
ROUNDS=10 of SLICE_S=2 seconds each way in turn (the stub itself, the agent, the agent in a conversation, the script)
at LOW_RATE=20 a second, for what is added; RATE=100 for SECONDS=60; TOOL_RUNS=100 at once, TOOL_ROUNDS=5 times;
STREAMS=20 of EVENTS=1000 a second together for STREAM_S=10. PROFILE=FILE: cProfile of the agent (figures are then no
figures). APPLIANCE=1: a real appliance without a model, and the memory it takes (needs the images).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.agent_load import (
    Client,
    Process,
    agent_command,
    agent_environment,
    child,
    is_200,
    read_events,
    read_line,
    request,
    unchunked,
    wait_ready,
)
from bench.figures import Record, faults, quantile
from bench.traffic import NICE, Answer

from appliance import free_ports

TOKENS = int(os.environ.get("TOKENS", "16"))
ROUNDS = int(os.environ.get("ROUNDS", "10"))
SLICE_S = float(os.environ.get("SLICE_S", "2"))
LOW_RATE = float(os.environ.get("LOW_RATE", "20"))
RATE = float(os.environ.get("RATE", "100"))
SECONDS = float(os.environ.get("SECONDS", "60"))
TOOL_RUNS = int(os.environ.get("TOOL_RUNS", "100"))
TOOL_ROUNDS = int(os.environ.get("TOOL_ROUNDS", "5"))
STREAMS = int(os.environ.get("STREAMS", "20"))
EVENTS = float(os.environ.get("EVENTS", "1000"))
STREAM_S = float(os.environ.get("STREAM_S", "10"))
PROFILE = os.environ.get("PROFILE", "")
HEALTH_RATE = 20.0  # one each 50 ms
WARM_UP = 30  # runs
THREADS = 20  # conversations that take turns
INSTRUCTION = "Write one short sentence about the sea."
HERE = Path(__file__).parent

Figures = dict[str, Any]  # Any: numbers, and faults in words


@dataclass
class Bench:
    """What runs, and the ways to it."""

    stub: Client
    agent: Client
    health: Client
    plain: subprocess.Popen[bytes]
    plain_log: Path
    process: Process  #: the agent's
    stub_process: Process

    async def plain_load(self, rate: float, seconds: float) -> Figures:
        """Have the script run at a rate."""
        assert self.plain.stdin is not None  # noqa: S101 made with pipes
        self.plain.stdin.write(json.dumps({"rate": rate, "seconds": seconds}).encode() + b"\n")
        self.plain.stdin.flush()
        return await asyncio.to_thread(read_line, self.plain, self.plain_log)


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Bench]:
    """Start everything; it is gone at the end, and the folder with it."""
    folder = Path(tempfile.mkdtemp(prefix="lba"))
    log = folder / "agent.log"
    [port] = free_ports(1)
    try:
        with contextlib.ExitStack() as stack:
            arguments = [str(HERE / "agent_stub.py"), "--folder", str(folder)]
            stub = stack.enter_context(child(arguments, log=folder / "stub.log", pipes=True))
            url = str(read_line(stub, folder / "stub.log")["url"])
            arguments = [str(HERE / "agent_plain.py"), "--url", url, "--tokens", str(TOKENS)]
            plain = stack.enter_context(child(arguments, log=folder / "plain.log", pipes=True))
            environment = agent_environment(url, port, folder)
            agent = stack.enter_context(
                child(agent_command(PROFILE), log=log, environment=environment, stop=signal.SIGINT, pipes=False)
            )
            clients = Client(int(url.rpartition(":")[2])), Client(port), Client(port)
            for client in clients:
                stack.callback(client.close)
            await wait_ready(clients[1], agent, log)
            yield Bench(*clients, plain, folder / "plain.log", Process(agent.pid), Process(stub.pid))
    finally:
        if keep := os.environ.get("KEEP"):
            shutil.copy(log, keep)
        shutil.rmtree(folder, ignore_errors=True)


def run_request(**more: object) -> bytes:
    """Return the request of a run."""
    body = {"instruction": INSTRUCTION, "max_output_tokens": TOKENS}
    return request("POST", "/agents/run-agent", body | more)


def is_completed(answer: Answer) -> str:
    """Check that a run ended well and said something."""
    if fault := is_200(answer):
        return fault
    body = json.loads(answer.body)
    whole = body["status"] == "completed" and body["output"] and body["usage"]["output_tokens"]
    return "" if whole else f"failed: {bytes(answer.body[:300])!r}"


def has_called(answer: Answer) -> str:
    """Check that a run called its tool, too."""
    if fault := is_completed(answer):
        return fault
    calls = json.loads(answer.body)["tool_calls"]
    return "" if [call["is_error"] for call in calls] == [False] else f"failed: tool calls {str(calls)[:300]}"


def good(records: list[Record]) -> list[float]:
    """Return the milliseconds of the good answers."""
    return [record.ms for record in records if not record.fault]


def errors(records: list[Record]) -> int:
    """Return how many answers were not good, and show some."""
    for fault in faults(records, 3):
        print(fault, file=sys.stderr)
    return sum(bool(record.fault) for record in records)


def lag_ms(records: list[Record]) -> list[float]:
    """Return how late the generator itself was, each time."""
    return [(record.sent - record.due) * 1e3 for record in records]


def less(one: float | None, other: float | None) -> float | None:
    """Return the difference of two quantiles."""
    return None if one is None or other is None else round(one - other, 2)


async def added(bench: Bench) -> Figures:
    """Measure what is added at a low rate: each way for a slice in turn, so that what else runs hits all alike."""
    order = {"model": "agent", "messages": [{"role": "user", "content": INSTRUCTION}]}
    ollama = request("POST", "/api/chat", order | {"options": {"num_predict": TOKENS}})
    openai = request("POST", "/v1/chat/completions", order | {"stream": True, "max_tokens": TOKENS})
    made: list[Any] = [await bench.agent.json("POST", "/agents/threads", {}) for _ in range(THREADS)]  # Any: JSON
    turns = [run_request(thread_id=thread["thread_id"]) for thread in made]
    ways: dict[str, list[Record]] = {"direct": [], "v1": [], "agent": [], "thread": []}
    plain: Figures = {"ms": [], "lag_ms": [], "cpu_s": 0.0, "errors": 0}
    cpu = {"agent": 0.0, "thread": 0.0}
    for _ in range(ROUNDS):
        ways["direct"] += await bench.stub.open_loop(LOW_RATE, SLICE_S, lambda _: ollama)
        ways["v1"] += await bench.stub.open_loop(LOW_RATE, SLICE_S, lambda _: openai)
        for name, what in (("agent", [run_request()]), ("thread", turns)):
            before = bench.process.cpu_s()
            ways[name] += await bench.agent.open_loop(
                LOW_RATE,
                SLICE_S,
                lambda number, what=what: what[number % len(what)],  # type: ignore[misc]  # bound at once
                is_completed,
            )
            cpu[name] += bench.process.cpu_s() - before
        told = await bench.plain_load(LOW_RATE, SLICE_S)
        plain = {name: plain[name] + told[name] for name in plain}
    figures: Figures = {"added_errors": sum(errors(records) for records in ways.values()) + plain["errors"]}
    for share, q in ((0.5, 50), (0.99, 99)):
        direct, v1 = (quantile(good(ways[name]), share) for name in ("direct", "v1"))
        figures |= {f"direct_p{q}_ms": direct, f"direct_v1_p{q}_ms": v1}
        figures[f"added_p{q}_ms"] = less(quantile(good(ways["agent"]), share), direct)
        figures[f"thread_added_p{q}_ms"] = less(quantile(good(ways["thread"]), share), direct)
        figures[f"plain_p{q}_ms"] = less(quantile(plain["ms"], share), v1)
    for name, records in ways.items():
        if name in cpu:
            figures[f"low_{name}_cpu_ms_per_run"] = round(cpu[name] * 1e3 / max(1, len(records)), 2)
    figures["plain_cpu_ms_per_run"] = round(plain["cpu_s"] * 1e3 / max(1, len(plain["ms"])), 2)
    figures["plain_lag_p99_ms"] = quantile(plain["lag_ms"], 0.99)
    figures["generator_lag_p50_ms"] = quantile([lag for records in ways.values() for lag in lag_ms(records)], 0.5)
    return figures


async def with_health(bench: Bench, work: asyncio.Task[Any]) -> tuple[Any, list[Record]]:  # Any: the work's result
    """Ask for the agent's health, each 50 ms, while some work goes on."""
    asking: set[asyncio.Task[Any]] = set()
    records: list[Record] = []
    what = request("GET", "/health")

    async def one(due: float) -> None:
        records.append((await bench.health.ask(what, due))[0])

    begun = time.time()
    while not work.done():
        due = begun + len(asking) / HEALTH_RATE
        await asyncio.sleep(due - time.time())
        asking.add(asyncio.create_task(one(due)))
    await asyncio.gather(*asking)
    return await work, records


async def sustained(bench: Bench) -> Figures:
    """Measure many runs a second, for long."""
    cpu, stub_cpu, own = bench.process.cpu_s(), bench.stub_process.cpu_s(), time.process_time()
    began = time.time()
    what = run_request()
    work = asyncio.create_task(bench.agent.open_loop(RATE, SECONDS, lambda _: what, is_completed))
    records, health = await with_health(bench, work)
    took = time.time() - began
    done = good(records)
    return {
        "rps": round(len(done) / took, 2),
        "errors": errors(records),
        "p50_ms": quantile(done, 0.5),
        "p99_ms": quantile(done, 0.99),
        "health_p95_ms": quantile(good(health), 0.95),
        "health_errors": errors(health),
        "cpu_ms_per_run": round((bench.process.cpu_s() - cpu) * 1e3 / max(1, len(done)), 2),
        "stub_cpu_ms_per_run": round((bench.stub_process.cpu_s() - stub_cpu) * 1e3 / max(1, len(done)), 2),
        "generator_lag_p99_ms": quantile(lag_ms(records), 0.99),
        "generator_cpu_share": round((time.process_time() - own) / took, 3),
    }


async def with_tools(bench: Bench) -> Figures:
    """Measure runs that all begin at once and call a tool each."""
    what = run_request(tools=["python"])
    records: list[Record] = []
    rounds: list[float] = []
    cpu = bench.process.cpu_s()
    for _ in range(TOOL_ROUNDS):
        began = time.time()
        answers = await asyncio.gather(*(bench.agent.ask(what, began, has_called) for _ in range(TOOL_RUNS)))
        records += [record for record, _ in answers]
        rounds.append(time.time() - began)
    used = (bench.process.cpu_s() - cpu) * 1e3
    return {
        "tools_runs": len(records),
        "tools_errors": errors(records),
        "tools_round_s": quantile(rounds, 0.5),
        "tools_p99_ms": quantile(good(records), 0.99),
        "tools_cpu_ms_per_run": round(used / max(1, len(records)), 2),
    }


async def streamed(bench: Bench) -> Figures:
    """Measure streams of events that many clients follow."""
    rate = EVENTS / STREAMS
    tokens = round(rate * STREAM_S)
    await bench.stub.json("POST", "/stub", {"rate": rate})
    what = run_request(stream=True, max_output_tokens=tokens)
    cpu, began = bench.process.cpu_s(), time.time()

    async def all_streams() -> list[tuple[Record, Answer]]:
        return await asyncio.gather(*(bench.agent.ask(what, began) for _ in range(STREAMS)))

    answers, health = await with_health(bench, asyncio.create_task(all_streams()))
    took, used = time.time() - began, bench.process.cpu_s() - cpu
    heard_s = max(record.ended for record, _ in answers) - min(record.first for record, _ in answers)
    await bench.stub.json("POST", "/stub", {"rate": 0})
    told = [read_events(unchunked(bytes(answer.body))) for _, answer in answers]
    whole = [one.ended == "run.completed" and len(one.text.split()) == tokens for one in told]
    return {
        "events_per_s": round(sum(one.events for one in told) / max(0.001, heard_s), 1),
        "stream_errors": errors([record for record, _ in answers]) + sum(not one for one in whole),
        "stream_gaps": sum(one.gaps for one in told),
        "stream_s": round(took, 2),
        "stream_health_p95_ms": quantile(good(health), 0.95),
        "stream_cpu_share": round(used / took, 3),
    }


def appliance(agent_peak_mb: float) -> Figures:
    """Return the memory of an appliance without a model; two sandboxes are warm.

    agent_peak_mb: of the agent's process under load, to tell what the whole takes then.
    """
    from faults.rig import open_rig, wait_for  # noqa: PLC0415 needs the container engine, which the rest does not

    with open_rig({"LOOPBOX_SANDBOX__WARM": "2"}) as rig:
        rig.start()
        wait_for("two are warm", lambda: int(rig.status()["sandboxes"]["warm"]) >= 2)
        wait_for("units are up", lambda: {"gateway", "agent"} <= set(rig.containers()))
        time.sleep(5)  # until what starts has started
        assert rig.process is not None  # noqa: S101 started above
        used = {"loopd": Process(rig.process.pid).memory_mb()}
        for container in rig.listed():
            told: Any = container.stats(stream=False)  # Any: the API's JSON
            memory = told["memory_stats"]
            unit = str(container.name).removeprefix(f"{rig.instance}-")
            used[unit] = round((memory["usage"] - memory["stats"].get("total_inactive_file", 0)) / 1e6, 1)
    print(f"appliance: {used}", file=sys.stderr)
    rest = sum(used.values())
    return {
        "appliance_mb": round(rest, 1),
        "appliance_loaded_mb": round(rest - used["agent"] + max(used["agent"], agent_peak_mb), 1),
    }


async def measure() -> Figures:
    """Measure all."""
    async with opened() as bench:
        with contextlib.suppress(PermissionError):
            os.nice(NICE)  # after the others were started: clients do not wait for a core of the server
        gc.freeze()
        for _ in range(WARM_UP):
            await bench.agent.json("POST", "/agents/run-agent", {"instruction": INSTRUCTION})
        await bench.plain_load(LOW_RATE, WARM_UP / LOW_RATE)
        figures: Figures = {"idle_rss_mb": bench.process.memory_mb()}
        for part in (added, sustained, with_tools, streamed):
            print(f"{part.__name__}: load {os.getloadavg()[0]:.1f}", file=sys.stderr)
            told = await part(bench)
            print(f"  {json.dumps(told)}", file=sys.stderr)
            figures |= told
        figures |= {"rss_mb": bench.process.memory_mb(), "peak_rss_mb": bench.process.memory_mb("VmHWM")}
    return figures | {"loadavg": [round(value, 1) for value in os.getloadavg()]}


def main() -> None:
    """Measure and print."""
    figures = asyncio.run(measure())
    if os.environ.get("APPLIANCE"):
        figures |= appliance(figures["peak_rss_mb"])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
