"""loopctl's commands for the agent's API against the agent itself, with a scripted engine: the two fit together."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import socket
import tarfile
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from aiohttp import web
from images.agent.tests.conftest import Agent, Launch, Script, StubEngine, answering, piece, says, serving
from real_haproxy import agent, open_haproxy
from run_loopctl import loopctl, start

from loopbox_agent.app import build_app
from loopbox_agent.settings import Settings
from loopd.cli import run_follow
from loopd.cli.exits import ExitCode
from loopd.gateway import ServerState

HELD = Script((piece("half an "),), hold=True)


@dataclass
class Real:
    """The agent that loopctl speaks with, without a gateway in between, and its engine."""

    engine: StubEngine
    agent: Agent


@pytest.fixture
async def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Real]:
    run_dir = Path(tempfile.mkdtemp(prefix="lb-"))  # short: a socket's path has 107 bytes
    engine = StubEngine()
    routes = (web.post("/api/chat", engine.chat), web.get("/api/tags", engine.tags))
    for name in [name for name in os.environ if name.startswith("LOOPBOX_")]:
        monkeypatch.delenv(name)
    # What the agent logs would go to standard output, which is loopctl's here.
    with structlog.testing.capture_logs():
        async with answering(*routes) as url, Launch(url, run_dir) as launch:
            agent = await launch(resume_grace_s=30)
            monkeypatch.setenv("LOOPBOX_HOME", str(tmp_path))
            monkeypatch.setenv("LOOPBOX_PUBLIC_PORT", str(agent.http.base_url.port))
            monkeypatch.setenv("LOOPBOX_AUTH__MODE", "off")
            monkeypatch.setenv("COLUMNS", "240")
            yield Real(engine, agent)
    shutil.rmtree(run_dir)


async def test_a_conversation(real: Real) -> None:
    """Its second question has the first one before it; what was said is read, renamed, deleted."""
    real.engine.scripts = [says("Par", "is"), says("Rome")]
    first = await loopctl("ask", "Capital of France?", "--thread", "new")
    assert first.stdout == "Paris\n"
    thread = first.stderr.split()[1]
    assert (await loopctl("ask", "And of Italy?", "--thread", thread)).stdout == "Rome\n"
    assert [message["content"] for message in real.engine.orders[-1]["messages"]][-3:] == [
        "Capital of France?",
        "Paris",
        "And of Italy?",
    ]
    await loopctl("threads", "rename", thread, "Capitals")
    assert "Capitals" in (await loopctl("threads", "list")).stdout
    shown = (await loopctl("threads", "show", thread)).stdout
    assert "user: And of Italy?" in shown
    assert "agent: Rome" in shown
    assert "nothing of it was dropped" in (await loopctl("threads", "show", thread, "--query", "Paris")).stdout
    await loopctl("threads", "delete", thread, "--yes")
    assert "no thread" in (await loopctl("threads", "list")).stdout
    result = await loopctl("ask", "q", "--thread", thread, code=ExitCode.FAILED)
    assert "[not_found]" in result.stderr


async def test_the_files_of_a_thread(real: Real, tmp_path: Path) -> None:
    thread = (await loopctl("threads", "new")).stdout.strip()
    none = await loopctl("threads", "export", thread, str(tmp_path / "out.tar"), code=ExitCode.NOT_FOUND)
    assert "has no files yet" in none.stderr
    file, body = tmp_path / "in.tar", b"x" * (3 << 20)
    with tarfile.open(file, "w") as archive:
        member = tarfile.TarInfo("notes.txt")
        member.size = len(body)
        archive.addfile(member, io.BytesIO(body))
    await loopctl("threads", "import", thread, str(file))
    await loopctl("threads", "export", thread, str(tmp_path / "out.tar"))
    assert (tmp_path / "out.tar").read_bytes() == file.read_bytes()
    file.write_bytes(b"no archive" * 100)
    assert "[validation]" in (await loopctl("threads", "import", thread, str(file), code=1)).stderr


async def test_a_run_in_the_background_is_seen_steered_and_cancelled(real: Real) -> None:
    real.engine.scripts = [HELD]
    run_id = (await loopctl("ask", "q", "--background")).stdout.strip()
    async with asyncio.timeout(10):
        await real.engine.holding.wait()
    assert run_id in (await loopctl("runs", "list", "--live")).stdout
    watching = await start("runs", "watch", run_id)
    assert watching.stdout
    async with asyncio.timeout(10):
        assert await watching.stdout.read(5) == b"half "
        await loopctl("runs", "steer", run_id, "hurry")
        assert "nothing of it runs on" in (await loopctl("runs", "cancel", run_id)).stdout
        _, err = await watching.communicate()
    assert b"[told meanwhile: hurry]" in err
    assert b"[run_cancelled]" in err
    assert watching.returncode == ExitCode.FAILED
    assert "no run is under way" in (await loopctl("runs", "list", "--live")).stdout
    shown = (await loopctl("runs", "show", run_id)).stdout
    assert "cancelled" in shown
    assert "half an" in shown


async def test_a_finished_run_is_watched_again_and_its_events_are_json(real: Real) -> None:
    run_id = (await loopctl("ask", "q", "--background")).stdout.strip()
    assert (await loopctl("runs", "watch", run_id)).stdout == "Hello there\n"
    lines = [json.loads(line) for line in (await loopctl("runs", "watch", run_id, "--json")).stdout.splitlines()]
    assert [line["event"] for line in lines] == ["run.started", "text.delta", "text.delta", "run.completed"]
    assert "Hello there" in (await loopctl("runs", "show", run_id)).stdout
    missing = await loopctl("runs", "show", "run_0000000000000000", code=ExitCode.NOT_FOUND)
    assert "[not_found]" in missing.stderr


async def test_memory_and_knowledge(real: Real, tmp_path: Path) -> None:
    number = json.loads((await loopctl("memory", "add", "Ann likes green tea.", "--tag", "taste", "--json")).stdout)[
        "id"
    ]
    assert "green tea" in (await loopctl("memory", "search", "tea")).stdout
    assert "taste" in (await loopctl("memory", "list")).stdout
    await loopctl("memory", "forget", str(number))
    assert "nothing is remembered" in (await loopctl("memory", "list")).stdout
    await loopctl("memory", "forget", str(number), code=ExitCode.NOT_FOUND)
    file = tmp_path / "house rules.md"
    file.write_text("Visitors sign in at the desk.\n")
    await loopctl("knowledge", "add", str(file), "--shared")
    assert "house rules.md" in (await loopctl("knowledge", "list", "--shared")).stdout
    assert "no document" in (await loopctl("knowledge", "list")).stdout
    assert "sign in at the desk" in (await loopctl("knowledge", "search", "visitors")).stdout
    await loopctl("knowledge", "delete", "house rules.md", "--shared", "--yes")
    assert "no passage fits" in (await loopctl("knowledge", "search", "visitors")).stdout


async def test_reviews_and_a_persons_data(real: Real, tmp_path: Path) -> None:
    for state, words in (("waiting", "nothing waits"), ("released", "nothing was released"), ("rejected", "rejected")):
        assert words in (await loopctl("quarantine", "list", "--state", state)).stdout
    await loopctl("quarantine", "show", "held_0000000000000000", code=ExitCode.NOT_FOUND)
    await loopctl("quarantine", "release", "held_0000000000000000", code=ExitCode.NOT_FOUND)
    await loopctl("memory", "add", "Ann likes green tea.")
    file = tmp_path / "local.jsonl"
    await loopctl("people", "export", "local", str(file))
    assert "green tea" in file.read_text()
    assert json.loads((await loopctl("people", "erase", "local", "--yes", "--json")).stdout)["rows"]["memories"] == 1
    assert (await loopctl("people", "export", "local")).stdout == ""


async def test_ctrl_c_ends_the_run_in_the_engine(real: Real) -> None:
    real.engine.scripts = [HELD]
    asking = await start("ask", "q")
    assert asking.stdout
    async with asyncio.timeout(10):
        assert await asking.stdout.read(5) == b"half "
        asking.send_signal(signal.SIGINT)
        _, err = await asking.communicate()
        await real.engine.left.wait()
    assert asking.returncode == ExitCode.INTERRUPTED
    assert b"nothing of it runs on" in err
    assert "cancelled" in (await loopctl("runs", "list")).stdout


@asynccontextmanager
async def agent_on(settings: Settings, port: int) -> AsyncIterator[int]:
    """Serve on a port that may have been in use a moment ago; 0: a free one."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        async with serving(build_app(settings), listening):
            yield listening.getsockname()[1]


async def test_an_agent_that_comes_back_tells_how_its_run_ended(
    real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped while it answers: the stream is cut, and the next agent has the run in its log."""
    monkeypatch.setattr(run_follow, "WAITS_S", (0.1,) * 200)
    real.engine.scripts = [HELD]
    settings = real.agent.settings.model_copy(update={"state_dir": tmp_path / "state"})
    async with asyncio.timeout(30):
        async with agent_on(settings, 0) as port:
            monkeypatch.setenv("LOOPBOX_PUBLIC_PORT", str(port))
            asking = asyncio.create_task(loopctl("ask", "q", code=ExitCode.FAILED))
            await real.engine.holding.wait()
        async with agent_on(settings, port):
            result = await asking
    assert result.stdout.split() == ["half", "an"]
    assert "going on after event 2" in result.stderr
    assert "[shutting_down]" in result.stderr


async def test_the_gateway_in_between(real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real HAProxy as loopd configures it: streams come through, and so do a conversation's files."""
    async with open_haproxy() as gateway:
        await gateway.start(agent(f"127.0.0.1:{real.agent.http.base_url.port}"))
        await gateway.until("agent/agent", ServerState.UP)
        monkeypatch.setenv("LOOPBOX_PUBLIC_PORT", str(gateway.config.public_port))
        asked = await loopctl("ask", "q", "--thread", "new")
        assert asked.stdout == "Hello there\n"
        thread = asked.stderr.split()[1]
        file = tmp_path / "files.tar"
        for size in (80_000, 8 << 20):  # files of a conversation may be larger than other bodies
            with tarfile.open(file, "w") as archive:
                member = tarfile.TarInfo("notes.txt")
                member.size = size
                archive.addfile(member, io.BytesIO(b"x" * size))
            await loopctl("threads", "import", thread, str(file), code=0)
        await loopctl("threads", "export", thread, str(tmp_path / "back.tar"), code=0)
        assert (tmp_path / "back.tar").read_bytes() == file.read_bytes()
