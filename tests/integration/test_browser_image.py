"""The browser's image, run as loopd runs a sandbox of that kind: pages, what they may not do, and its ends."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import docker
import httpx2
import pytest
from docker.models.containers import Container

from built import built
from loopd.seccomp import sandbox_profile

pytestmark = pytest.mark.docker
IMAGE: Final = built().browser
UID: Final = 10003
READY_S: Final = 20.0
OWN_PROCESSES: Final = 3  # the init, the server, the zygote
HEADERS: Final = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}

FORM: Final = """<!doctype html><title>Order</title><h1>An order</h1>
<form onsubmit="document.querySelector('#said').innerText =
  `${who.value} wants ${what.value}, ${gift.checked ? 'as a gift' : 'plain'}`; return false">
<label>Name <input id=who name=who></label>
<label>Thing <select id=what><option>tea</option><option>cake</option></select></label>
<label>Gift <input type=checkbox id=gift></label>
<input type=password id=pass value=secret-word>
<button>Send it</button></form>
<p id=said></p><a href="other.html">another page</a><p hidden>invisible</p>
"""
KILL: Final = """
import os, signal
for pid in filter(str.isdecimal, os.listdir("/proc")):
    try:
        if int(pid) != os.getpid() and b"chromium" in open(f"/proc/{pid}/cmdline", "rb").read():
            os.kill(int(pid), signal.SIGKILL)
    except OSError: pass
"""


class Sandbox:
    """One running container and the way to its tools."""

    def __init__(self, container: Container, socket: Path) -> None:
        self.container = container
        self.socket = socket

    def client(self) -> httpx2.AsyncClient:
        transport = httpx2.AsyncHTTPTransport(uds=str(self.socket))
        return httpx2.AsyncClient(transport=transport, base_url="http://toolrunner", timeout=90)

    async def call(self, name: str, **arguments: object) -> dict[str, Any]:  # Any: JSON
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
        async with self.client() as client:
            answer = await client.post("/mcp", json=body, headers=HEADERS)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()["result"]
        return result

    async def done(self, name: str, **arguments: object) -> dict[str, Any]:  # Any: JSON
        """A call that must go well."""
        result = await self.call(name, **arguments)
        assert not result["isError"], result["content"][0]["text"]
        structured: dict[str, Any] = result["structuredContent"]
        return structured

    async def refused(self, name: str, **arguments: object) -> str:
        """A call that must not."""
        result = await self.call(name, **arguments)
        assert result["isError"], result
        text: str = result["content"][0]["text"]
        return text

    async def open(self, name: str, html: str) -> dict[str, Any]:  # Any: JSON
        await self.done("write_file", path=name, content=html)
        return await self.done("browser_navigate", url=name)

    def alive(self) -> int:
        return len(self.container.top()["Processes"])


@contextmanager
def started() -> Iterator[Sandbox]:
    assert IMAGE is not None
    directory = Path(tempfile.mkdtemp(prefix="lb-"))  # short: a socket's path has 107 bytes at most
    directory.chmod(0o755)
    os.chown(directory, UID, UID)
    engine = docker.from_env()
    container = engine.containers.run(
        IMAGE,
        network="none",
        read_only=True,
        tmpfs={
            "/tmp": "size=64m,nosuid,nodev",
            "/dev/shm": "size=16m,nosuid,nodev,noexec",
            "/workspace": f"size=256m,nosuid,nodev,exec,uid={UID},gid={UID},mode=0700",
        },
        volumes=[f"{directory}:/run/toolrunner:rw"],
        user=f"{UID}:{UID}",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges", f"seccomp={sandbox_profile()}"],
        pids_limit=256,
        mem_limit="1g",
        memswap_limit="1g",
        nano_cpus=10**9,
        init=True,
        detach=True,
    )
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


def answers(socket: Path) -> bool:
    try:
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(socket)), base_url="http://toolrunner") as client:
            return bool(client.get("/health").json()["status"] == "ok")
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    with started() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(shared: Sandbox) -> Iterator[Sandbox]:
    yield shared
    asyncio.run(shared.done("bash", command="rm -rf /workspace/*"))


async def test_a_form_is_read_filled_in_and_sent(sandbox: Sandbox) -> None:
    assert (await sandbox.open("form.html", FORM))["title"] == "Order"
    read = await sandbox.done("browser_read")
    assert "An order" in read["text"]
    assert "invisible" not in read["text"]
    assert not read["truncated"]
    refs = {(one["kind"], one["text"].split(" (")[0]): one for one in read["elements"]}
    assert refs[("link", "another page")]["url"] == "file:///workspace/other.html"
    assert [one["value"] for one in read["elements"] if one["kind"] == "password"] == ["***"]
    await sandbox.done("browser_fill", element=str(refs[("text", "Name")]["ref"]), text="Ada")
    await sandbox.done("browser_fill", element="#what", text="cake")
    await sandbox.done("browser_fill", element="#gift", text="true")
    await sandbox.done("browser_click", element="text=Send it")
    assert "Ada wants cake, as a gift" in (await sandbox.done("browser_read"))["text"]
    await sandbox.done("browser_fill", element="#who", text="Bo", submit=True)
    result = await sandbox.call("browser_read")
    assert "Bo wants cake" in result["structuredContent"]["text"]
    assert f"[{refs[('button', 'Send it')]['ref']}] button: Send it" in result["content"][0]["text"]


async def test_a_click_leads_to_the_next_page_and_a_missing_element_is_told_of(sandbox: Sandbox) -> None:
    await sandbox.done("write_file", path="other.html", content="<title>Other</title>there")
    await sandbox.open("form.html", FORM)
    went = await sandbox.done("browser_click", element="text=another page")
    assert (went["url"], went["title"]) == ("file:///workspace/other.html", "Other")
    assert "Timeout" in await sandbox.refused("browser_click", element="#none", timeout_s=1)
    assert (await sandbox.done("browser_read"))["text"].strip() == "there"


async def test_a_picture_is_a_file_and_shown_when_it_is_small(sandbox: Sandbox) -> None:
    await sandbox.open("p.html", "<body style='margin:0;background:#0f0'><div style='height:3000px'></div>")
    result = await sandbox.call("browser_screenshot", path="shots/one.png")
    told = result["structuredContent"]
    assert (told["path"], told["width"], told["height"]) == ("shots/one.png", 1280, 800)
    image = next(one for one in result["content"] if one["type"] == "image")
    raw = base64.b64decode(image["data"])
    assert (image["mimeType"], raw[:8], len(raw)) == ("image/png", b"\x89PNG\r\n\x1a\n", told["size"])
    assert (await sandbox.done("bash", command="sha256sum < shots/one.png"))["stdout"]
    full = await sandbox.done("browser_screenshot", full_page=True)
    assert full["height"] == 3000
    await sandbox.open("long.html", "<div style='height:90000px'></div>")
    cut = await sandbox.done("browser_screenshot", full_page=True)
    assert cut["height"] == 8000
    assert "90" in cut["notes"][0]
    size = await sandbox.done("bash", command="od -An -tu1 -j16 -N8 screenshot.png | tr -s ' \\n' ' '")
    assert struct.unpack(">II", bytes(map(int, size["stdout"].split()))) == (1280, 8000)


async def test_a_page_that_loops_for_ever_ends_the_browser_and_the_next_call_works(sandbox: Sandbox) -> None:
    await sandbox.done("write_file", path="loop.html", content="<button onclick='while(1);'>go</button>")
    await sandbox.done("browser_navigate", url="loop.html")
    said = await sandbox.refused("browser_click", element="button", timeout_s=2)
    assert "did not answer" in said
    assert sandbox.alive() == OWN_PROCESSES
    assert "no page is open" in await sandbox.refused("browser_read")
    assert (await sandbox.open("form.html", FORM))["title"] == "Order"


async def test_a_page_that_never_loads_is_told_of(sandbox: Sandbox) -> None:
    await sandbox.done("write_file", path="loop.html", content="<script>while(1);</script>")
    await sandbox.refused("browser_navigate", url="loop.html", timeout_s=2)
    assert (await sandbox.open("form.html", FORM))["title"] == "Order"


async def test_dialogs_windows_and_downloads_are_told_of(sandbox: Sandbox) -> None:
    await sandbox.done("bash", command="head -c 5000 /dev/urandom > data.bin; echo form > form.html")
    opened = await sandbox.open(
        "d.html",
        "<title>D</title><script>alert('one'); if (!confirm('two?')) document.title = 'no'</script>"
        "<a id=w href=form.html target=_blank>w</a>"
        "<a id=d href='data:application/zip;base64,AAAA' download='../x.zip'>d</a>"
        "<button onclick='while (1) alert(1)'>again</button>",
    )
    assert opened["title"] == "no"
    assert opened["notes"] == ["the page said: one (dismissed)", "the page asked: two? (dismissed)"]
    window = await sandbox.done("browser_click", element="#w")
    assert window["title"] == "no"
    loaded = await sandbox.done("browser_click", element="#d")
    notes = [*window["notes"], *loaded["notes"]]  # on a busy machine a window comes later than its click's answer
    assert notes[0].startswith("a new window was opened and closed: file:///workspace/form.html")
    assert notes[1:] == ["downloaded downloads/_x.zip, 3 bytes"]
    assert (await sandbox.done("bash", command="stat -c %s downloads/*"))["stdout"] == "3\n"
    binary = await sandbox.done("browser_navigate", url="data.bin")
    assert binary["notes"] == ["downloaded downloads/data.bin, 5000 bytes"]
    await sandbox.call("browser_click", element="text=again", timeout_s=2)
    assert (await sandbox.open("form.html", FORM))["title"] == "Order"


async def test_a_huge_page_is_read_in_parts(sandbox: Sandbox) -> None:
    words = "".join(f"<p>line {n} <a href='#{n}'>to {n}</a></p>" for n in range(10_000))
    await sandbox.done("write_file", path="huge.html", content=words)
    await sandbox.done("browser_navigate", url="huge.html")
    read = await sandbox.done("browser_read")
    assert (len(read["text"]), len(read["elements"]), read["truncated"]) == (12_000, 150, True)
    end = await sandbox.done("browser_read", offset=read["total_chars"] - 9)
    assert end["text"].endswith("to 9999")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/passwd", "only files inside /workspace"),
        ("/proc/self/environ", "only files inside /workspace"),
        ("out.html", "only files inside /workspace"),
        ("chrome://crash", "are not opened"),
        ("view-source:file:///workspace/form.html", "are not opened"),
        ("javascript:alert(1)", "are not opened"),
        ("https://example.org/", "network is not granted"),
        ("example.org", "network is not granted"),
        ("http://169.254.169.254/latest", "network is not granted"),
    ],
)
async def test_what_is_not_the_workspaces_is_refused_in_words(sandbox: Sandbox, url: str, words: str) -> None:
    await sandbox.done("bash", command="ln -s /etc/passwd out.html")
    assert words in await sandbox.refused("browser_navigate", url=url)


async def test_a_page_cannot_load_what_a_call_cannot(sandbox: Sandbox) -> None:
    opened = await sandbox.open(
        "evil.html",
        "<title>E</title><iframe src='file:///etc/passwd'></iframe><img src='http://example.org/x.png'>"
        "<a id=l href='file:///etc/hostname'>l</a>",
    )
    notes = "\n".join(opened["notes"])
    assert "file:///etc/passwd was not loaded: only files inside" in notes
    assert "http://example.org/x.png was not loaded: network is not granted" in notes
    went = await sandbox.done("browser_click", element="#l")
    read = await sandbox.done("browser_read")
    assert "file:///etc/hostname was not loaded" in "\n".join([*went["notes"], *read["notes"]])
    name = (await sandbox.done("bash", command="cat /etc/hostname"))["stdout"].strip()
    assert name not in read["text"]


async def test_a_browser_that_is_killed_is_started_anew(sandbox: Sandbox) -> None:
    await sandbox.open("form.html", FORM)
    await sandbox.done("python", code=KILL)
    answer = await sandbox.call("browser_read")
    assert answer["isError"]
    assert "browser_navigate" in answer["content"][0]["text"]
    assert (await sandbox.open("form.html", FORM))["title"] == "Order"


async def test_a_page_that_eats_memory_ends_and_the_sandbox_lives(sandbox: Sandbox) -> None:
    eat = "<button onclick='const x = []; while (1) x.push(new Uint8Array(1 << 22).fill(1))'>eat</button>"
    await sandbox.open("eat.html", eat)
    await sandbox.call("browser_click", element="button", timeout_s=10)
    assert (await sandbox.done("bash", command="echo lives"))["stdout"] == "lives\n"
    assert (await sandbox.open("form.html", FORM))["title"] == "Order"


async def test_a_client_that_goes_away_ends_a_call_and_its_browser(sandbox: Sandbox) -> None:
    await sandbox.open("loop.html", "<button onclick='document.title = 1; while(1);'>go</button>")
    asked = asyncio.create_task(sandbox.call("browser_click", element="button", timeout_s=60))
    await asyncio.sleep(1)  # no event tells from outside that the page loops
    asked.cancel()
    began = time.monotonic()
    while await asyncio.to_thread(sandbox.alive) > OWN_PROCESSES:
        assert time.monotonic() - began < 2, "the browser outlived its call by more than 2 s"
        await asyncio.sleep(0.02)


async def test_a_granted_proxy_is_what_the_browser_goes_through(sandbox: Sandbox) -> None:
    """And a page of this sandbox's own is not asked of it."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<title>Far</title>")
        writer.close()

    path = sandbox.socket.with_name("egress.sock")
    proxy = await asyncio.start_unix_server(answer, path)
    path.chmod(0o666)
    try:
        assert (await sandbox.done("browser_navigate", url="http://example.org/x"))["title"] == "Far"
        assert b"GET http://example.org/x HTTP/1.1" in asked
        failed = await sandbox.refused("browser_navigate", url="http://localhost:8123/y")
        assert "ERR_CONNECTION_REFUSED" in failed
        assert not any(b"localhost" in line for line in asked)
        assert "only files inside" in await sandbox.refused("browser_navigate", url="file:///etc/passwd")
    finally:
        proxy.close()
        await proxy.wait_closed()
        path.unlink()
    assert "network is not granted" in await sandbox.refused("browser_navigate", url="http://example.org/x")


async def test_the_tool_runners_own_tools_are_there_too(sandbox: Sandbox) -> None:
    assert (await sandbox.done("javascript", code="console.log(6*7)"))["stdout"] == "42\n"
    async with sandbox.client() as client:
        assert set((await client.get("/health")).json()) == {"status", "bubblewrap", "browser"}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        tools = (await client.post("/mcp", json=body, headers=HEADERS)).json()["result"]["tools"]
    assert len(tools) == 15
    assert {t["_meta"]["loopbox"]["level"] for t in tools if t["name"].startswith("browser_")} == {
        "network",
        "read",
        "write",
        "execute",
    }


def test_the_image_runs_as_nobody_and_holds_no_setuid_program() -> None:
    assert IMAGE is not None
    engine = docker.from_env()
    try:
        image = engine.images.get(IMAGE)
        assert image.attrs["Config"]["User"] == f"{UID}:{UID}"
        command = (
            "find / -xdev -perm /6000 -type f 2>/dev/null; ls /opt/venv/bin /var/lib/apt/lists | grep -e pip -e deb"
        )
        told = engine.containers.run(
            IMAGE, ["-c", f"{command}; true"], entrypoint="/bin/bash", network="none", remove=True
        ).decode()
    finally:
        engine.close()
    assert told == ""
