"""The agent's image under the restrictions it runs with: read-only, no capability, little memory, internal network."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import httpx2
import pytest
from aiohttp import web
from docker.models.containers import Container

from built import built

pytestmark = pytest.mark.docker

IMAGE = built().agent
UID = 10002
READY_S = 30.0
RSS_LIMIT = 256 << 20  #: bytes; half of what its container may have
PORT = 8000


@dataclass
class Engine:
    """A stand-in engine on the bridge's host address, where the gateway would be."""

    url: str = ""
    orders: list[dict[str, Any]] = field(default_factory=list)  #: Any: JSON bodies received

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.orders.append(await request.json())
        response = web.StreamResponse()
        await response.prepare(request)
        for text in ("The sea", " is wide."):
            await response.write(json.dumps({"message": {"content": text}, "done": False}).encode() + b"\n")
        last = {
            "message": {"content": ""},
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": 5,
            "eval_count": 4,
        }
        await response.write(json.dumps(last).encode() + b"\n")
        return response

    async def tags(self, _: web.Request) -> web.Response:
        return web.json_response({"models": [{"name": "agent:latest"}]})


@dataclass
class Running:
    """The container and a client of it."""

    container: Container
    http: httpx2.AsyncClient
    engine: Engine
    start_s: float  #: from its start to its first ready answer


@pytest.fixture
async def agent() -> AsyncIterator[Running]:
    client = docker.from_env()
    base = Path(tempfile.mkdtemp(prefix="lbt-"))
    network = client.networks.create(f"lbt{secrets.token_hex(4)}", internal=True)
    container: Container | None = None
    engine = Engine()
    app = web.Application()
    app.add_routes([web.post("/api/chat", engine.chat), web.get("/api/tags", engine.tags)])
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    try:
        network.reload()
        host = network.attrs["IPAM"]["Config"][0]["Gateway"]
        await runner.setup()
        await web.TCPSite(runner, host, 0).start()
        engine.url = f"http://{host}:{runner.addresses[0][1]}"
        for name in ("broker", "leases"):
            (base / name).mkdir()
            os.chown(base / name, UID, UID)
        started = time.monotonic()
        made = container = await asyncio.to_thread(_start, client, engine.url, str(network.name), base)
        made.reload()
        address = made.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"]
        async with httpx2.AsyncClient(base_url=f"http://{address}:{PORT}", timeout=10, trust_env=False) as http:
            await _ready(http, made)
            yield Running(made, http, engine, time.monotonic() - started)
    finally:
        if container is not None:
            await asyncio.to_thread(container.remove, force=True)
        await runner.cleanup()
        await asyncio.to_thread(network.remove)
        client.close()
        shutil.rmtree(base)


def _start(client: docker.DockerClient, engine_url: str, network: str, base: Path) -> Container:
    return client.containers.run(
        IMAGE,
        detach=True,
        environment={"AGENT_ENGINE_URL": engine_url},
        network=network,
        read_only=True,
        tmpfs={"/tmp": "size=16m,noexec,nosuid", "/var/lib/agent": "size=64m,uid=10002,mode=0700"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        init=True,
        mem_limit="512m",
        pids_limit=128,
        volumes={
            str(base / "broker"): {"bind": "/run/broker", "mode": "ro"},
            str(base / "leases"): {"bind": "/run/leases", "mode": "ro"},
        },
    )


async def _ready(http: httpx2.AsyncClient, container: Container) -> None:
    try:
        async with asyncio.timeout(READY_S):
            while True:
                try:
                    if (await http.get("/health/ready")).status_code == 200:
                        return
                except httpx2.TransportError:
                    pass
                await asyncio.sleep(0.02)
    except TimeoutError:
        logs = (await asyncio.to_thread(container.logs)).decode(errors="replace")
        pytest.fail(f"not ready within {READY_S:g} s:\n{logs[-3000:]}")


def _resident_bytes(container: Container) -> int:
    top = container.top(ps_args="-eo pid,rss")
    return max(int(row[1]) for row in top["Processes"]) * 1024


async def test_it_chats_and_streams_under_its_restrictions(
    agent: Running, record_testsuite_property: Callable[[str, object], None]
) -> None:
    body = (await agent.http.post("/agents/run-agent", json={"instruction": "Say something."})).json()
    assert (body["output"], body["usage"]) == ("The sea is wide.", {"input_tokens": 5, "output_tokens": 4})
    assert agent.engine.orders[0]["options"]["num_ctx"] == 2048
    streamed = await agent.http.post("/agents/run-agent", json={"instruction": "Again.", "stream": True})
    deltas = [json.loads(line[6:])["text"] for line in streamed.text.splitlines() if line.startswith('data: {"text"')]
    assert "".join(deltas) == "The sea is wide."
    assert len(deltas) > 1, "it comes piece by piece, cut between words so that a secret is seen whole"
    assert "event: run.completed" in streamed.text
    resident = await asyncio.to_thread(_resident_bytes, agent.container)
    record_testsuite_property("agent_rss_mb", round(resident / 1e6, 1))
    record_testsuite_property("agent_start_s", round(agent.start_s, 2))
    assert resident < RSS_LIMIT


async def test_it_runs_as_its_own_user_and_cannot_write_its_image(agent: Running) -> None:
    code, told = await asyncio.to_thread(agent.container.exec_run, ["/bin/sh", "-c", "id -u; touch /opt/x; touch /x"])
    assert isinstance(told, bytes)
    assert told.decode().split("\n", 1)[0] == str(UID)
    assert (code != 0, told.count(b"Read-only file system")) == (True, 2)


async def test_its_log_is_json_with_the_correlation_id_and_without_the_instruction(agent: Running) -> None:
    headers = {"X-Correlation-Id": "image-test-1"}
    secret = f"secret {secrets.token_hex(8)}"
    await agent.http.post("/agents/run-agent", json={"instruction": secret}, headers=headers)
    logs = (await asyncio.to_thread(agent.container.logs)).decode()
    lines = [json.loads(line) for line in logs.splitlines()]
    assert [line["event"] for line in lines if line.get("correlation_id") == "image-test-1"] == ["run.ended"]
    assert secret not in logs


async def test_without_a_broker_a_tool_is_refused_and_chat_goes_on(agent: Running) -> None:
    choice = {"name": "python", "arguments": {"code": "1"}}
    response = await agent.http.post("/agents/run-agent", json={"instruction": "x", "tool_choice": choice})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "sandbox_unavailable")
    assert (await agent.http.post("/agents/run-agent", json={"instruction": "x"})).status_code == 200


async def test_told_to_stop_it_stops_at_once(agent: Running) -> None:
    """Guards against a container that must be killed because a signal never reaches the service."""
    started = time.monotonic()
    await asyncio.to_thread(agent.container.stop, timeout=20)
    await asyncio.to_thread(agent.container.reload)
    assert time.monotonic() - started < 10
    assert agent.container.attrs["State"]["ExitCode"] != 137
