"""The whole tool runner as a process on this host, asked over its socket."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
            return bool(client.get("/health").json()["status"] == "ok")
    except httpx2.TransportError:
        return False


@dataclass(frozen=True)
class Served:
    """A running server."""

    process: subprocess.Popen[bytes]
    folder: Path  #: of its socket and its workspace

    def client(self) -> httpx2.AsyncClient:
        transport = httpx2.AsyncHTTPTransport(uds=str(self.folder / "mcp.sock"))
        return httpx2.AsyncClient(transport=transport, base_url="http://toolrunner", timeout=30)


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    folder = folder.resolve()
    socket = folder / "mcp.sock"
    (folder / "workspace").mkdir()
    env = {
        "PYTHONPATH": str(SOURCE),
        "PATH": os.environ["PATH"],
        "TOOLRUNNER_SOCKET": str(socket),
        "TOOLRUNNER_WORKSPACE": str(folder / "workspace"),
        "TOOLRUNNER_GRACE_S": "0.2",
    }
    process = subprocess.Popen([sys.executable, "-m", "loopbox_toolrunner"], env=env, stdout=subprocess.PIPE)
    deadline = time.monotonic() + READY_S
    while not answers(socket):
        assert process.poll() is None
        assert time.monotonic() < deadline, "not ready in time"
        time.sleep(0.02)
    yield Served(process, folder)
    process.terminate()
    output, _ = process.communicate(timeout=20)
    for line in output.splitlines():
        json.loads(line)  # every line of the log


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("shared")) as served:
        yield served


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """One of its own, for tests that end it."""
    with serving(tmp_path) as served:
        yield served


@pytest.fixture
def workspace(shared: Served) -> Iterator[Path]:
    """The shared server's workspace, empty before and after."""
    path = shared.folder / "workspace"
    yield path
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@pytest.fixture
async def client(shared: Served, workspace: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with shared.client() as client:
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
            "search_files",
            "glob",
        ]
        assert all(tool.output_schema for tool in tools.values())
        await session.call_tool("write_file", {"path": "a/b.txt", "content": "one\ntwo\n"})
        await session.call_tool("edit_file", {"path": "a/b.txt", "old": "two", "new": "2"})
        found = await session.call_tool("read_file", {"path": "a/b.txt", "offset": 1})
        assert found.structured_content["content"] == "2\n"
        listed = await session.call_tool("list_files", {"path": "a"})
        assert [e["path"] for e in listed.structured_content["entries"]] == ["a/b.txt"]


async def test_tools_say_what_they_do_and_need(client: httpx2.AsyncClient) -> None:
    """A registry decides by these who may call what, and which calls go at once."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    told = (await client.post("/mcp", json=body, headers=HEADERS)).json()["result"]["tools"]
    tools = {tool["name"]: (tool["annotations"], tool["_meta"]["loopbox"]) for tool in told}
    levels = {name: meta["level"] for name, (_, meta) in tools.items()}
    assert {name for name, level in levels.items() if level == "read"} == {
        "read_file",
        "list_files",
        "search_files",
        "glob",
    }
    for hints, meta in tools.values():
        assert hints["readOnlyHint"] == (meta["level"] == "read")
        assert hints["destructiveHint"] == (meta["level"] != "read")
        assert hints["openWorldHint"] is False
        assert meta["capabilities"]
        assert set(meta["needs"]) == {"memory_mb", "seconds"}
        assert all(meta["needs"].values())
    assert tools["bash"][1] == {
        "capabilities": ["code.run", "shell"],
        "level": "execute",
        "needs": {"memory_mb": 256, "seconds": 30},
    }


async def test_a_changed_file_is_a_conflict_that_a_program_can_tell(client: httpx2.AsyncClient) -> None:
    seen = (await call(client, "write_file", path="f", content="one"))["structuredContent"]["sha256"]
    await call(client, "bash", command="echo -n two > f")
    result = await call(client, "edit_file", path="f", old="two", new="2", expected_sha256=seen)
    assert result["isError"] is True
    assert "expected_sha256" in result["content"][0]["text"]
    found = result["structuredContent"]
    assert (found["conflict"], found["code"], found["path"], found["size"]) == (True, "conflict", "f", 3)
    result = await call(client, "edit_file", path="f", old="two", new="2", expected_sha256=found["sha256"])
    assert result["isError"] is False
    wrong = await call(client, "write_file", path="f", content="x", expected_sha256="yes")
    assert "expected_sha256" in wrong["content"][0]["text"]


async def test_a_long_output_is_a_file_that_can_be_read(client: httpx2.AsyncClient) -> None:
    result = (await call(client, "bash", command="seq 1 9999"))["structuredContent"]
    assert len(result["stdout"]) < 17_000
    read = await call(client, "read_file", path=result["output_file"], offset=5000, limit=1)
    assert read["structuredContent"]["content"] == "5001\n"
    small = (await call(client, "bash", command="echo x"))["structuredContent"]
    assert set(small) == {"exit_code", "stdout", "stderr", "timed_out", "truncated", "duration_ms"}


async def test_searches_by_post(client: httpx2.AsyncClient) -> None:
    await call(client, "write_file", path="src/a.py", content="import os\n")
    found = await call(client, "search_files", pattern="import +os")
    assert found["structuredContent"]["matches"] == [{"path": "src/a.py", "line": 0, "text": "import os"}]
    assert found["content"][0]["text"] == "src/a.py:0: import os"
    assert (await call(client, "glob", pattern="*.py"))["structuredContent"]["paths"] == ["src/a.py"]
    wrong = await call(client, "search_files", pattern="(")
    assert wrong["isError"] is True


def a_tar(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


async def test_a_workspace_goes_out_and_comes_back(client: httpx2.AsyncClient, workspace: Path) -> None:
    await call(client, "bash", command="mkdir d; head -c 3000000 /dev/urandom > d/big; echo x > f; ln -s d/big l")
    content = (workspace / "d/big").read_bytes()
    out = await client.get("/workspace")
    assert (out.status_code, out.headers["content-type"]) == (200, "application/x-tar")
    await call(client, "bash", command="rm -r *; touch other")
    back = await client.put("/workspace", content=out.content)
    assert (back.status_code, back.json()) == (200, {"entries": 4, "bytes": 3000002})
    assert {p.name for p in workspace.iterdir()} == {"d", "f", "l"}
    assert (workspace / "l").read_bytes() == content
    assert (await client.get("/workspace")).content == out.content


async def test_a_bad_archive_leaves_the_workspace_as_it_was(
    client: httpx2.AsyncClient, workspace: Path, shared: Served
) -> None:
    (workspace / "mine").write_text("kept", encoding="ascii")
    for content in (b"no tar" * 500, a_tar(a=b"x" * 5000)[:2000], a_tar(**{"../x": b"x"})):
        answer = await client.put("/workspace", content=content)
        assert answer.status_code == 400
        assert answer.json()["changed"] is False
        assert [p.name for p in workspace.iterdir()] == ["mine"]
    reader, writer = await asyncio.open_unix_connection(shared.folder / "mcp.sock")
    writer.write(b"PUT /workspace HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")
    assert b" 413 " in await reader.readline()
    writer.close()


async def test_an_import_whose_client_goes_away_changes_nothing(client: httpx2.AsyncClient, workspace: Path) -> None:
    """What has come is a whole tar so far as anyone can tell: cut between two entries."""
    (workspace / "mine").write_text("kept", encoding="ascii")
    begun = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield a_tar(a=b"x" * 100_000)[:-10240]
        async with asyncio.timeout(10):
            while len(list(workspace.iterdir())) < 2:  # unpacked beside what is there
                await asyncio.sleep(0.01)
        begun.set()
        await asyncio.sleep(60)

    asked = asyncio.create_task(client.put("/workspace", content=body()))
    await begun.wait()
    asked.cancel()
    async with asyncio.timeout(10):
        while [p.name for p in workspace.iterdir()] != ["mine"]:
            await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        while (await client.put("/workspace", content=a_tar(b=b"y"))).status_code == 409:
            await asyncio.sleep(0.01)
    assert [p.name for p in workspace.iterdir()] == ["b"]


async def test_a_granted_proxy_is_in_the_environment_of_commands(client: httpx2.AsyncClient, shared: Served) -> None:
    command = "echo $HTTP_PROXY; python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 3128), 3)'"
    before = (await call(client, "bash", command=command))["structuredContent"]
    assert before["stdout"] == "\n"
    assert "refused" in before["stderr"]
    proxy = await asyncio.start_unix_server(lambda _r, w: w.close(), shared.folder / "egress.sock")
    after = (await call(client, "bash", command=command))["structuredContent"]
    assert (after["stdout"], after["stderr"]) == ("http://127.0.0.1:3128\n", "")
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    told = (await client.post("/mcp", json=body, headers=HEADERS)).json()["result"]["tools"]
    assert {t["name"] for t in told if t["annotations"]["openWorldHint"]} == {"bash", "python", "javascript"}
    proxy.close()
    await proxy.wait_closed()
    (shared.folder / "egress.sock").unlink()
    assert (await call(client, "bash", command="echo $HTTP_PROXY"))["structuredContent"]["stdout"] == "\n"


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
        assert (await client.get("/health")).json()["status"] == "ok"
        slowest = max(slowest, time.monotonic() - asked)
    assert slowest < 1.0
    results = await asyncio.gather(*floods)
    assert all(result["structuredContent"]["truncated"] for result in results)


def test_the_socket_is_open_to_whoever_reaches_its_directory(shared: Served) -> None:
    assert stat.S_IMODE((shared.folder / "mcp.sock").stat().st_mode) == 0o666
    assert not (shared.folder / "mcp.sock.new").exists()


def test_it_ends_on_sigterm_and_takes_its_socket_along(own: Served) -> None:
    own.process.terminate()
    assert own.process.wait(10) == 0
    assert not (own.folder / "mcp.sock").exists()


async def test_it_ends_when_its_zygote_is_killed(own: Served) -> None:
    """Nothing could be cleaned up any more, so the container must end."""
    async with own.client() as client:
        done = await call(client, "bash", command="cut -d' ' -f4 /proc/$PPID/stat")
    os.kill(int(done["structuredContent"]["stdout"]), signal.SIGKILL)
    assert await asyncio.to_thread(own.process.wait, 10) == 70


def test_a_wrong_setting_stops_it_and_names_the_variable() -> None:
    env = {"PYTHONPATH": str(SOURCE), "TOOLRUNNER_TIMEOUT_S": "soon"}
    done = subprocess.run([sys.executable, "-m", "loopbox_toolrunner"], env=env, capture_output=True, check=False)
    assert done.returncode == 78
    assert b"timeout_s" in done.stderr
