"""The whole tool runner as a process on this host, asked over its socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

SOURCE = Path(__file__).resolve().parent.parent / "src"
HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
    "MCP-Protocol-Version": "2025-11-25",
}
MODERN = "2026-07-28"
READY_S = 20.0


def answers(socket: Path) -> bool:
    try:
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(socket)), base_url="http://toolrunner") as client:
            return bool(client.get("/health").json() == {"status": "ok"})
    except httpx2.TransportError:
        return False


@pytest.fixture
def server(tmp_path: Path, workspace: Path) -> Iterator[subprocess.Popen[bytes]]:
    socket = tmp_path / "mcp.sock"
    env = {
        "PYTHONPATH": str(SOURCE),
        "PATH": os.environ["PATH"],
        "TOOLRUNNER_SOCKET": str(socket),
        "TOOLRUNNER_WORKSPACE": str(workspace),
        "TOOLRUNNER_GRACE_S": "0.2",
    }
    process = subprocess.Popen([sys.executable, "-m", "loopbox_toolrunner"], env=env, stdout=subprocess.PIPE)
    deadline = time.monotonic() + READY_S
    while not answers(socket):
        assert process.poll() is None
        assert time.monotonic() < deadline, "not ready in time"
        time.sleep(0.02)
    yield process
    process.terminate()
    output, _ = process.communicate(timeout=20)
    for line in output.splitlines():
        json.loads(line)  # every line of the log


@pytest.fixture
async def client(server: subprocess.Popen[bytes], tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.AsyncHTTPTransport(uds=str(tmp_path / "mcp.sock"))
    async with httpx2.AsyncClient(transport=transport, base_url="http://toolrunner", timeout=30) as client:
        yield client


async def call(client: httpx2.AsyncClient, name: str, **arguments: object) -> dict[str, Any]:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
    answer = await client.post("/mcp", content=json.dumps(body), headers=HEADERS)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/json")
    result: dict[str, Any] = answer.json()["result"]
    return result


async def test_one_post_runs_a_tool(client: httpx2.AsyncClient) -> None:
    result = await call(client, "bash", command="echo $((6 * 7))")
    assert result["isError"] is False
    assert result["structuredContent"]["stdout"] == "42\n"
    assert result["content"] == [{"type": "text", "text": "42"}]
    failed = await call(client, "python", code="raise SystemExit(3)")
    assert failed["isError"] is True
    assert failed["structuredContent"]["exit_code"] == 3


async def test_the_newest_protocol_revision_is_served_too(client: httpx2.AsyncClient) -> None:
    """A request of the new revision carries its own envelope; the old one's would be refused."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": "bash", "arguments": {"command": "echo new"}, "_meta": meta}
    answer = await client.post(
        "/mcp",
        json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params},
        headers=HEADERS | {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": "bash"},
    )
    assert answer.json()["result"]["structuredContent"]["stdout"] == "new\n"


async def test_the_official_client_lists_and_calls(client: httpx2.AsyncClient) -> None:
    async with (
        streamable_http_client("http://toolrunner/mcp", http_client=client) as (read, write),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        assert list(tools) == [
            "bash",
            "python",
            "javascript",
            "read_file",
            "write_file",
            "edit_file",
            "list_files",
        ]
        assert all(tool.output_schema for tool in tools.values())
        await session.call_tool("write_file", {"path": "a/b.txt", "content": "one\ntwo\n"})
        await session.call_tool("edit_file", {"path": "a/b.txt", "old": "two", "new": "2"})
        found = await session.call_tool("read_file", {"path": "a/b.txt", "offset": 1})
        assert found.structured_content["content"] == "2\n"
        listed = await session.call_tool("list_files", {"path": "a"})
        assert [e["path"] for e in listed.structured_content["entries"]] == ["a/b.txt"]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("nothing", {}, "there is no tool"),
        ("bash", {"cmd": "ls"}, "command: Field required"),
        ("bash", {"command": "true", "timeout_s": 600}, "timeout_s: must be 120 at most"),
        ("bash", {"command": "a\0b"}, "NUL"),
        ("read_file", {"path": "../../etc/passwd"}, "outside"),
        ("write_file", {"path": "x" * 300, "content": ""}, "too long"),
    ],
)
async def test_a_wrong_call_is_an_error_that_a_model_can_read(
    client: httpx2.AsyncClient, name: str, arguments: dict[str, object], words: str
) -> None:
    result = await call(client, name, **arguments)
    assert result["isError"] is True
    assert words in result["content"][0]["text"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"7", 400),
        (rb'{"jsonrpc":"2.0","id":1,"method":"\ud800"}', 400),
        (b"[" * 100_000, 400),
        (b"x" * (5 << 20), 413),
    ],
)
async def test_a_broken_request_is_refused_and_the_next_one_served(
    client: httpx2.AsyncClient, body: bytes, status: int
) -> None:
    answer = await client.post("/mcp", content=body, headers=HEADERS)
    assert answer.status_code == status
    assert (await call(client, "bash", command="true"))["isError"] is False


@pytest.mark.parametrize("version", ["2025-11-25", MODERN])
async def test_a_client_that_goes_away_takes_its_command_along(
    client: httpx2.AsyncClient, workspace: Path, version: str
) -> None:
    """The transport's plain answers do not look for clients that have gone; nobody would stop the command."""
    command = "trap 'touch ended; exit' TERM; touch started; while true; do sleep 0.05; done"
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": "bash", "arguments": {"command": command}} | ({"_meta": meta} if version == MODERN else {})
    asked = asyncio.create_task(
        client.post(
            "/mcp",
            json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params},
            headers=HEADERS | {"MCP-Protocol-Version": version, "Mcp-Method": "tools/call", "Mcp-Name": "bash"},
        )
    )
    async with asyncio.timeout(10):
        while not (workspace / "started").exists():
            await asyncio.sleep(0.01)
    asked.cancel()
    async with asyncio.timeout(2):
        while not (workspace / "ended").exists():
            await asyncio.sleep(0.01)


async def test_health_answers_while_commands_flood(client: httpx2.AsyncClient) -> None:
    """Reading a flood of output must not starve the rest."""
    floods = [asyncio.create_task(call(client, "bash", command="yes", timeout_s=2)) for _ in range(3)]
    slowest = 0.0
    while not all(flood.done() for flood in floods):
        asked = time.monotonic()
        assert (await client.get("/health")).json() == {"status": "ok"}
        slowest = max(slowest, time.monotonic() - asked)
    assert slowest < 1.0
    results = await asyncio.gather(*floods)
    assert all(result["structuredContent"]["truncated"] for result in results)


def test_the_socket_is_open_to_whoever_reaches_its_directory(server: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "mcp.sock").stat().st_mode) == 0o666
    assert not (tmp_path / "mcp.sock.new").exists()


def test_it_ends_on_sigterm_and_takes_its_socket_along(server: subprocess.Popen[bytes], tmp_path: Path) -> None:
    server.terminate()
    assert server.wait(10) == 0
    assert not (tmp_path / "mcp.sock").exists()


async def test_it_ends_when_its_zygote_is_killed(client: httpx2.AsyncClient, server: subprocess.Popen[bytes]) -> None:
    """Nothing could be cleaned up any more, so the container must end."""
    zygote = int((await call(client, "bash", command="cut -d' ' -f4 /proc/$PPID/stat"))["structuredContent"]["stdout"])
    os.kill(zygote, signal.SIGKILL)
    assert await asyncio.to_thread(server.wait, 10) == 70


def test_a_wrong_setting_stops_it_and_names_the_variable() -> None:
    env = {"PYTHONPATH": str(SOURCE), "TOOLRUNNER_TIMEOUT_S": "soon"}
    done = subprocess.run([sys.executable, "-m", "loopbox_toolrunner"], env=env, capture_output=True, check=False)
    assert done.returncode == 78
    assert b"timeout_s" in done.stderr
