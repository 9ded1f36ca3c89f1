"""Loans of sandboxes held over several runs, calls in them, cancels that reach them, workspaces in and out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from images.agent.tests.conftest import answering, serving
from pydantic import JsonValue

from loopbox_agent.sandbox import (
    MAX_ANSWER,
    Broker,
    BrokerSettings,
    Outcome,
    SandboxUnavailableError,
    ToolBrokeError,
    outcome_of,
)
from loopbox_agent.tool_caller import Caller
from loopbox_agent.tool_schedule import Schedule
from loopbox_agent.workspace_file import WorkspaceError
from loopbox_toolrunner.launcher import Launcher
from loopbox_toolrunner.server import build_app, listen, open_box
from loopbox_toolrunner.settings import Settings

EXPIRES = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass
class Loopd:
    """Lends what stands at one socket; knows what is out, and what was asked for."""

    asked: list[dict[str, object]] = field(default_factory=list)
    out: set[str] = field(default_factory=set)
    renewed: list[float] = field(default_factory=list)
    keeps: bool = True  #: renews

    async def lend(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        lease = f"{len(self.asked):032x}"
        self.out.add(lease)
        body = {"lease": lease, "socket": "box/tools.sock", "expires_at": EXPIRES.isoformat()}
        return web.json_response(body, status=201)

    async def renew(self, request: web.Request) -> web.Response:
        if not self.keeps or request.match_info["lease"] not in self.out:
            return web.json_response({"error": {}}, status=404)
        self.renewed.append((await request.json())["ttl_s"])
        expires = EXPIRES + timedelta(seconds=self.renewed[-1])
        return web.json_response({"lease": "x", "socket": "x", "expires_at": expires.isoformat()})

    async def take_back(self, request: web.Request) -> web.Response:
        self.out.discard(request.match_info["lease"])
        return web.Response(status=204)


@pytest.fixture
async def loopd(run_dir: Path) -> AsyncIterator[Loopd]:
    made = Loopd()
    (run_dir / "leases" / "box").mkdir(parents=True)
    routes = (
        web.post("/v1/leases", made.lend),
        web.post("/v1/leases/{lease}/renew", made.renew),
        web.delete("/v1/leases/{lease}", made.take_back),
    )
    async with answering(*routes, path=run_dir / "broker.sock"):
        yield made


@pytest.fixture
async def borrowing(loopd: Loopd, run_dir: Path) -> AsyncIterator[Broker]:
    settings = BrokerSettings(
        broker_socket=run_dir / "broker.sock", leases_dir=run_dir / "leases", tool_timeout_s=5, run_timeout_s=60
    )
    made = Broker(settings)
    yield made
    await made.close()
    assert loopd.out == set()


@dataclass
class ToolRunner:
    """The real tool runner, in this process."""

    workspace: Path


@pytest.fixture
async def real(run_dir: Path, tmp_path: Path, loopd: Loopd) -> AsyncIterator[ToolRunner]:
    workspace = Path(os.path.realpath(tmp_path)) / "workspace"
    workspace.mkdir()
    settings = Settings(socket=run_dir / "leases" / "box" / "tools.sock", workspace=workspace)
    launcher = Launcher()
    async with open_box(settings, launcher, asyncio.Event()) as box:
        listening = listen(settings.socket)
        with listening:
            async with serving(build_app(box), listening):
                yield ToolRunner(workspace)
    launcher.close()


@dataclass
class Odd:
    """A tool runner that answers as a test says."""

    body: bytes = b""
    hold: bool = False
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    tar: bytes = b""
    cut: bool = False
    status: int = 200

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if (await request.json())["method"] == "tools/list":
            return web.json_response({"jsonrpc": "2.0", "id": 1, "result": {"tools": []}})
        if self.hold:
            self.holding.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        return web.Response(body=self.body, content_type="application/json")

    async def get(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=self.status, headers={"Content-Type": "application/x-tar"})
        await response.prepare(request)
        await response.write(self.tar)
        if self.cut and request.transport:
            request.transport.abort()
        return response

    async def put(self, request: web.Request) -> web.Response:
        self.tar = await request.read()
        return web.Response(status=self.status)


@pytest.fixture
async def odd(run_dir: Path, loopd: Loopd) -> AsyncIterator[Odd]:
    made = Odd()
    routes = (web.post("/mcp", made.answer), web.get("/workspace", made.get), web.put("/workspace", made.put))
    async with answering(*routes, path=run_dir / "leases" / "box" / "tools.sock"):
        yield made


# Loans


async def test_a_sandbox_is_held_over_several_runs(borrowing: Broker, loopd: Loopd, real: ToolRunner) -> None:
    sandbox = await borrowing.acquire("thread_1", 900, "browser", ["example.org"])
    assert loopd.asked == [{"session": "thread_1", "ttl_s": 900, "kind": "browser", "hosts": ["example.org"]}]
    assert sandbox.expires_at == EXPIRES
    for text in ("one", "two"):
        assert (await sandbox.call("write_file", {"path": text, "content": text})).is_error is False
    assert (await sandbox.call("list_files", {})).text == "one  3\ntwo  3"
    assert await borrowing.renew(sandbox, 600) == EXPIRES + timedelta(seconds=600)
    assert loopd.renewed == [600]
    await borrowing.release(sandbox)
    assert loopd.out == set()


async def test_a_plain_loan_is_asked_for_as_ever(borrowing: Broker, loopd: Loopd, real: ToolRunner) -> None:
    """An older daemon refuses fields that it does not know."""
    async with borrowing.borrow("run_1") as sandbox:
        assert "bash" in sandbox.tools
    assert loopd.asked == [{"session": "run_1", "ttl_s": 90.0}]


async def test_a_loan_that_cannot_be_kept_longer_is_told(borrowing: Broker, loopd: Loopd, real: ToolRunner) -> None:
    loopd.keeps = False
    async with borrowing.borrow("run_1") as sandbox:
        with pytest.raises(SandboxUnavailableError, match="exported until then"):
            await borrowing.renew(sandbox, 60)


async def test_a_sandbox_that_does_not_answer_is_given_back(borrowing: Broker, loopd: Loopd) -> None:
    with pytest.raises(SandboxUnavailableError, match="nothing was run"):
        await borrowing.acquire("run_1")
    assert loopd.out == set()


# Calls


async def test_calls_of_one_session_run_at_once(borrowing: Broker, real: ToolRunner) -> None:
    async with borrowing.borrow("run_1") as sandbox:
        # Each waits for the file of the other.
        both = "touch {mine}; for i in $(seq 200); do [ -e {other} ] && exit 0; sleep 0.02; done; exit 1"
        outcomes = await asyncio.gather(
            sandbox.call("bash", {"command": both.format(mine="a", other="b")}),
            sandbox.call("bash", {"command": both.format(mine="b", other="a")}),
        )
        assert [outcome.is_error for outcome in outcomes] == [False, False]


async def until(path: Path) -> str:
    async with asyncio.timeout(5):
        while not (path.exists() and path.read_text().endswith("\n")):
            await asyncio.sleep(0.005)
    return path.read_text().strip()


def lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("stubborn", ["", "trap '' TERM; "])
async def test_a_cancel_of_one_call_ends_its_processes_and_no_others(
    borrowing: Broker, real: ToolRunner, stubborn: str
) -> None:
    async with borrowing.borrow("run_1") as sandbox:
        command = "echo $$ > {name}; while true; do sleep 0.1; done"
        hung = asyncio.create_task(sandbox.call("bash", {"command": stubborn + command.format(name="hung")}))
        other = asyncio.create_task(sandbox.call("bash", {"command": command.format(name="other")}))
        pid, kept = await until(real.workspace / "hung"), await until(real.workspace / "other")
        begun = time.monotonic()
        hung.cancel()
        await asyncio.wait({hung})
        left = time.monotonic() - begun
        async with asyncio.timeout(5):
            while lives(pid):
                await asyncio.sleep(0.005)
        took = time.monotonic() - begun
        print(f"\nleft after {left * 1000:.0f} ms, no process after {took * 1000:.0f} ms")  # noqa: T201 the figure
        assert left < 0.2
        assert took < 1.0
        assert lives(kept)
        assert not sandbox.broken
        assert (await sandbox.call("bash", {"command": "echo on"})).text == "on"
        other.cancel()
        await asyncio.wait({other})


async def test_a_cancel_closes_the_calls_connection(borrowing: Broker, odd: Odd) -> None:
    odd.hold = True
    async with borrowing.borrow("run_1") as sandbox:
        call = asyncio.create_task(sandbox.call("bash", {}))
        await asyncio.wait_for(odd.holding.wait(), 5)
        call.cancel()
        await asyncio.wait_for(odd.left.wait(), 1)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"rubbish", "broke off"),
        (b"[" * 100_000, "broke off"),
        (b"{}", "refused"),
        (b'{"error": {"message": "no such tool"}}', "no such tool"),
        (b'{"result": 3}', "refused"),
        (b"x" * (MAX_ANSWER + 1), "more than"),
    ],
)
async def test_an_answer_of_another_form_breaks_the_call(borrowing: Broker, odd: Odd, body: bytes, told: str) -> None:
    odd.body = body
    async with borrowing.borrow("run_1") as sandbox:
        with pytest.raises(ToolBrokeError, match=told):
            await sandbox.call("bash", {})
        assert sandbox.broken


async def test_a_call_that_takes_too_long_is_broken_off(loopd: Loopd, odd: Odd, run_dir: Path) -> None:
    odd.hold = True
    broker = Broker(
        BrokerSettings(broker_socket=run_dir / "broker.sock", leases_dir=run_dir / "leases", tool_timeout_s=0.2)
    )
    async with broker.borrow("run_1") as sandbox:
        with pytest.raises(ToolBrokeError):
            await sandbox.call("bash", {})
        await asyncio.wait_for(odd.left.wait(), 1)
    await broker.close()


def test_a_result_is_read_whatever_it_holds() -> None:
    content = [
        {"type": "text", "text": "a\ud800"},
        {"type": "image", "data": "QUJD"},
        {"type": "resource_link", "uri": "x://y"},
        {"type": "resource", "resource": {"text": "inside"}},
        7,
    ]
    outcome = outcome_of({"content": content, "isError": True})  # type: ignore[dict-item]  # JSON
    assert outcome.text.split("\n") == [
        "a?",
        "[image, 3 bytes, not shown]",
        "[link: x://y]",
        "inside",
        "[content of another kind, not shown]",
    ]
    assert outcome.is_error
    assert outcome_of({}).text == ""


async def test_parallel_calls_through_the_schedule_on_the_real_tool_runner(borrowing: Broker, real: ToolRunner) -> None:
    """No edit is lost: one that meets a file its agent has not seen is refused, read anew and made again."""
    async with borrowing.borrow("run_1") as sandbox:
        schedule = Schedule()
        agents = [Caller(schedule=schedule, sandbox=sandbox, session="run_1") for _ in range(4)]
        tools = sandbox.tools
        await agents[0].call(tools["write_file"], {"path": "log", "content": "END"})

        async def edit(agent: Caller, number: int) -> Outcome:
            while True:
                change: dict[str, JsonValue] = {"path": "./log", "old": "END", "new": f"{number} END"}
                outcome = await agent.call(tools["edit_file"], change)
                if not outcome.result.get("conflict"):
                    return outcome
                await agent.call(tools["read_file"], {"path": "log"})

        edits = [edit(agents[n % 4], n) for n in range(40)]
        reads = [agents[0].call(tools["read_file"], {"path": "log"}) for _ in range(10)]
        runs = [agents[1].call(tools["bash"], {"command": "cat log >> copy"})]
        outcomes = await asyncio.gather(*edits, *reads, *runs)
        assert not [outcome.text for outcome in outcomes if outcome.is_error]
        *numbers, end = (real.workspace / "log").read_text().split()
        assert (sorted(map(int, numbers)), end) == (list(range(40)), "END")
        *copied, end = (real.workspace / "copy").read_text().split()
        assert (copied, end) == (numbers[: len(copied)], "END")  # as it was at one moment between two edits


# The workspace


async def test_a_workspace_goes_out_and_comes_in(borrowing: Broker, odd: Odd, tmp_path: Path) -> None:
    odd.tar = os.urandom(700_000)
    async with borrowing.borrow("t") as sandbox:
        assert await sandbox.workspace.export(tmp_path / "w.tar") == 700_000
        assert (tmp_path / "w.tar").read_bytes() == odd.tar
        (tmp_path / "w.tar").write_bytes(b"other" * 100_000)
        assert await sandbox.workspace.import_(tmp_path / "w.tar") == 500_000
        assert odd.tar == b"other" * 100_000
    assert list(tmp_path.iterdir()) == [tmp_path / "w.tar"]


@pytest.mark.parametrize("fault", ["cut", "refused", "long"])
async def test_a_workspace_that_does_not_come_whole_leaves_the_old_file(
    borrowing: Broker, odd: Odd, tmp_path: Path, fault: str
) -> None:
    odd.tar, odd.cut, odd.status = b"x" * 300_000, fault == "cut", 404 if fault == "refused" else 200
    (tmp_path / "w.tar").write_bytes(b"old")
    async with borrowing.borrow("t") as sandbox:
        with pytest.raises(WorkspaceError):
            await sandbox.workspace.export(tmp_path / "w.tar", most=1000 if fault == "long" else 1 << 20)
    assert (tmp_path / "w.tar").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "w.tar"]


async def test_an_import_that_is_refused_is_told(borrowing: Broker, odd: Odd, tmp_path: Path) -> None:
    odd.status = 413
    (tmp_path / "w.tar").write_bytes(b"x")
    async with borrowing.borrow("t") as sandbox:
        with pytest.raises(WorkspaceError, match="413"):
            await sandbox.workspace.import_(tmp_path / "w.tar")
        with pytest.raises(WorkspaceError, match="not_there"):
            await sandbox.workspace.import_(tmp_path / "not_there")
