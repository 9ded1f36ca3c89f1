"""The agent's benches in small: what they measure works, fails where it should, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench.agent_load import Client, is_200, read_events, request, unchunked
from bench.agent_stub import Engine, Stub, serve, serve_engine
from bench.figures import quantile

ROOT = Path(__file__).parents[2]
TINY = {"ROUNDS": "1", "SLICE_S": "0.5", "RATE": "10", "SECONDS": "1", "TOOL_RUNS": "8", "TOOL_ROUNDS": "1"} | {
    "STREAMS": "4",
    "EVENTS": "100",
    "STREAM_S": "1",
}


def bench(name: str, sizes: dict[str, str]) -> dict[str, Any]:  # Any: figures
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COV_")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / f"{name}.py")],
        env=kept | sizes,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_agent_bench_measures_every_part_without_an_error() -> None:
    figures = bench("agent", TINY)
    faulty = {name: figures[name] for name in figures if name.endswith(("errors", "gaps")) and figures[name]}
    assert not faulty, figures
    assert figures["tools_runs"] == 8
    assert 0 < figures["added_p50_ms"] < 1000, figures
    assert figures["plain_p50_ms"] > 0, figures
    assert figures["events_per_s"] > 20, figures
    assert figures["rss_mb"] > 20, figures


@pytest.mark.docker
def test_the_cancel_bench_reaches_each_state_and_finds_nothing_left() -> None:
    figures = bench("cancel", {"CANCELS": "4", "WARM": "3", "SPAN_S": "0.3"})
    assert figures["cancels"] == 4
    assert figures["reached"] == 4, figures
    assert (figures["leftovers"], figures["talked_on"], figures["unsaved"]) == (0, 0, 0), figures
    assert 0 < figures["cancel_max_ms"] < 15_000, figures


async def opened(folder: Path) -> tuple[Stub, Client]:
    stub = await serve(folder)
    return stub, Client(int(stub.url.rpartition(":")[2]))


def told(body: bytes) -> list[dict[str, Any]]:  # Any: JSON
    return [json.loads(line) for line in unchunked(body).splitlines()]


async def test_the_stub_says_as_many_pieces_as_asked_and_calls_an_offered_tool_first(tmp_path: Path) -> None:
    stub, client = await opened(tmp_path)
    order: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello."}], "options": {"num_predict": 5}}
    _, answer = await client.ask(request("POST", "/api/chat", order), time.time())
    lines = told(bytes(answer.body))
    assert len(lines) == 6
    assert (lines[-1]["done"], lines[-1]["eval_count"]) == (True, 5)
    _, answer = await client.ask(request("POST", "/api/chat", order | {"tools": [{}]}), time.time())
    assert told(bytes(answer.body))[0]["message"]["tool_calls"][0]["function"]["name"] == "python"
    order["messages"].append({"role": "tool", "content": "42"})
    _, answer = await client.ask(request("POST", "/api/chat", order | {"tools": [{}]}), time.time())
    assert len(told(bytes(answer.body))) == 6
    client.close()
    await stub.close()


async def test_the_stub_keeps_its_pace_and_notices_a_client_that_leaves() -> None:
    engine = Engine()
    engine.behaviour.rate = 50.0
    server, url = await serve_engine(engine)
    client = Client(int(url.rpartition(":")[2]))
    order = {"messages": [{"role": "user", "content": "Hello."}], "options": {"num_predict": 10}}
    record, _ = await client.ask(request("POST", "/api/chat", order), time.time())
    assert 190 < record.ms < 2000, "ten pieces and the ending, 20 ms apart"
    order["options"] = {"num_predict": 10_000}
    asking = asyncio.create_task(client.ask(request("POST", "/api/chat", order), time.time()))
    async with asyncio.timeout(5):
        while not engine.seen.under_way:
            await asyncio.sleep(0.005)
        assert engine.seen.left_at == 0
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        while engine.seen.under_way:
            await asyncio.sleep(0.005)
    assert engine.seen.left_at > 0
    server.close()


async def test_the_open_loop_keeps_its_rate_and_counts_what_fails(tmp_path: Path) -> None:
    stub, client = await opened(tmp_path)
    records = await client.open_loop(50, 0.4, lambda number: request("GET", "/api/tags" if number % 2 else "/no"))
    assert len(records) == 20
    assert sum(record.fault.startswith("failed: 404") for record in records) == 10
    due = sorted(record.due for record in records)
    assert due[-1] - due[0] == pytest.approx(19 / 50, abs=0.001)
    assert (quantile([record.ms for record in records], 0.5) or 0) < 200
    client.close()
    await stub.close()
    record, _ = await Client(1).ask(request("GET", "/"), time.time(), is_200)
    assert record.fault.startswith("failed:")


def test_events_are_read_with_their_gaps() -> None:
    frames = [
        b'id: 1\nevent: run.started\ndata: {"run_id": "x"}\n\n',
        b'id: 2\nevent: text.delta\ndata: {"text": "the "}\n\n: still running\n\n',
        b'id: 4\nevent: text.delta\ndata: {"text": "sea"}\n\n',
        b"id: 5\nevent: run.completed\ndata: {}\n\n",
    ]
    body = b"".join(b"%x\r\n%s\r\n" % (len(frame), frame) for frame in frames) + b"0\r\n\r\n"
    seen = read_events(unchunked(body))
    assert (seen.events, seen.text, seen.ended) == (4, "the sea", "run.completed")
    assert seen.gaps == 1, "event 3 is missing"
