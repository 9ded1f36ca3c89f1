"""A real process of the agent that is killed, or stopped, while runs are under way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from images.agent.tests.conftest import (
    Script,
    StubBroker,
    StubEngine,
    StubTools,
    calls,
    done,
    parse_events,
    piece,
    says,
)
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from loopbox_agent.interrupted import UNKNOWN

WAIT_S = 30.0
STOP_S = 6.0  # far below the ten seconds after which it is killed
CALLS_TOOLS = [
    Script((calls("python", code="print('one')"), done())),
    Script((calls("hang"), done())),
    says("It is done."),
]


@dataclass
class Served:
    """A process that serves the agent's API."""

    process: asyncio.subprocess.Process
    http: httpx2.AsyncClient
    address: str

    async def thread(self) -> str:
        return str((await self.http.post("/agents/threads", json={})).json()["thread_id"])

    async def start(self, **body: object) -> str:
        response = await self.http.post(
            "/agents/run-agent", json={"instruction": "Tidy up.", "background": True, **body}
        )
        assert response.status_code == 202, response.text
        return str(response.json()["run_id"])


@contextlib.asynccontextmanager
async def served(engine: StubEngine, run_dir: Path) -> AsyncIterator[Served]:
    """Start one over the same state every time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join(sys.path),
        "AGENT_HOST": "127.0.0.1",
        "AGENT_PORT": str(port),
        "AGENT_ENGINE_URL": engine.url,
        "AGENT_BROKER_SOCKET": str(run_dir / "broker.sock"),
        "AGENT_LEASES_DIR": str(run_dir / "leases"),
        "AGENT_STATE_DIR": str(run_dir / "state"),
        "AGENT_BACKUP_EVERY_S": "0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loopbox_agent.app", stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(WAIT_S):
            while b"agent.listening" not in (line := await process.stdout.readline()):
                assert line, "it ended before it listened"
        url = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=url, timeout=WAIT_S, trust_env=False) as http:
            yield Served(process, http, f"127.0.0.1:{port}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.mark.timeout(120)
async def test_after_a_kill_the_thread_tells_what_was_done(
    engine: StubEngine, broker: StubBroker, tools: StubTools, run_dir: Path
) -> None:
    """One call had ended, one was under way: both are in the thread, for the person and for the model."""
    del broker  # it lends
    engine.scripts = list(CALLS_TOOLS)
    async with served(engine, run_dir) as agent:
        thread = await agent.thread()
        run = await agent.start(thread_id=thread, tools=["python", "hang"])
        async with asyncio.timeout(WAIT_S):
            await tools.hanging.wait()
        agent.process.kill()
        await agent.process.wait()
    async with served(engine, run_dir) as agent:
        view = (await agent.http.get(f"/agents/runs/{run}")).json()
        assert view["status"] == "interrupted"
        assert view["error"]["error"]["code"] == "interrupted"
        told = parse_events((await agent.http.get(f"/agents/runs/{run}/events", headers={"Last-Event-ID": "4"})).text)
        assert [(name, body) for _, name, body in told] == [("run.failed", view["error"])]
        listed = (await agent.http.get(f"/agents/threads/{thread}/messages")).json()["messages"]
        parts = [part for message in listed for part in message["message"]["parts"]]
        assert [part["content"] for part in parts if part["part_kind"] == "tool-return"] == [
            "ran print('one')",
            UNKNOWN,
        ]
        assert "interrupted" in parts[-1]["content"]
        answered = await agent.http.post("/agents/run-agent", json={"instruction": "Go on.", "thread_id": thread})
        assert answered.json()["output"] == "It is done."
        asked = engine.orders[-1]["messages"]
        assert [message["role"] for message in asked] == ["user", *["assistant", "tool"] * 2, "assistant", "user"]
        assert (asked[0]["content"], asked[4]["content"], asked[-1]["content"]) == ("Tidy up.", UNKNOWN, "Go on.")
        assert [name for name, _ in tools.ran] == ["python", "hang"]  # and nothing was run again


@pytest.mark.timeout(120)
async def test_a_stop_ends_the_runs_and_tells_their_clients(
    engine: StubEngine, broker: StubBroker, tools: StubTools, run_dir: Path
) -> None:
    engine.scripts = [Script((piece("half an "), piece("answer ")), hold=True)]
    async with served(engine, run_dir) as agent:
        thread = await agent.thread()
        body = {"instruction": "Tidy up.", "stream": True, "thread_id": thread}
        blocking = asyncio.create_task(agent.http.post("/agents/run-agent", json={"instruction": "Say it."}))
        async with (
            agent.http.stream("POST", "/agents/run-agent", json=body) as stream,
            connect(f"ws://{agent.address}/agents/ws", proxy=None) as client,
        ):
            await client.send(json.dumps({"type": "run", "request": {"instruction": "Say hello."}}))
            async with asyncio.timeout(WAIT_S):
                while json.loads(await client.recv())["event"] != "text.delta":
                    pass
                while len(engine.orders) < 3:
                    engine.holding.clear()
                    await engine.holding.wait()
            engine.scripts = [Script((calls("hang"), done()))]
            run = await agent.start(tools=["hang"])
            async with asyncio.timeout(WAIT_S):
                await tools.hanging.wait()
            broker.take.clear()
            begun = time.monotonic()
            agent.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(WAIT_S):
                await broker.asked_back.wait()
            refused = await agent.http.post("/agents/run-agent", json={"instruction": "Me, too."})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert int(refused.headers["Retry-After"]) > 0
            assert (await agent.http.get("/health/ready")).status_code == 503
            broker.take.set()
            told = parse_events((await stream.aread()).decode())
            heard = []
            with contextlib.suppress(ConnectionClosed):
                while True:
                    heard.append(json.loads(await client.recv()))
        assert (told[-1][1], told[-1][2]["error"]["code"]) == ("run.failed", "shutting_down")
        assert thread in told[-1][2]["error"]["message"]
        assert (heard[-1]["event"], heard[-1]["data"]["error"]["code"]) == ("run.failed", "shutting_down")
        last = await blocking
        assert (last.status_code, last.json()["error"]["code"]) == (503, "shutting_down")
        await agent.process.wait()
        assert time.monotonic() - begun < STOP_S
        assert agent.process.returncode == -signal.SIGTERM
    assert broker.out == set()
    async with served(engine, run_dir) as agent:
        view = (await agent.http.get(f"/agents/runs/{run}")).json()
        assert (view["status"], view["error"]["error"]["code"]) == ("interrupted", "shutting_down")
        listed = (await agent.http.get(f"/agents/threads/{thread}/messages")).json()["messages"]
        asked, answer = (message["message"]["parts"][0]["content"] for message in listed)
        assert (asked, answer[:14]) == ("Tidy up.", "half an answer")
