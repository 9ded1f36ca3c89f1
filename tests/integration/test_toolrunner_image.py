"""The tool runner's image, run exactly as loopd runs a sandbox: what works in it, and what must not get out of it."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import docker
import httpx2
import pytest
from docker.models.containers import Container
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from built import built
from loopd.seccomp import sandbox_profile

pytestmark = pytest.mark.docker
IMAGE: Final = built().toolrunner
UID: Final = 10003
READY_S: Final = 20.0
HEADERS: Final = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}
MIB: Final = 1 << 20

ORPHAN: Final = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open("orphan", "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
while not os.path.exists("orphan"): time.sleep(0.01)
"""
CONNECT: Final = """
import socket
for family, address in ((socket.AF_INET, ("1.1.1.1", 53)), (socket.AF_INET, ("169.254.169.254", 80)),
                        (socket.AF_INET, ("172.17.0.1", 80)), (socket.AF_INET6, ("2606:4700:4700::1111", 53))):
    try:
        socket.socket(family).connect(address)
        print("connected", address)
    except OSError as error:
        print("refused", error.errno)
"""

PEEK: Final = """
import os
for pid in filter(str.isdecimal, os.listdir("/proc")):
    if int(pid) not in (1, os.getpid()) and b"loopbox_toolrunner" in open(f"/proc/{pid}/cmdline", "rb").read():
        for name in ("environ", "mem"):
            try:
                open(f"/proc/{pid}/{name}", "rb").close()
                print("open")
            except PermissionError:
                print("closed")
"""


class Sandbox:
    """One running container and the way to its tools."""

    def __init__(self, container: Container, socket: Path) -> None:
        self.container = container
        self.socket = socket

    @asynccontextmanager
    async def http(self) -> AsyncIterator[httpx2.AsyncClient]:
        transport = httpx2.AsyncHTTPTransport(uds=str(self.socket))
        async with httpx2.AsyncClient(transport=transport, base_url="http://toolrunner", timeout=90) as client:
            yield client

    async def call(self, name: str, **arguments: object) -> dict[str, Any]:  # Any: JSON
        """The one-POST form, without the SDK."""
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
        async with self.http() as client:
            answer = await client.post("/mcp", json=body, headers=HEADERS)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()["result"]
        return result

    async def ran(self, name: str, **arguments: object) -> dict[str, Any]:  # Any: JSON
        structured: dict[str, Any] = (await self.call(name, **arguments))["structuredContent"]
        return structured

    async def bash(self, command: str, timeout_s: int = 30) -> dict[str, Any]:  # Any: JSON
        return await self.ran("bash", command=command, timeout_s=timeout_s)

    def alive(self) -> int:
        """How many processes there are: the init, the server, the zygote and whatever was left.

        A call's keeper ends right after it has reported, so that it may still be seen for a moment.
        """
        deadline = time.monotonic() + KEEPER_ENDS_S
        while (count := len(self.container.top()["Processes"])) > OWN_PROCESSES and time.monotonic() < deadline:
            time.sleep(0.05)
        return count


OWN_PROCESSES: Final = 3
KEEPER_ENDS_S: Final = 2.0


def answers(socket: Path) -> bool:
    try:
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(socket)), base_url="http://toolrunner") as client:
            return bool(client.get("/health").json()["status"] == "ok")
    except httpx2.TransportError:
        return False


@contextmanager
def started(*, namespaces: bool = False) -> Iterator[Sandbox]:
    """Start one as loopd does. namespaces: of a kernel and an engine that let it make its own."""
    directory = Path(tempfile.mkdtemp(prefix="lb-"))  # short: a socket's path has 107 bytes at most
    directory.chmod(0o755)
    os.chown(directory, UID, UID)
    engine = docker.from_env()
    host = engine.api.create_host_config(
        network_mode="none",
        read_only=True,
        tmpfs={
            "/tmp": "size=64m,nosuid,nodev",
            "/workspace": f"size=256m,nosuid,nodev,exec,uid={UID},gid={UID},mode=0700",
        },
        binds=[f"{directory}:/run/toolrunner:rw"],
        cap_drop=["ALL"],
        security_opt=["no-new-privileges", f"seccomp={'unconfined' if namespaces else sandbox_profile()}"],
        pids_limit=128,
        mem_limit="512m",
        memswap_limit="512m",
        nano_cpus=10**9,
        init=True,
    )
    if namespaces:
        host |= {"MaskedPaths": [], "ReadonlyPaths": []}  # else the kernel lets nobody mount a /proc of its own
    made = engine.api.create_container(IMAGE, user=f"{UID}:{UID}", host_config=host)
    container = engine.containers.get(made["Id"])
    container.start()
    try:
        socket = directory / "mcp.sock"
        deadline = time.monotonic() + READY_S
        while not answers(socket):
            container.reload()
            assert container.status == "running", container.logs().decode()
            assert time.monotonic() < deadline, container.logs().decode()
            time.sleep(0.02)
        yield Sandbox(container, socket)
    finally:
        container.remove(force=True)
        engine.close()
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    with started() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(shared: Sandbox) -> Iterator[Sandbox]:
    """The shared one, clean before and held to be clean of processes after."""
    yield shared
    assert shared.alive() == OWN_PROCESSES
    asyncio.run(shared.bash("rm -rf /workspace/* /workspace/.outputs /tmp/*"))


@pytest.fixture
def own() -> Iterator[Sandbox]:
    """One of its own, for tests that break it."""
    with started() as sandbox:
        yield sandbox


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("bash", {"command": "echo $((6 * 7))"}),
        ("python", {"code": "print(6 * 7)"}),
        ("javascript", {"code": "console.log(6 * 7)"}),
    ],
)
async def test_each_language_answers_by_client_and_by_one_post(
    sandbox: Sandbox, tool: str, arguments: dict[str, object]
) -> None:
    posted = await sandbox.call(tool, **arguments)
    assert posted["structuredContent"] | {"duration_ms": 0} == {
        "exit_code": 0,
        "stdout": "42\n",
        "stderr": "",
        "timed_out": False,
        "truncated": False,
        "duration_ms": 0,
    }
    async with (
        sandbox.http() as http,
        streamable_http_client("http://toolrunner/mcp", http_client=http) as (read, write),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        await session.list_tools()  # with the result schemas known, the client checks results against them
        result = await session.call_tool(tool, arguments)
    assert result.structured_content["stdout"] == "42\n"
    assert not result.is_error


async def test_file_tools_answer_by_client_and_by_one_post(sandbox: Sandbox) -> None:
    async with (
        sandbox.http() as http,
        streamable_http_client("http://toolrunner/mcp", http_client=http) as (read, write),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        await session.list_tools()
        await session.call_tool("write_file", {"path": "dir/a.txt", "content": "one\n"})
        await session.call_tool("edit_file", {"path": "dir/a.txt", "old": "one", "new": "two"})
        read_back = await session.call_tool("read_file", {"path": "dir/a.txt"})
        listed = await session.call_tool("list_files", {})
    assert read_back.structured_content["content"] == "two\n"
    assert [e["path"] for e in listed.structured_content["entries"]] == ["dir"]
    assert (await sandbox.ran("read_file", path="/workspace/dir/a.txt"))["content"] == "two\n"
    assert (await sandbox.ran("write_file", path="b", content="x"))["size"] == 1
    assert (await sandbox.ran("edit_file", path="b", old="x", new="yy"))["size"] == 2
    assert len((await sandbox.ran("list_files"))["entries"]) == 2


async def test_no_network_can_be_reached(sandbox: Sandbox) -> None:
    done = await sandbox.ran("python", code=CONNECT)
    assert [line.split()[0] for line in done["stdout"].splitlines()] == ["refused"] * 4
    assert (await sandbox.bash("ls /sys/class/net"))["stdout"] == "lo\n"


async def test_commands_have_no_privilege(sandbox: Sandbox) -> None:
    done = await sandbox.bash("id -u; id -g; cat /proc/self/status")
    uid, gid, *status = done["stdout"].splitlines()
    assert (uid, gid) == (str(UID), str(UID))
    told = dict(line.split(":", 1) for line in status if ":" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(told[name], 16) == 0
    assert told["NoNewPrivs"].strip() == "1"
    assert told["Seccomp"].strip() == "2"


async def test_the_root_filesystem_cannot_be_written(sandbox: Sandbox) -> None:
    done = await sandbox.bash(
        "touch /x /opt/venv/x /etc/x /usr/bin/x /home/x /var/tmp/x /dev/x 2>&1 | wc -l; "
        "grep ' / ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1; "
        "echo 'echo ok' > /workspace/s; chmod +x /workspace/s; bash -c /workspace/s; "
        "mount -t tmpfs x /workspace 2>/dev/null || echo refused"
    )
    assert done["stdout"].splitlines() == ["7", "ro", "ok", "refused"]


async def test_nothing_of_the_host_is_seen(sandbox: Sandbox) -> None:
    done = await sandbox.bash(
        "ls /var/run/docker.sock /run/docker.sock 2>/dev/null; ls /run/toolrunner; env | grep -ci -e token -e secret; "
        "find / -xdev -perm -4000 -newer /proc/1 2>/dev/null; ps 2>/dev/null; ls /proc | grep -c '^[0-9]*$'"
    )
    socket, secrets, processes = done["stdout"].splitlines()
    assert (socket, secrets) == ("mcp.sock", "0")
    assert int(processes) < 12


async def test_the_servers_memory_is_closed_to_commands(sandbox: Sandbox) -> None:
    """Both run under one user; without care a command reads what other calls sent."""
    done = await sandbox.ran("python", code=PEEK)
    assert done["stdout"].split() == ["closed"] * 6  # server, zygote and keeper, two files of each


async def test_commands_are_the_kernels_first_choice_for_want_of_memory(sandbox: Sandbox) -> None:
    """Else it takes the biggest process, which is the server."""
    assert (await sandbox.bash("cat /proc/self/oom_score_adj"))["stdout"] == "1000\n"


async def test_time_is_limited(sandbox: Sandbox) -> None:
    done = await sandbox.bash("trap '' TERM; while true; do sleep 5; done", timeout_s=1)
    assert (done["exit_code"], done["timed_out"]) == (124, True)
    assert done["duration_ms"] < 5000


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("bash", {"command": "x=$(head -c 50000000 /dev/zero | tr '\\0' x); while true; do x=$x$x; done"}),
        ("python", {"code": "x = []\nwhile True: x.append(b'x' * (1 << 20))"}),
        ("javascript", {"code": "const x = []; while (true) x.push(Buffer.alloc(1 << 20, 1))"}),
        ("javascript", {"code": "const x = []; while (true) x.push(new Array(1e5).fill(Math.random()))"}),
        ("python", {"code": "open('/dev/shm/a', 'wb').write(b'x' * (60 << 20)); x = b'x' * (400 << 20)"}),
    ],
)
async def test_a_memory_bomb_ends_and_the_sandbox_lives(
    sandbox: Sandbox, tool: str, arguments: dict[str, object]
) -> None:
    """The kernel's choice for want of memory must never be the server."""
    result = await sandbox.call(tool, **arguments, timeout_s=30)
    assert result["isError"]
    assert result["structuredContent"]["exit_code"] != 0
    assert not result["structuredContent"]["timed_out"]
    await sandbox.bash("rm -f /dev/shm/a")
    assert (await sandbox.bash("echo lives"))["stdout"] == "lives\n"


async def test_four_memory_bombs_at_once_end_and_the_sandbox_lives(own: Sandbox) -> None:
    """Together they may fill the container before a watcher looks; then the kernel kills, and must kill them."""
    bomb = "x = []\nwhile True: x.append(b'x' * (1 << 20))"
    results = await asyncio.gather(*(own.call("python", code=bomb) for _ in range(4)))
    assert all(result["isError"] for result in results)
    assert (await own.bash("echo lives"))["stdout"] == "lives\n"
    assert own.alive() == OWN_PROCESSES


async def test_a_fork_bomb_ends_and_the_sandbox_lives(sandbox: Sandbox) -> None:
    done = await sandbox.bash("f() { f | f & }; f; sleep 20")
    assert done["exit_code"] != 0
    assert done["duration_ms"] < 15_000
    assert (await sandbox.bash("echo lives"))["stdout"] == "lives\n"


async def test_other_calls_go_on_beside_a_fork_bomb(own: Sandbox) -> None:
    bomb = asyncio.create_task(own.bash("f() { f | f & }; f; sleep 20"))
    for _ in range(5):
        beside = await own.bash("echo beside")
        assert beside["stdout"] == "beside\n", beside
    assert (await bomb)["exit_code"] != 0
    assert own.alive() == OWN_PROCESSES


async def test_an_output_bomb_is_cut_in_the_middle(sandbox: Sandbox) -> None:
    done = await sandbox.bash("echo first; head -c 1000000000 /dev/zero | tr '\\0' x; echo; echo last")
    assert done["truncated"]
    assert done["stdout"].startswith("first\n")
    assert done["stdout"].endswith("\nlast\n")
    assert len(done["stdout"]) < 17_000
    kept = await sandbox.bash(f"stat -c %s {done['output_file']}; head -1 {done['output_file']}")
    assert kept["stdout"] == f"{8 * MIB}\nfirst\n"
    told = sandbox.container.stats(stream=False)
    assert isinstance(told, dict)
    assert told["memory_stats"]["usage"] < 200 * MIB


async def test_a_disk_bomb_is_held_by_the_limits(sandbox: Sandbox) -> None:
    done = await sandbox.bash("for i in 1 2 3; do head -c 130M /dev/zero > f$i || break; done; ls -l f*; rm f*")
    assert "File size limit" in done["stderr"] or "No space" in done["stderr"] or "too large" in done["stderr"]
    assert (await sandbox.bash("echo lives"))["stdout"] == "lives\n"


@pytest.mark.parametrize("command", ['python3 -c "$ORPHAN"', "setsid sleep 600 & nohup sleep 600 & disown -a"])
async def test_no_orphan_outlives_its_call(sandbox: Sandbox, command: str) -> None:
    done = await sandbox.bash(f"ORPHAN=$(cat <<'END'\n{ORPHAN}\nEND\n); {command}")
    assert done["exit_code"] == 0
    assert sandbox.alive() == OWN_PROCESSES


@pytest.mark.parametrize("path", ["../etc/passwd", "/etc/passwd", "link", "up/etc/hostname", "/proc/self/environ"])
async def test_file_tools_stay_in_the_workspace(sandbox: Sandbox, path: str) -> None:
    await sandbox.bash("ln -sfn /etc/passwd link; ln -sfn / up")
    for tool, arguments in (
        ("read_file", {}),
        ("write_file", {"content": "x"}),
        ("edit_file", {"old": "root", "new": "x"}),
    ):
        result = await sandbox.call(tool, path=path, **arguments)
        assert result["isError"]
        assert "outside" in result["content"][0]["text"]


async def test_calls_run_at_the_same_time(sandbox: Sandbox) -> None:
    """Each waits for the files of all others, so one by one they would never end."""
    command = "touch c$$; for i in $(seq 400); do [ $(ls c* | wc -l) = 4 ] && exit 0; sleep 0.02; done; exit 1"
    results = await asyncio.gather(*(sandbox.bash(command, timeout_s=20) for _ in range(4)))
    assert [result["exit_code"] for result in results] == [0, 0, 0, 0]


async def test_what_ignores_sigterm_is_gone_soon_after_its_client(own: Sandbox) -> None:
    """The bar for a cancel is 2 s from the request to no process left; the sandbox may use 1.5 s of them."""
    taken: list[float] = []
    command = "trap '' TERM; echo $$ > started; while true; do sleep 0.05; done"
    for _ in range(4):
        call = asyncio.create_task(own.bash(command, timeout_s=60))
        async with asyncio.timeout(10):
            while (await own.bash("[ -s started ]"))["exit_code"]:
                pass
        pid = (await own.bash("cat started; rm started"))["stdout"].strip()
        call.cancel()
        began = time.monotonic()
        async with asyncio.timeout(5):
            while (await own.bash(f"[ -e /proc/{pid} ]"))["exit_code"] == 0:
                pass
        taken.append(time.monotonic() - began)
    assert max(taken) < 1.5, taken


async def test_the_loopback_is_up_without_a_network(sandbox: Sandbox) -> None:
    code = (
        "import socket\nwith socket.create_server(('127.0.0.1', 0)) as s:\n"
        "    c = socket.create_connection(s.getsockname()); a, _ = s.accept(); a.sendall(b'up'); print(c.recv(2))"
    )
    assert (await sandbox.ran("python", code=code))["stdout"] == "b'up'\n"


async def test_a_granted_proxy_is_reached_through_the_loopback(own: Sandbox) -> None:
    """The socket comes as loopd makes it: while the sandbox runs, beside the tools' socket."""
    fetch = "import urllib.request as u; print(u.urlopen('http://example.org/', timeout=5).read())"
    before = await own.ran("python", code=fetch)
    assert "Temporary failure in name resolution" in before["stderr"]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nasked " + head.split(b"\r\n")[0])
        writer.close()

    path = own.socket.with_name("egress.sock")
    proxy = await asyncio.start_unix_server(answer, path)
    path.chmod(0o666)
    after = await own.ran("python", code=fetch)
    assert after["stdout"] == "b'asked GET http://example.org/ HTTP/1.1'\n"
    proxy.close()
    await proxy.wait_closed()
    path.unlink()
    assert (await own.ran("python", code=fetch))["exit_code"] == 1


async def sent(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_a_workspace_moves_to_another_sandbox(sandbox: Sandbox, own: Sandbox) -> None:
    await sandbox.bash("mkdir -p d/e; seq 1 100000 > d/e/f; ln -s d/e/f l; ln -s /etc/passwd out; chmod 700 d/e/f")
    async with sandbox.http() as here, own.http() as there:
        tar = (await here.get("/workspace")).content
        answer = await there.put("/workspace", content=tar)
        assert answer.json() == {"entries": 4, "bytes": 588895}
        assert (await there.get("/workspace")).content == tar
        bomb = await there.put("/workspace", content=sent(itertools.repeat(bytes(MIB), 300)))
        assert bomb.status_code == 400
    done = await own.bash("find . | sort; tail -1 l; stat -c %a l; stat -Lc %a l")
    assert done["stdout"].split() == [".", "./d", "./d/e", "./d/e/f", "./l", "100000", "777", "700"]


async def test_an_archive_that_fills_the_workspace_changes_nothing(own: Sandbox) -> None:
    """Unpacked beside what is there, it may need more room than there is."""
    await own.bash("echo kept > mine; head -c 120M /dev/zero > big")
    head = tarfile.TarInfo("x")
    head.size = 140 * MIB
    parts = (head.tobuf(), *itertools.repeat(bytes(MIB), 140), bytes(1024))

    async with own.http() as http:
        answer = await http.put("/workspace", content=sent(parts))
    assert answer.status_code == 400
    assert "as it was" in answer.json()["error"]
    assert (await own.bash("cat mine; ls -A; df --output=avail -m . | tail -1"))["stdout"].split() == [
        "kept",
        "big",
        "mine",
        "136",
    ]


async def test_namespaces_of_its_own_where_the_kernel_lets_it() -> None:
    """Our profile forbids new namespaces, so this is a container with another."""
    with started(namespaces=True) as loose:
        async with loose.http() as http:
            assert (await http.get("/health")).json() == {"status": "ok", "bubblewrap": True}
        done = await loose.bash(
            "ls /proc | grep -c '^[0-9]'; ls /run/toolrunner; touch /run/toolrunner/x /opt/x 2>/dev/null || echo held; "
            "echo kept > f; echo kept > /tmp/f; id -u; unshare -U true 2>/dev/null || echo held"
        )
        assert done["stdout"].split() == ["4", "held", str(UID), "held"] or done["stdout"].split()[1:] == [
            "held",
            str(UID),
            "held",
        ]
        assert (await loose.bash("cat f /tmp/f"))["stdout"] == "kept\nkept\n"
        late = await loose.bash("trap 'echo bye; exit' TERM; while true; do sleep 0.05; done", timeout_s=1)
        assert (late["timed_out"], late["stdout"]) == (True, "bye\n")
        await loose.bash(f"ORPHAN=$(cat <<'END'\n{ORPHAN}\nEND\n); python3 -c \"$ORPHAN\"")
        assert loose.alive() == OWN_PROCESSES


async def test_it_says_that_there_is_no_bubblewrap(sandbox: Sandbox) -> None:
    async with sandbox.http() as http:
        assert (await http.get("/health")).json() == {"status": "ok", "bubblewrap": False}


async def test_a_client_that_goes_away_takes_its_command_along(sandbox: Sandbox) -> None:
    call = asyncio.create_task(sandbox.bash("trap '' TERM; touch started; sleep 600", timeout_s=60))
    async with asyncio.timeout(10):
        while (await sandbox.bash("[ -e started ]"))["exit_code"]:
            pass
    call.cancel()
    async with asyncio.timeout(3):
        while await asyncio.to_thread(sandbox.alive) > OWN_PROCESSES:
            await asyncio.sleep(0.02)


async def test_killing_everything_ends_the_container(own: Sandbox) -> None:
    """A sandbox that cannot clean up any more must be gone, not half alive."""
    with pytest.raises(httpx2.TransportError):
        await own.bash("kill -9 -1")
    assert own.container.wait(timeout=10)["StatusCode"] != 0


def test_the_image_holds_no_build_leftovers() -> None:
    engine = docker.from_env()
    try:
        image = engine.images.get(IMAGE)
        assert image.attrs["Config"]["User"] == f"{UID}:{UID}"
        told = engine.containers.run(
            IMAGE,
            ["-c", "ls /opt/venv/bin /build /var/lib/apt/lists /var/cache/apt /root/.cache 2>/dev/null; true"],
            entrypoint="/bin/bash",
            network="none",
            remove=True,
        ).decode()
    finally:
        engine.close()
    assert "pip" not in told
    assert "archives" not in told
