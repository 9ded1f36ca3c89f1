"""The lease broker on the in-memory engine, with real sockets and a real state.db."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loopd.boxes import Boxes
from loopd.config import EgressSettings, SandboxSettings, Settings
from loopd.egress import Egress
from loopd.egress_link import EgressDownError
from loopd.egress_rules import HostNotAllowedError
from loopd.engine import InMemoryEngine
from loopd.errors import NotFoundError
from loopd.lease import Lease, Leases
from loopd.ledger import Ledger
from loopd.metrics import build_metrics
from loopd.sandbox import Broker, NoSuchKindError, PoolEmptyError, TooManyLeasesError
from loopd.state import Database
from loopd.toolbox import Toolbox
from loopd.units import Layout, SandboxKind, sandbox_unit

IMAGE = "loopbox/toolrunner:1"


@dataclass
class FakeToolbox(Toolbox):
    """Answers as soon as asked; binds the socket that a tool runner would."""

    healthy: bool = True
    bound: list[socket.socket] = field(default_factory=list)

    async def answers(self, socket: Path) -> bool:
        if self.healthy and not socket.exists():
            self._bind(socket)
        return self.healthy

    def _bind(self, path: Path) -> None:
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(path))
        made.listen()
        self.bound.append(made)


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sb"))
    yield path
    shutil.rmtree(path)


@dataclass
class Bench:
    layout: Layout
    engine: InMemoryEngine
    toolbox: FakeToolbox
    database: Database
    settings: Settings
    images: dict[SandboxKind, str] = field(default_factory=lambda: {"tools": IMAGE})

    def broker(self) -> Broker:
        return Broker(
            settings=self.settings,
            layout=self.layout,
            boxes=Boxes(
                settings=self.settings,
                layout=self.layout,
                engine=self.engine,
                toolbox=self.toolbox,
                images=self.images,
            ),
            leases=Leases(self.database),
            ledger=Ledger(self.database),
            metrics=build_metrics(),
            egress=Egress(
                settings=self.settings, layout=self.layout, engine=self.engine, ledger=Ledger(self.database), image=None
            ),
        )


@pytest.fixture
def bench(home: Path, database: Database) -> Iterator[Bench]:
    layout = Layout(home, home)
    layout.sandboxes.mkdir()
    layout.leases.mkdir()
    settings = Settings(home=home, run_dir=home, sandbox=SandboxSettings(warm=2, most=3, lease_s=100))
    toolbox = FakeToolbox()
    yield Bench(layout, InMemoryEngine(images={IMAGE: "sha256:t"}), toolbox, database, settings)
    for made in toolbox.bound:
        made.close()


async def test_a_lease_is_a_link_to_a_warm_sandbox_and_is_used_once(bench: Bench) -> None:
    broker = bench.broker()
    await broker.fill()
    assert len(broker.warm) == 2
    lease = await broker.acquire("session", 50)
    linked = bench.layout.leases / lease.socket
    assert linked.stat().st_ino == (bench.layout.sandboxes / lease.sandbox / "mcp.sock").stat().st_ino
    await broker.release(lease.id)
    assert not linked.exists()
    assert f"sandbox-{lease.sandbox}" not in bench.engine.instances
    await broker.fill()
    assert lease.sandbox not in broker.warm


async def test_what_is_lent_cannot_write_into_its_sockets_directory(bench: Bench) -> None:
    broker = bench.broker()
    await broker.fill()
    directory = bench.layout.sandboxes / broker.warm[0]
    status = directory.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (os.geteuid(), 0o711)


async def test_when_all_are_lent_one_waits_and_then_is_told(bench: Bench) -> None:
    broker = bench.broker()
    for _ in range(3):
        await broker.fill()
        await broker.acquire("session", 50)
    await broker.fill()
    assert broker.warm == []
    with pytest.raises(PoolEmptyError, match=r"sandbox\.most"):
        await broker.acquire("session", 50, wait_s=0.05)


async def test_one_who_waits_gets_the_next_that_is_ready(bench: Bench) -> None:
    broker = bench.broker()
    waiting = asyncio.create_task(broker.acquire("session", 50, wait_s=5))
    await asyncio.sleep(0)
    await broker.fill()
    lease = await waiting
    assert lease.expires_at > datetime.now(UTC)


async def test_an_expired_lease_ends_by_itself(bench: Bench) -> None:
    broker = bench.broker()
    await broker.fill()
    lease = await broker.acquire("session", 0.01)
    await asyncio.sleep(0.02)
    await broker.expire()
    assert broker.lent == 0
    with pytest.raises(NotFoundError):
        await broker.release(lease.id)


async def test_no_lease_is_longer_than_the_setting(bench: Bench) -> None:
    broker = bench.broker()
    await broker.fill()
    lease = await broker.acquire("session", 10_000)
    assert lease.expires_at <= datetime.now(UTC) + timedelta(seconds=100)


async def test_the_next_loopd_keeps_what_is_lent_and_what_is_warm(bench: Bench) -> None:
    first = bench.broker()
    await first.fill()
    lease = await first.acquire("session", 50)
    await first.settle()
    heir = bench.broker()
    await heir.adopt()
    assert (heir.lent, len(heir.warm)) == (1, 1)
    assert lease.sandbox not in heir.warm
    await heir.release(lease.id)


async def test_the_next_loopd_drops_what_died_and_what_is_out_of_date(bench: Bench) -> None:
    first = bench.broker()
    await first.fill()
    lease = await first.acquire("session", 50)
    await first.settle()
    bench.engine.die(f"sandbox-{lease.sandbox}")
    bench.settings = bench.settings.model_copy(update={"sandbox": SandboxSettings(warm=2, most=3, pids=64)})
    heir = bench.broker()
    await heir.adopt()
    assert (heir.lent, heir.warm) == (0, [])
    assert bench.engine.instances == {}
    assert list(bench.layout.sandboxes.iterdir()) == []
    assert list(bench.layout.leases.iterdir()) == []


async def test_a_warm_sandbox_that_died_is_replaced(bench: Bench) -> None:
    broker = bench.broker()
    await broker.fill()
    dead = broker.warm[0]
    bench.engine.die(f"sandbox-{dead}")
    await broker.fill()
    assert len(broker.warm) == 2
    assert dead not in broker.warm


async def test_a_sandbox_that_never_answers_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopd.boxes.READY_S", 0.05)
    bench.toolbox.healthy = False
    with pytest.raises(Exception, match="did not answer"):
        await bench.broker().fill()
    assert bench.engine.instances == {}
    assert list(bench.layout.sandboxes.iterdir()) == []


async def test_the_broker_keeps_its_pool_full_by_itself(bench: Bench) -> None:
    broker = bench.broker()
    running = asyncio.create_task(broker.run_forever())
    try:
        for _ in range(4):
            lease = await broker.acquire("session", 50, wait_s=5)
            await broker.release(lease.id)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_was_lent_is_never_lent_again_even_where_the_lease_was_not_written(bench: Bench) -> None:
    """The row is written while the session already works; a loopd killed in between leaves a used sandbox."""
    first = bench.broker()
    await first.fill()
    lease = await first.acquire("session", 50)
    await first.settle()
    await Leases(bench.database).drop(lease.id)
    heir = bench.broker()
    await heir.adopt()
    assert (heir.lent, len(heir.warm)) == (0, 1)
    assert f"sandbox-{lease.sandbox}" not in bench.engine.instances
    assert list(bench.layout.leases.iterdir()) == []


async def test_a_lease_is_renewed_but_never_beyond_its_whole_life(bench: Bench) -> None:
    box = bench.settings.sandbox.model_copy(update={"life_s": 150.0})
    bench.settings = bench.settings.model_copy(update={"sandbox": box})
    broker = bench.broker()
    await broker.fill()
    lease = await broker.acquire("session", 10)
    longer = await broker.renew(lease.id, 10_000)
    assert timedelta(seconds=90) < longer.expires_at - lease.started_at <= timedelta(seconds=101)
    broker._held[lease.id] = Lease(**{**asdict(longer), "started_at": lease.started_at - timedelta(seconds=100)})
    last = await broker.renew(lease.id, 10_000)
    assert last.expires_at == lease.started_at + timedelta(seconds=50)
    await broker.settle()
    assert [row.expires_at for row in await Leases(bench.database).all()] == [last.expires_at]
    with pytest.raises(NotFoundError):
        await broker.renew("0" * 32, 10)


async def test_one_session_holds_so_many_and_others_are_not_held_up(bench: Bench) -> None:
    box = bench.settings.sandbox.model_copy(update={"per_session": 1})
    bench.settings = bench.settings.model_copy(update={"sandbox": box})
    broker = bench.broker()
    await broker.fill()
    lease = await broker.acquire("greedy", 50)
    with pytest.raises(TooManyLeasesError, match="give one back"):
        await broker.acquire("greedy", 50)
    await broker.acquire("other", 50)
    await broker.release(lease.id)
    await broker.fill()
    await broker.acquire("greedy", 50)


async def test_a_kind_is_offered_where_there_is_an_image_of_it(bench: Bench) -> None:
    with pytest.raises(NoSuchKindError, match="browser"):
        await bench.broker().acquire("session", 50, kind="browser")
    bench.images["browser"] = "loopbox/browser:1"
    bench.engine.images["loopbox/browser:1"] = "sha256:b"
    broker = bench.broker()
    running = asyncio.create_task(broker.run_forever())
    try:
        lease = await broker.acquire("session", 50, kind="browser", wait_s=5)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert bench.engine.instances[f"sandbox-{lease.sandbox}"].image_id == "sha256:b"
    unit = sandbox_unit(bench.settings, "i", "s", kind="browser")
    assert (unit.limits.memory_bytes, unit.limits.pids) == (1 << 30, 256)


async def test_a_warm_one_of_another_kind_makes_room_for_who_waits(bench: Bench) -> None:
    box = bench.settings.sandbox.model_copy(update={"most": 2})
    bench.settings = bench.settings.model_copy(update={"sandbox": box})
    bench.images["browser"] = "loopbox/browser:1"
    bench.engine.images["loopbox/browser:1"] = "sha256:b"
    broker = bench.broker()
    await broker.fill()
    assert len(broker.warm) == 2
    waiting = asyncio.create_task(broker.acquire("session", 50, kind="browser", wait_s=5))
    await asyncio.sleep(0)
    await broker.fill()
    await waiting
    await broker.settle()
    assert (broker.lent, len(broker.warm), len(bench.engine.instances)) == (1, 1, 2)


async def test_hosts_are_granted_within_the_operators_list_alone(bench: Bench) -> None:
    broker = bench.broker()
    await broker.fill()
    with pytest.raises(HostNotAllowedError, match=r"egress\.allow"):
        await broker.acquire("session", 50, hosts=["example.org"])
    assert (broker.lent, len(broker.warm)) == (0, 2)


async def test_where_no_proxy_can_be_had_nothing_stays_lent(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(update={"egress": EgressSettings(allow=("*",))})
    broker = bench.broker()
    await broker.fill()
    with pytest.raises(EgressDownError, match="no egress image"):
        await broker.acquire("session", 50, hosts=["example.org"])
    assert (broker.lent, list(bench.layout.leases.iterdir())) == (0, [])


@pytest.mark.parametrize(
    ("asked", "known", "runtime"),
    [
        ("auto", {"runc"}, ""),
        ("auto", {"runc", "runsc"}, "runsc"),
        ("runsc", {"runsc"}, "runsc"),
        ("runc", {"runc"}, "runc"),
    ],
)
async def test_gvisor_is_used_where_the_engine_has_it(bench: Bench, asked: str, known: set[str], runtime: str) -> None:
    box = bench.settings.sandbox.model_copy(update={"runtime": asked})
    bench.settings = bench.settings.model_copy(update={"sandbox": box})
    bench.engine.known_runtimes = frozenset(known)
    broker = bench.broker()
    await broker.adopt()
    await broker.fill()
    assert broker.boxes.runtime == runtime
    unit = sandbox_unit(bench.settings, IMAGE, broker.warm[0], runtime=runtime)
    assert bench.engine.instances[unit.name].fingerprint == unit.fingerprint


async def test_who_asks_first_is_served_first(bench: Bench) -> None:
    broker = bench.broker()
    order: list[str] = []

    async def ask(session: str) -> None:
        await broker.acquire(session, 50, wait_s=5)
        order.append(session)

    asking = [asyncio.create_task(ask(f"s{number}")) for number in range(3)]
    await asyncio.sleep(0)
    await broker.fill()
    await asyncio.gather(*asking)
    assert order == ["s0", "s1", "s2"]
    await broker.settle()
