"""Fixtures of the store's tests: the same tests run on SQLite and on a PostgreSQL of the distribution's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]  # it ships no types
import pytest
from pydantic import AnyHttpUrl
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart

from loopbox_agent.call_journal import CallJournal
from loopbox_agent.database import Database, open_database
from loopbox_agent.interactions import Interactions, Seen
from loopbox_agent.knowledge import Knowledge
from loopbox_agent.memory import Memories
from loopbox_agent.quarantine import Finding, Quarantine
from loopbox_agent.records import new_id
from loopbox_agent.run_log import RunEvent, RunLog
from loopbox_agent.server_store import McpServer
from loopbox_agent.server_store_sql import SqlServerStore
from loopbox_agent.threads import Threads

_START_S = 30.0
_ROOM_BYTES = 512 << 20
_INITDB = ("-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions")


@dataclass
class Clock:
    """A clock that a test sets."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        self.now += 0.001  # no two events at one time, so that orders are plain
        return self.now


@dataclass(frozen=True)
class Postgres:
    """A running server on a unix socket; its superuser is "agent", without a password."""

    folder: Path

    async def emptied(self) -> str:
        """Return the URL of its one database, empty again: much cheaper than a database for each test."""
        connection = await asyncpg.connect(host=str(self.folder), user="agent", database="postgres")
        try:
            await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        finally:
            await connection.close()
        return f"postgresql+asyncpg://agent@/postgres?host={self.folder}"


def _quick_place() -> Path:
    """Where waiting for the disk costs nothing: the tests end processes, not the machine."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOM_BYTES
    return memory if roomy else Path("/tmp")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Pytest's own, in the quick place."""
    path = Path(tempfile.mkdtemp(prefix="lbstore-", dir=_quick_place()))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.fail("there is no PostgreSQL in /usr/lib/postgresql: run tools/test-packages")
    return found[-1].parent


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Start the server once for all tests; as root it runs as nobody, since it refuses root."""
    folder = Path(tempfile.mkdtemp(prefix="lbpg-", dir=_quick_place()))  # short: a unix socket's path has 107 bytes
    user, group, extra = (None, None, None) if os.getuid() else ("nobody", "nogroup", list[str]())
    if user:
        shutil.chown(folder, user, group)
    programs = _programs()
    made = subprocess.run(
        [programs / "initdb", "-D", folder / "data", "-U", "agent", *_INITDB],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        user=user,
        group=group,
        extra_groups=extra,
    )
    assert made.returncode == 0, made.stderr
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "max_connections=100"]
    options += ["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "shared_buffers=32MB"]  # its host is not killed
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", *options],
            cwd="/",
            stdout=log,
            stderr=log,
            user=user,
            group=group,
            extra_groups=extra,
        )
    try:
        _wait_ready(programs, folder, process)
        yield Postgres(folder)
    finally:
        process.send_signal(signal.SIGINT)  # "fast": ends its clients
        process.wait(_START_S)
        shutil.rmtree(folder)


def _wait_ready(programs: Path, folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        if subprocess.run([programs / "pg_isready", "-q", "-h", folder], check=False).returncode == 0:
            return
        time.sleep(0.02)
    pytest.fail(f"PostgreSQL did not start: {(folder / 'log').read_text()}")


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/agent.db"
    server: Postgres = request.getfixturevalue("postgres")
    return await server.emptied()


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with open_database(url) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def threads(database: Database, clock: Clock) -> Threads:
    return Threads(database, clock=clock)


@pytest.fixture
def run_log(database: Database, clock: Clock) -> RunLog:
    return RunLog(database, clock=clock)


@pytest.fixture
def fill() -> Callable[[Database, str, str], Awaitable[None]]:
    """Write one row or more into every table, for a user, with a word in every text."""
    return _fill


async def _fill(database: Database, user: str, word: str) -> None:
    threads, log, journal = Threads(database), RunLog(database), CallJournal(database)
    memories, knowledge, quarantine = Memories(database), Knowledge(database), Quarantine(database)
    thread = await threads.create(user, f"about {word}")
    run = new_id("run")
    await log.start(run, user, {"instruction": word}, thread_id=thread.id)
    said: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart(f"{word} {number}")]) for number in range(3)]
    await threads.append(thread.id, run, said, tokens=9)
    await threads.compact(thread.id, run, 2, [ModelRequest(parts=[UserPromptPart(f"short {word}")])])
    await log.append(run, [RunEvent(1, "text.delta", {"text": word})])
    await journal.begin(run, "call-1", "read", {"path": word}, "read")
    await journal.finish(run, "call-1", {"text": word})
    await memories.working.set(run, "plan", word)
    await memories.session.set(thread.id, "goal", word)
    await memories.remember(user, f"remember the {word}", tags=[word], source=run)
    await knowledge.add(user, f"{word}.md", f"All about {word}. " * 200)
    await quarantine.add(Finding(run_id=run, user=user, kind="input", score=80, findings=[word], text=word))
    learn = Interactions(database)
    await learn.decide(user, agree=True)
    seen = Seen(run_id=run, user=user, thread_id=thread.id, outcome="completed", messages=[word], tools=[word])
    await database.write(learn.keeping(seen))
    await learn.rate(user, run, "good", word, word)
    await SqlServerStore(database).put(user, McpServer(name=word, url=AnyHttpUrl(f"http://{word}.example/mcp")))
