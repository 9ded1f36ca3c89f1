"""loopd's half of the way out together with the proxy's, over real sockets; only the containers are in memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from loopbox_egress.limits import Limits
from loopbox_egress.link import Proxy
from loopd.config import EgressSettings, Settings
from loopd.egress import Egress
from loopd.egress_link import EgressDownError
from loopd.egress_rules import parse_rules
from loopd.engine import InMemoryEngine
from loopd.ledger import Ledger
from loopd.state import Database
from loopd.units import EGRESS, Layout

IMAGE = "loopbox/egress:1"


@dataclass
class Bench:
    layout: Layout
    engine: InMemoryEngine
    database: Database
    settings: Settings
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    egress: Egress | None = None
    proxy: asyncio.Task[None] | None = None

    def loopd(self) -> Egress:
        """Start a loopd's half, in the place of the one before."""
        made = Egress(
            settings=self.settings,
            layout=self.layout,
            engine=self.engine,
            ledger=Ledger(self.database),
            image=IMAGE,
        )
        self.tasks.append(asyncio.create_task(made.run_forever()))
        self.egress = made
        return made

    async def end(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def start_proxy(self) -> Proxy:
        """Do what the container would."""
        proxy = Proxy(path=self.layout.egress_control / "control.sock", limits=Limits())
        self.proxy = asyncio.create_task(proxy.run_forever())
        self.tasks.append(self.proxy)
        return proxy

    async def started(self) -> None:
        async with asyncio.timeout(5):
            while EGRESS not in self.engine.instances:
                await asyncio.sleep(0.01)

    def socket(self, name: str) -> Path:
        return self.layout.sandboxes / f"{name}.sock"


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[Bench]:
    home = Path(tempfile.mkdtemp(prefix="lbe"))
    layout = Layout(home, home)
    for folder in (layout.egress, layout.egress_control, layout.sandboxes):
        folder.mkdir()
    settings = Settings(home=home, run_dir=home)
    made = Bench(layout, InMemoryEngine(images={IMAGE: "sha256:e"}), database, settings)
    yield made
    for task in made.tasks:
        await made.end(task)
    for listener in made.egress.listeners.values() if made.egress else ():
        listener.socket.close()
    shutil.rmtree(home)


async def say(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(request)
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


REFUSED = b"GET http://other.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n"
RULES = parse_rules(["granted.example"])


async def test_the_proxy_runs_only_when_somebody_was_granted_something(bench: Bench) -> None:
    egress = bench.loopd()
    await asyncio.sleep(0.05)
    assert bench.engine.instances == {}
    opening = asyncio.create_task(egress.open("l1", session="s", rules=RULES, path=bench.socket("a")))
    await bench.started()
    assert not opening.done()
    bench.start_proxy()
    await opening
    assert (await say(bench.socket("a"), REFUSED)).startswith(b"HTTP/1.1 403 ")


async def test_a_closed_listener_is_gone(bench: Bench) -> None:
    egress, proxy = bench.loopd(), bench.start_proxy()
    await egress.open("l1", session="s", rules=RULES, path=bench.socket("a"))
    await egress.close("l1")
    assert proxy.listeners == {}
    assert not bench.socket("a").exists()


async def test_the_ledger_has_each_host_once_and_the_sums_at_the_end(bench: Bench) -> None:
    egress = bench.loopd()
    bench.start_proxy()
    await egress.open("l1", session="mine", rules=RULES, path=bench.socket("a"))
    for _ in range(3):
        await say(bench.socket("a"), REFUSED)
    async with asyncio.timeout(5):
        while egress.listeners["l1"].sums["connections"] < 3:
            await asyncio.sleep(0.01)
    await egress.close("l1")
    told = [e for e in await Ledger(bench.database).read() if e.event.startswith("egress.")]
    assert [(e.event, e.subject, e.cause) for e in told] == [
        ("egress.connection", "mine", "other.example:80: not_granted"),
        ("egress.closed", "mine", "3 connections, 3 refused"),
    ]


async def test_a_new_proxy_is_told_all_and_the_sockets_stay(bench: Bench) -> None:
    egress = bench.loopd()
    bench.start_proxy()
    await egress.open("l1", session="s", rules=RULES, path=bench.socket("a"))
    inode = bench.socket("a").stat().st_ino
    assert bench.proxy is not None
    await bench.end(bench.proxy)
    waiting = asyncio.create_task(say(bench.socket("a"), REFUSED))  # while there is none: it waits, nothing is lost
    second = bench.start_proxy()
    assert (await waiting).startswith(b"HTTP/1.1 403 ")
    assert bench.socket("a").stat().st_ino == inode
    assert list(second.listeners) == ["l1"]


async def test_a_new_loopd_restores_what_it_knows_and_the_rest_is_closed(bench: Bench) -> None:
    egress, proxy = bench.loopd(), bench.start_proxy()
    for name in ("l1", "l2"):
        await egress.open(name, session="s", rules=RULES, path=bench.socket(name))
    await bench.end(bench.tasks[0])
    assert (await say(bench.socket("l1"), REFUSED)).startswith(b"HTTP/1.1 403 ")  # while there is no loopd
    for listener in egress.listeners.values():
        listener.socket.close()
    heir = bench.loopd()
    await heir.restore("l1", session="s", rules=RULES, path=bench.socket("l1"))
    async with asyncio.timeout(5):
        while list(proxy.listeners) != ["l1"]:
            await asyncio.sleep(0.01)
    assert (await say(bench.socket("l1"), REFUSED)).startswith(b"HTTP/1.1 403 ")


async def test_without_a_proxy_nothing_is_granted_and_nothing_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopd.egress.UP_S", 0.1)
    egress = bench.loopd()
    with pytest.raises(EgressDownError, match="no host was granted"):
        await egress.open("l1", session="s", rules=RULES, path=bench.socket("a"))
    assert (egress.listeners, bench.socket("a").exists()) == ({}, False)


async def test_a_proxy_that_nobody_needs_is_removed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopd.egress.IDLE_S", 0.1)
    monkeypatch.setattr("loopd.egress.TICK_S", 0.05)
    egress = bench.loopd()
    bench.start_proxy()
    await egress.open("l1", session="s", rules=RULES, path=bench.socket("a"))
    await egress.close("l1")
    async with asyncio.timeout(5):
        while EGRESS in bench.engine.instances:
            await asyncio.sleep(0.01)


async def test_the_agent_has_its_own_way_out_where_it_was_granted_hosts(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(update={"egress": EgressSettings(agent=("granted.example",))})
    bench.loopd()
    await bench.started()
    bench.start_proxy()
    path = bench.layout.egress / "egress.sock"
    assert (await say(path, REFUSED)).startswith(b"HTTP/1.1 403 ")
    assert path.stat().st_mode & 0o777 == 0o600


async def test_only_the_proxys_user_gets_the_door(bench: Bench) -> None:
    bench.loopd()
    door = bench.layout.egress_control / "control.sock"
    async with asyncio.timeout(5):
        while not door.exists():
            await asyncio.sleep(0.01)
    expected = 10005 if os.geteuid() == 0 else os.geteuid()
    assert (door.stat().st_uid, door.stat().st_mode & 0o777) == (expected, 0o600)
