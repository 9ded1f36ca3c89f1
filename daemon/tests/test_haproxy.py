"""What only a real HAProxy can show: flips, reloads and crashes under load, and what is let through."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from real_haproxy import RealHaproxy, agent, open_haproxy, route
from stub_engine import Stub, serving

from loopd.gateway import GatewayDownError, ServerState
from loopd.haproxy import CommandRefusedError, GatewayConfigError, HaproxyGateway

STREAMS = 16
CLIENTS = 8


@pytest.fixture
async def haproxy() -> AsyncIterator[RealHaproxy]:
    async with open_haproxy() as opened:
        yield opened


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


@pytest.fixture
async def stubs() -> AsyncIterator[tuple[Stub, Stub]]:
    a, b = Stub("a"), Stub("b")
    async with serving(a, b):
        yield a, b


@dataclass
class Load:
    """Clients that ask as fast as they can, and streams that last until they are told to end."""

    url: str
    session: aiohttp.ClientSession
    statuses: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self) -> None:
        while not self.stop.is_set():
            async with self.session.post(f"{self.url}/api/generate", json={}) as response:
                await response.read()
                self.statuses.append(response.status)

    async def stream(self) -> None:
        while not self.stop.is_set():
            async with self.session.post(f"{self.url}/api/chat", json={}) as response:
                self.texts.append(await response.text())


@contextlib.asynccontextmanager
async def under_load(haproxy: RealHaproxy, a: Stub, b: Stub) -> AsyncIterator[Load]:
    """Run the body under load; at its end every request must have been answered and every stream have ended well."""
    connector = aiohttp.TCPConnector(limit=0)
    async with asyncio.timeout(90), aiohttp.ClientSession(connector=connector) as session:
        load = Load(haproxy.url, session)
        tasks = [asyncio.create_task(load.ask()) for _ in range(CLIENTS)]
        tasks += [asyncio.create_task(load.stream()) for _ in range(STREAMS)]
        await a.streaming.wait()
        yield load
        load.stop.set()
        a.hold.set()
        b.hold.set()
        await asyncio.gather(*tasks)
        assert len(load.statuses) > 50
        assert set(load.statuses) == {200}
        assert len(load.texts) >= STREAMS
        assert set(load.texts) == {"begin end"}


async def test_fifty_flips_under_load_lose_no_request_and_cut_no_stream(
    haproxy: RealHaproxy, stubs: tuple[Stub, Stub], record_property: Callable[[str, object], None]
) -> None:
    a, b = stubs
    await haproxy.start(route("a", 100, a.address), route("b", 0, b.address))
    flips = []
    async with under_load(haproxy, a, b):
        for flip in range(50):
            share = 100 if flip % 2 else 0
            to = a if share else b
            applied = await haproxy.gateway.apply((route("a", share, a.address), route("b", 100 - share, b.address)))
            assert applied.changed
            flips.append(applied.flip_s)
            before = to.answered
            while to.answered == before:  # the flip is seen by clients
                await asyncio.sleep(0.001)
            for stub in stubs:  # let this round's streams end
                stub.hold.set()
                await asyncio.sleep(0)
                stub.hold.clear()
    record_property("flip_ms_max", round(max(flips) * 1e3, 2))


async def test_servers_come_and_go_under_load_with_no_request_lost(
    haproxy: RealHaproxy, stubs: tuple[Stub, Stub]
) -> None:
    a, b = stubs
    await haproxy.start(route("a", 100, a.address))
    async with under_load(haproxy, a, b):
        for turn in range(10):
            new, old = (b, a) if turn % 2 == 0 else (a, b)
            both = (route(new.name, 0, new.address), route(old.name, 100, old.address))
            await haproxy.gateway.apply(both)
            await haproxy.until(f"engine/{new.name}", ServerState.DRAIN)
            await haproxy.gateway.apply((route(new.name, 100, new.address), route(old.name, 0, old.address)))
            old.hold.set()
            assert await haproxy.gateway.wait_idle("engine", old.name, deadline_s=10)
            old.hold.clear()
            await haproxy.gateway.apply((route(new.name, 100, new.address),))
            assert list(await haproxy.seen()) == [f"engine/{new.name}"]


async def test_reloads_under_load_lose_no_request_and_keep_servers_and_streams(
    haproxy: RealHaproxy, stubs: tuple[Stub, Stub]
) -> None:
    a, b = stubs
    await haproxy.start(route("a", 100, a.address))
    routes = (route("a", 75, a.address), route("b", 25, b.address))
    await haproxy.gateway.apply(routes)
    before = {name: (s.address, s.weight) for name, s in (await haproxy.seen()).items()}
    async with under_load(haproxy, a, b) as load:
        for _ in range(5):
            await haproxy.gateway.reload()
            assert {name: (s.address, s.weight) for name, s in (await haproxy.seen()).items()} == before
            done = len(load.statuses)
            while len(load.statuses) < done + CLIENTS:
                await asyncio.sleep(0.001)


async def test_a_stream_left_to_an_old_process_still_counts(
    haproxy: RealHaproxy, stubs: tuple[Stub, Stub], session: aiohttp.ClientSession
) -> None:
    """Without it, an engine would be stopped after a reload in the middle of an answer."""
    a, b = stubs
    await haproxy.start(route("a", 100, a.address))
    async with asyncio.timeout(30), session.post(f"{haproxy.url}/api/chat") as response:
        await a.streaming.wait()
        await haproxy.gateway.apply((route("b", 100, b.address),))
        await haproxy.gateway.reload()
        assert (await haproxy.seen())["engine/a"].sessions == 1
        assert not await haproxy.gateway.wait_idle("engine", "a", deadline_s=0.1)
        a.hold.set()
        assert await response.text() == "begin end"
        assert await haproxy.gateway.wait_idle("engine", "a", deadline_s=5)
        assert list(await haproxy.seen()) == ["engine/b"]


async def test_a_connection_kept_over_a_reload_sees_the_routes_of_now(
    haproxy: RealHaproxy, stubs: tuple[Stub, Stub], session: aiohttp.ClientSession
) -> None:
    """The old process knows only the old servers, and one of them may be gone by then."""
    a, b = stubs
    await haproxy.start(route("a", 100, a.address))
    served = []
    for turn in range(3):
        async with session.post(f"{haproxy.url}/api/generate", json={}) as response:
            assert response.status == 200
            served.append(((await response.json())["server"], response.headers.get("Connection")))
        if turn == 0:
            await haproxy.gateway.reload()
            await haproxy.gateway.apply((route("b", 100, b.address),))
    assert served == [("a", None), ("b", "close"), ("b", None)]


async def test_a_killed_haproxy_comes_up_with_the_same_routes(
    haproxy: RealHaproxy, stubs: tuple[Stub, Stub], session: aiohttp.ClientSession
) -> None:
    a, b = stubs
    await haproxy.start()
    await haproxy.gateway.apply((route("a", 0, a.address), route("b", 100, b.address), agent()))
    before = {name: (s.address, s.weight) for name, s in (await haproxy.seen()).items()}
    await haproxy.kill()
    await haproxy.resume()
    assert {name: (s.address, s.weight) for name, s in (await haproxy.seen()).items()} == before
    async with session.post(f"{haproxy.url}/api/generate", json={}) as response:
        assert (await response.json())["server"] == "b"


async def test_routes_asked_for_while_it_was_dead_are_there_when_it_is_back(haproxy: RealHaproxy) -> None:
    await haproxy.start(route("a", 100))
    await haproxy.kill()
    with pytest.raises(GatewayDownError):
        await haproxy.gateway.apply((route("b", 100),))
    await haproxy.resume()
    assert list(await haproxy.seen()) == ["engine/b"]


async def test_other_settings_are_in_force_after_the_next_apply(
    haproxy: RealHaproxy, stubs: tuple[Stub, Stub], session: aiohttp.ClientSession
) -> None:
    """A loopd that starts with another limit finds the gateway running on the old one."""
    routes = (route("a", 100, stubs[0].address),)
    await haproxy.start(*routes)

    async def status() -> int:
        async with session.post(f"{haproxy.url}/api/generate", data=b"x" * 2000) as response:
            return response.status

    assert await status() == 200
    haproxy.configure(max_body_bytes=1000)
    assert not (await haproxy.gateway.apply(routes)).changed
    assert await status() == 413


async def test_a_configuration_haproxy_refuses_changes_nothing(haproxy: RealHaproxy) -> None:
    await haproxy.start(route("a", 100))
    path = haproxy.directory / "haproxy.cfg"
    before = path.read_text()
    haproxy.configure(public_port=99999)
    with pytest.raises(GatewayConfigError, match="port"):
        await haproxy.gateway.apply((route("b", 100),))
    with pytest.raises(GatewayConfigError, match="port"):
        await haproxy.gateway.ensure_config(())
    assert path.read_text() == before
    assert list(await haproxy.seen()) == ["engine/a"]


async def test_a_reload_that_fails_is_told_and_traffic_goes_on(
    haproxy: RealHaproxy, stubs: tuple[Stub, Stub], session: aiohttp.ClientSession
) -> None:
    await haproxy.start(route("a", 100, stubs[0].address))
    (haproxy.directory / "haproxy.cfg").write_text("no such section\n")
    with pytest.raises(GatewayConfigError, match="refused to reload"):
        await haproxy.gateway.reload()
    async with session.post(f"{haproxy.url}/api/generate", json={}) as response:
        assert response.status == 200


async def test_a_file_that_someone_emptied_is_written_again(haproxy: RealHaproxy) -> None:
    await haproxy.start(route("a", 100))
    path = haproxy.directory / "haproxy.cfg"
    before = path.read_text()
    path.write_bytes(b"\xff")
    await haproxy.gateway.apply((route("a", 100),))
    assert path.read_text() == before
    assert path.stat().st_mode & 0o777 == 0o640


async def test_a_full_disk_is_told_and_nothing_changes(haproxy: RealHaproxy) -> None:
    await haproxy.start(route("a", 100))
    (haproxy.directory / "haproxy.cfg.new").mkdir()  # stands for it: the draft cannot be written
    with pytest.raises(GatewayConfigError, match="cannot be written"):
        await haproxy.gateway.apply((route("b", 100),))
    assert list(await haproxy.seen()) == ["engine/a"]


async def test_a_refused_command_is_named(haproxy: RealHaproxy) -> None:
    await haproxy.start(route("a", 100))
    with pytest.raises(CommandRefusedError, match=r"`del server engine/a`: Only servers in maintenance"):
        await haproxy.gateway._tell("del server engine/a")


@pytest.mark.parametrize("answer", [b"", b"nonsense\n"])
async def test_a_socket_that_is_no_haproxy_is_told(tmp_path: Path, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(answer)
        writer.close()

    async def check(_: Path) -> None: ...

    gateway = HaproxyGateway(lambda: None, tmp_path, check=check, uid=None)  # type: ignore[arg-type, return-value]  # not asked for
    async with await asyncio.start_unix_server(serve, tmp_path / "admin.sock"):
        with pytest.raises(GatewayDownError, match="no statistics"):
            await gateway.observe()


async def test_a_socket_that_hangs_or_never_stops_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopd.haproxy.COMMAND_S", 0.2)
    monkeypatch.setattr("loopd.haproxy.ANSWER_BYTES", 1000)
    flood = False
    conversations: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.current_task()
        assert conversation is not None
        conversations.add(conversation)
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            await reader.read()
            while flood:
                writer.write(b"x" * 1000)
                await writer.drain()
            await released.wait()

    async def check(_: Path) -> None: ...

    released = asyncio.Event()
    gateway = HaproxyGateway(lambda: None, tmp_path, check=check, uid=None)  # type: ignore[arg-type, return-value]  # not asked for
    async with await asyncio.start_unix_server(serve, tmp_path / "admin.sock"):
        with pytest.raises(GatewayDownError, match="does not answer"):
            await gateway.observe()
        flood = True
        with pytest.raises(CommandRefusedError, match="more than 1000 B"):
            await gateway.observe()
        released.set()
        await asyncio.gather(*conversations)


async def test_no_request_fails_from_an_engines_death_until_its_probe_sees_it(
    haproxy: RealHaproxy, stubs: tuple[Stub, Stub], session: aiohttp.ClientSession
) -> None:
    """A canary that crashes: refused connections go to the other server at once."""
    _, b = stubs
    async with serving(dying := Stub("dying")):
        await haproxy.start(route("dying", 50, dying.address), route("b", 50, b.address))
        await haproxy.until("engine/dying", ServerState.UP)
    state = ServerState.UP
    while state is not ServerState.DOWN:  # 0.6 s, and the test's own timeout
        async with session.post(f"{haproxy.url}/api/generate", json={}) as response:
            assert (response.status, (await response.json())["server"]) == (200, "b")
        state = (await haproxy.seen())["engine/dying"].state


async def test_a_sick_server_gets_no_traffic(
    haproxy: RealHaproxy, stubs: tuple[Stub, Stub], session: aiohttp.ClientSession
) -> None:
    a, b = stubs
    a.healthy = False
    await haproxy.start(route("a", 50, a.address), route("b", 50, b.address))
    await haproxy.until("engine/a", ServerState.DOWN)
    for _ in range(10):
        async with session.post(f"{haproxy.url}/api/generate", json={}) as response:
            assert (await response.json())["server"] == "b"
            assert response.headers["X-Loopbox-Release"] == "b"


async def test_a_client_that_leaves_before_the_first_byte_frees_the_engine(
    haproxy: RealHaproxy, stubs: tuple[Stub, Stub], session: aiohttp.ClientSession
) -> None:
    """Else an engine goes on generating for nobody."""
    a, _ = stubs
    a.mute = True
    await haproxy.start(route("a", 100, a.address))
    asking = asyncio.create_task(session.post(f"{haproxy.url}/api/chat", json={}).__aenter__())
    async with asyncio.timeout(10):
        await a.streaming.wait()
        asking.cancel()
        await a.left.wait()


async def test_a_client_may_wait_longer_than_it_may_be_slow(
    haproxy: RealHaproxy, stubs: tuple[Stub, Stub], session: aiohttp.ClientSession
) -> None:
    """The limit on slow clients must not cut one that waits for a slow engine's first token."""
    a, _ = stubs
    a.mute = True
    haproxy.configure(client_s=1)
    await haproxy.start(route("a", 100, a.address))
    asking = asyncio.create_task(session.post(f"{haproxy.url}/api/chat", json={}).__aenter__())
    await a.streaming.wait()
    done, _ = await asyncio.wait([asking], timeout=2.5)
    assert not done
    a.hold.set()
    async with asyncio.timeout(5):
        assert await (await asking).text() == "end"


async def test_every_request_is_one_json_line_without_its_query(
    haproxy: RealHaproxy, stubs: tuple[Stub, Stub], session: aiohttp.ClientSession
) -> None:
    await haproxy.start(route("a", 100, stubs[0].address))
    headers = {"X-Correlation-Id": "abcdef0123", "X-Forwarded-For": "6.6.6.6"}
    async with session.post(f"{haproxy.url}/api/generate?secret=1", data="private", headers=headers) as response:
        assert response.headers["X-Correlation-Id"] == "abcdef0123"
    async with session.get(f'{haproxy.url}/"é\\', headers={"X-Correlation-Id": 'a"b'}) as response:
        assert response.status == 404
    assert stubs[0].headers["X-Correlation-Id"] == "abcdef0123"
    assert stubs[0].headers["X-Forwarded-For"] == "127.0.0.1"
    lines: list[dict[str, object]] = []
    async with asyncio.timeout(10):
        while len(lines) < 2:  # HAProxy writes a request down after it has answered
            await asyncio.sleep(0.01)
            text = (haproxy.directory / "log").read_text()
            lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert [(x["correlation_id"], x["path"], x["status"], x["pool"], x["server"]) for x in lines][:1] == [
        ("abcdef0123", "/api/generate", 200, "engine", "a")
    ]
    assert lines[1]["status"] == 404
    assert lines[1]["correlation_id"] not in ('a"b', "")
    assert "secret" not in text
    assert "private" not in text
