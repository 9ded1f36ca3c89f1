"""The browser's life, with a worker that is none: started at first use, ended when it hangs, started anew."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loopbox_browser import browser as module
from loopbox_browser.browser import Browser
from loopbox_browser.tools import open_tools
from loopbox_toolrunner.egress import Egress
from loopbox_toolrunner.files import Files
from loopbox_toolrunner.jail import Jail
from loopbox_toolrunner.launcher import Launcher
from loopbox_toolrunner.runner import Runner
from loopbox_toolrunner.settings import Settings
from loopbox_toolrunner.tool import Seat, ToolError
from loopbox_toolrunner.tools import Toolbox

# Answers as told; leaves a child that ignores SIGTERM, as a browser's processes may.
WORKER = """
import json, os, signal, socket, sys, time
s = socket.socket(fileno=os.dup(0)).makefile("rwb")
open(f"pid{os.getpid()}", "w").close()
if os.fork() == 0:
    os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)
def say(what):
    s.write(json.dumps(what).encode() + b"\\n"); s.flush()
say({"ready": True})
for line in s:
    told = json.loads(line)
    if told["do"] == "hang": time.sleep(600)
    if told["do"] == "crash": os._exit(9)
    if told["do"] == "nonsense": s.write(b"what\\n"); s.flush(); continue
    if told["do"] == "stick": say({"error": "Timeout", "stuck": True}); continue
    if told["do"] == "refuse": say({"error": "no such element"}); continue
    say({"url": "about:blank", "title": os.environ.get("HTTP_PROXY", "none"), "notes": [], "pid": os.getpid()})
"""


@pytest.fixture
async def seat(tmp_path: Path) -> AsyncIterator[Seat]:
    workspace = tmp_path.resolve() / "workspace"
    workspace.mkdir()
    given = {"workspace": workspace, "socket": tmp_path / "mcp.sock", "grace_s": 0.2}
    settings = Settings.model_validate(given)
    egress = Egress(tmp_path / "egress.sock", port=0)
    runner = Runner(settings, Launcher(), lambda _why: None, egress)
    jail = Jail(workspace)
    files = Files(jail, max_read_bytes=1 << 20, max_write_bytes=1 << 20, output_bytes=1 << 16)
    yield Seat(settings, runner, egress, jail, files)
    await runner.close()
    await egress.close()


@pytest.fixture
async def browser(seat: Seat) -> AsyncIterator[Browser]:
    made = Browser(seat, [sys.executable, "-I", "-c", WORKER])
    yield made
    await made.close()
    assert not made.running
    assert left(seat) == []


def left(seat: Seat) -> list[str]:
    """Processes of workers that are alive."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            mine = entry.name.isdecimal() and (entry / "cwd").readlink() == seat.jail.root
            if mine and (entry / "stat").read_bytes().rsplit(b")", 1)[1].split()[0] != b"Z":
                found.append(entry.name)
        except OSError:
            continue
    return found


async def test_it_starts_at_its_first_use_and_stays(browser: Browser, seat: Seat) -> None:
    assert not browser.running
    with pytest.raises(ToolError, match="browser_navigate"):
        await browser.ask("read", {}, 10)
    assert left(seat) == []
    one = await browser.ask("navigate", {}, 10, opens=True)
    two = await browser.ask("read", {}, 10)
    assert one["pid"] == two["pid"]
    with pytest.raises(ToolError, match="no such element"):
        await browser.ask("refuse", {}, 10)
    assert left(seat) != []
    assert await browser.close()
    assert left(seat) == []
    assert not await browser.close()


@pytest.mark.parametrize(
    ("what", "words"),
    [("hang", "did not answer"), ("stick", "did not answer"), ("crash", "ended"), ("nonsense", "ended")],
)
async def test_one_that_hangs_or_crashes_is_gone_and_the_next_works(
    browser: Browser, seat: Seat, what: str, words: str
) -> None:
    first = await browser.ask("navigate", {}, 10, opens=True)
    with pytest.raises(ToolError, match=words):
        await browser.ask(what, {}, 0.3 if what == "hang" else 10)
    assert left(seat) == []
    with pytest.raises(ToolError, match="no page is open"):
        await browser.ask("read", {}, 10)
    assert (await browser.ask("navigate", {}, 10, opens=True))["pid"] != first["pid"]


async def test_a_cancelled_call_ends_the_browser(browser: Browser, seat: Seat) -> None:
    await browser.ask("navigate", {}, 10, opens=True)
    asked = asyncio.create_task(browser.ask("hang", {}, 60))
    await asyncio.sleep(0.05)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert (await browser.ask("navigate", {}, 10, opens=True))["title"] == "none"


async def test_calls_take_turns(browser: Browser) -> None:
    await browser.ask("navigate", {}, 10, opens=True)
    answers = await asyncio.gather(*(browser.ask("read", {}, 10) for _ in range(20)))
    assert len({answer["pid"] for answer in answers}) == 1


async def test_a_grant_that_comes_or_goes_starts_another(browser: Browser, tmp_path: Path) -> None:
    """A browser is told of its proxy when it starts."""
    assert (await browser.ask("navigate", {}, 10, opens=True))["title"] == "none"
    proxy = await asyncio.start_unix_server(lambda _r, w: w.close(), tmp_path / "egress.sock")
    with pytest.raises(ToolError, match="no page is open"):
        await browser.ask("read", {}, 10)
    assert (await browser.ask("navigate", {}, 10, opens=True))["title"].startswith("http://127.0.0.1:")
    proxy.close()
    await proxy.wait_closed()
    (tmp_path / "egress.sock").unlink()
    assert (await browser.ask("navigate", {}, 10, opens=True))["title"] == "none"


@pytest.mark.parametrize(
    "code", ["import sys; sys.exit('no chromium here')", "print('what'); import time; time.sleep(60)"]
)
async def test_one_that_does_not_start_is_told_of(seat: Seat, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_S", 1.0)
    browser = Browser(seat, [sys.executable, "-I", "-c", code])
    with pytest.raises(ToolError, match="could not be started"):
        await browser.ask("navigate", {}, 10, opens=True)
    assert left(seat) == []


async def test_its_tools_stand_beside_the_tool_runners(seat: Seat) -> None:
    async with open_tools(seat) as extra:
        box = Toolbox(seat, extra.rows)
        tools = {tool.name: tool for tool in box.tools()}
        assert [name for name in tools if name.startswith("browser_")] == [
            "browser_navigate",
            "browser_read",
            "browser_click",
            "browser_fill",
            "browser_screenshot",
            "browser_close",
        ]
        for tool in tools.values():
            for told in tool.input_schema["properties"].values():
                assert told["type"] == "boolean" or "maxLength" in told or "maximum" in told
                assert told.get("maxLength", 0) <= 2000
        refused = await box.call("browser_navigate", {"url": "https://example.org"})
        assert refused.is_error
        assert "network is not granted" in refused.content[0].text  # type: ignore[union-attr]  # it is text
        assert "outside" in (await box.call("browser_screenshot", {"path": "../x"})).content[0].text  # type: ignore[union-attr]  # as above
        assert not (await box.call("browser_close", {})).is_error
        assert extra.health() == {"browser": False}
