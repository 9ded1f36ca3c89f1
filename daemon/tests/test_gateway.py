"""The gateway seam's contract, held by the fake and by a real HAProxy alike."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from loopd.gateway import Gateway, GatewayDownError, InMemoryGateway, Pool, Route, Server, ServerState, weights
from loopd.haproxy import HaproxyGateway, parse_stat, plan_commands
from loopd.haproxy_config import GatewayConfig, render, server_line


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Stub:
    """An engine that answers with its name; /api/chat streams until told to end."""

    name: str
    address: str = ""
    answered: int = 0
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    streaming: asyncio.Event = field(default_factory=asyncio.Event)
    healthy: bool = True

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path in ("/api/version", "/health"):
            return web.Response(status=200 if self.healthy else 500)
        self.answered += 1
        if request.path != "/api/chat":
            return web.json_response({"server": self.name, "cid": request.headers.get("X-Correlation-Id")})
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begin ")
        self.streaming.set()
        await self.hold.wait()
        await response.write(b"end")
        return response


@contextlib.asynccontextmanager
async def serving(stub: Stub) -> AsyncIterator[Stub]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", stub.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    stub.address = f"127.0.0.1:{port}"
    try:
        yield stub
    finally:
        stub.hold.set()
        await runner.cleanup()


@dataclass
class Haproxy:
    """A real HAProxy on this host, from the distribution."""

    directory: Path
    gateway: HaproxyGateway
    port: int
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, routes: tuple[Route, ...] = ()) -> None:
        await self.gateway.ensure_config(routes)
        await self.resume()

    async def resume(self) -> None:
        """Start on whatever file is there."""
        self.process = await asyncio.create_subprocess_exec(
            haproxy_binary(), "-W", "-db", "-f", str(self.directory / "haproxy.cfg"), stdout=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(GatewayDownError):
                    await self.gateway.observe()
                    return
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        if self.process and self.process.returncode is None:
            pids = [self.process.pid, *children(self.process.pid)]
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await self.process.wait()


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def haproxy_binary() -> str:
    found = shutil.which("haproxy") or "/usr/sbin/haproxy"
    assert Path(found).exists(), "haproxy is not installed: `make test` installs it"
    return found


@pytest.fixture
async def haproxy() -> AsyncIterator[Haproxy]:
    directory = Path(tempfile.mkdtemp(prefix="gw"))  # short, since a unix socket's path is
    port = free_port()
    config = GatewayConfig(
        public_port=port,
        internal_address="127.0.0.1",
        internal_port=free_port(),
        max_body_bytes=1000,
        run_dir=str(directory),
    )

    async def check(path: Path) -> None:
        process = await asyncio.create_subprocess_exec(haproxy_binary(), "-c", "-q", "-f", str(path))
        assert await process.wait() == 0

    real = Haproxy(directory, HaproxyGateway(lambda: config, directory, check=check, uid=None), port)
    try:
        yield real
    finally:
        await real.kill()
        shutil.rmtree(directory)


@pytest.fixture(params=["memory", "haproxy"])
async def gateway(request: pytest.FixtureRequest, haproxy: Haproxy) -> Gateway:
    if request.param == "memory":
        return InMemoryGateway()
    await haproxy.start()
    return haproxy.gateway


def route(server: str, share: int, address: str = "127.0.0.1:9", pool: Pool = "engine") -> Route:
    return Route(pool=pool, server=server, address=address, share=share)


async def by_name(gateway: Gateway) -> dict[str, Server]:
    return {f"{s.pool}/{s.server}": s for s in await gateway.observe()}


async def test_servers_become_equal_to_the_routes(gateway: Gateway) -> None:
    await gateway.apply((route("old", 100), route("agent", 100, "127.0.0.1:7", "agent")))
    await gateway.apply((route("old", 75), route("new", 25), route("agent", 100, "127.0.0.1:7", "agent")))
    seen = await by_name(gateway)
    assert {name: (s.weight, s.address) for name, s in seen.items()} == {
        "engine/old": (256, "127.0.0.1:9"),
        "engine/new": (85, "127.0.0.1:9"),
        "agent/agent": (256, "127.0.0.1:7"),
    }


async def test_applying_twice_changes_nothing_the_second_time(gateway: Gateway) -> None:
    routes = (route("old", 100), route("new", 0))
    first, second = await gateway.apply(routes), await gateway.apply(routes)
    assert (first.changed, second.changed) == (True, False)
    assert second.shares == {"engine/old": 100.0, "engine/new": 0.0}


async def test_an_address_that_moved_is_followed(gateway: Gateway) -> None:
    """A container that was started again may have another address."""
    await gateway.apply((route("old", 100, "127.0.0.1:9"),))
    await gateway.apply((route("old", 100, "127.0.0.2:10"),))
    assert (await by_name(gateway))["engine/old"].address == "127.0.0.2:10"


async def test_what_is_idle_and_not_wanted_goes(gateway: Gateway) -> None:
    await gateway.apply((route("old", 100), route("new", 0)))
    await gateway.apply((route("new", 100),))
    assert list(await by_name(gateway)) == ["engine/new"]
    await gateway.apply((route("old", 100), route("new", 0)))
    assert {name: s.weight for name, s in (await by_name(gateway)).items()} == {"engine/old": 256, "engine/new": 0}


async def test_a_server_that_is_gone_is_idle(gateway: Gateway) -> None:
    assert await gateway.wait_idle("engine", "never-was", deadline_s=1)


async def test_a_gateway_that_is_down_says_so(tmp_path: Path) -> None:
    async def check(_: Path) -> None: ...

    config = GatewayConfig(public_port=1, internal_address="", internal_port=2, max_body_bytes=1)
    for gateway in (InMemoryGateway(down=True), HaproxyGateway(lambda: config, tmp_path, check=check, uid=None)):
        with pytest.raises(GatewayDownError, match="loopctl why gateway"):
            await gateway.observe()


# --- what only HAProxy can show


async def test_flips_under_load_lose_no_request_and_cut_no_stream(haproxy: Haproxy) -> None:
    async with serving(Stub("a")) as a, serving(Stub("b")) as b, aiohttp.ClientSession() as session:
        await haproxy.start((route("a", 100, a.address), route("b", 0, b.address)))
        statuses: list[int] = []
        stop = asyncio.Event()

        async def load() -> None:
            while not stop.is_set():
                async with session.post(f"{haproxy.url}/api/generate", json={}) as response:
                    await response.read()
                    statuses.append(response.status)

        async def stream() -> str:
            async with session.post(f"{haproxy.url}/api/chat", json={}) as response:
                return await response.text()

        async with asyncio.timeout(60):
            held = asyncio.create_task(stream())
            await a.streaming.wait()
            clients = [asyncio.create_task(load()) for _ in range(8)]
            for flip in range(50):
                share = 100 if flip % 2 else 0
                applied = await haproxy.gateway.apply(
                    (route("a", share, a.address), route("b", 100 - share, b.address))
                )
                assert applied.flip_s < 0.1
                before = (a if share else b).answered
                while (a if share else b).answered == before:
                    await asyncio.sleep(0.001)
            stop.set()
            await asyncio.gather(*clients)
            assert not await haproxy.gateway.wait_idle("engine", "a", deadline_s=0.2)
            a.hold.set()
            assert await held == "begin end"
            assert await haproxy.gateway.wait_idle("engine", "a", deadline_s=5)
        assert len(statuses) > 50
        assert set(statuses) == {200}


async def test_a_server_taken_away_in_mid_stream_finishes_it(haproxy: Haproxy) -> None:
    async with serving(Stub("a")) as a, serving(Stub("b")) as b, aiohttp.ClientSession() as session:
        await haproxy.start((route("a", 100, a.address),))

        async def stream() -> str:
            async with session.post(f"{haproxy.url}/api/chat", json={}) as response:
                return await response.text()

        async with asyncio.timeout(30):
            held = asyncio.create_task(stream())
            await a.streaming.wait()
            await haproxy.gateway.apply((route("b", 100, b.address),))
            assert (await by_name(haproxy.gateway))["engine/a"].state is ServerState.MAINT
            async with session.post(f"{haproxy.url}/api/generate", json={}) as response:
                assert (await response.json())["server"] == "b"
                assert response.headers["X-Loopbox-Release"] == "b"
            a.hold.set()
            assert await held == "begin end"
            while list(await by_name(haproxy.gateway)) != ["engine/b"]:  # once its kept connections are closed, too
                await haproxy.gateway.apply((route("b", 100, b.address),))
                await asyncio.sleep(0.05)


async def test_a_killed_haproxy_comes_up_with_the_same_routes(haproxy: Haproxy) -> None:
    async with serving(Stub("a")) as a, serving(Stub("b")) as b, aiohttp.ClientSession() as session:
        await haproxy.start()
        await haproxy.gateway.apply((route("a", 0, a.address), route("b", 100, b.address)))
        before = {name: s.weight for name, s in (await by_name(haproxy.gateway)).items()}
        await haproxy.kill()
        await haproxy.resume()
        assert {name: s.weight for name, s in (await by_name(haproxy.gateway)).items()} == before
        async with session.post(f"{haproxy.url}/api/generate", json={}) as response:
            assert (await response.json())["server"] == "b"


async def test_only_what_answers_questions_is_let_through(haproxy: Haproxy) -> None:
    async with serving(Stub("a")) as a, aiohttp.ClientSession() as session:
        await haproxy.start((route("a", 100, a.address), route("agent", 100, a.address, "agent")))

        async def ask(method: str, path: str, **kwargs: object) -> tuple[int, dict[str, object]]:
            async with session.request(method, haproxy.url + path, **kwargs) as response:  # type: ignore[arg-type]
                assert response.headers["X-Correlation-Id"]
                return response.status, await response.json()

        for path in ("create", "pull", "push", "delete", "copy", "blobs/sha256:00"):
            status, body = await ask("POST", f"/api/{path}", json={})
            assert (status, body["error"]["code"]) == (403, "forbidden")  # type: ignore[index]
        assert (await ask("GET", "/v1/models"))[0] == 200
        assert (await ask("POST", "/v1/chat/completions", json={}))[0] == 200
        assert (await ask("POST", "/agents/run-agent", json={}))[0] == 200
        assert (await ask("GET", "/api/chat"))[0] == 405
        assert (await ask("GET", "/etc/passwd"))[0] == 404
        assert (await ask("POST", "/api/chat/../create", json={}))[0] in (403, 404)
        status, body = await ask("POST", "/api/generate", data=b"x" * 1001)
        assert (status, body["error"]["code"]) == (413, "too_large")  # type: ignore[index]
        given = {"X-Correlation-Id": "abcdef0123"}
        assert (await ask("POST", "/api/generate", json={}, headers=given))[1]["cid"] == "abcdef0123"
        bad = {"X-Correlation-Id": 'a"b'}
        assert (await ask("POST", "/api/generate", json={}, headers=bad))[1]["cid"] != 'a"b'

        async def endless() -> AsyncIterator[bytes]:
            yield b"x" * 10

        assert (await ask("POST", "/api/generate", data=endless()))[0] == 411


async def test_with_no_server_the_error_says_what_to_do(haproxy: Haproxy) -> None:
    await haproxy.start()
    async with aiohttp.ClientSession() as session, session.post(f"{haproxy.url}/api/chat", json={}) as response:
        assert response.status == 503
        error = (await response.json())["error"]
        assert error["code"] == "unavailable"
        assert "loopctl status" in error["message"]


async def test_a_sick_server_gets_no_traffic(haproxy: Haproxy) -> None:
    async with serving(Stub("a", healthy=False)) as a, serving(Stub("b")) as b:
        await haproxy.start((route("a", 50, a.address), route("b", 50, b.address)))
        async with asyncio.timeout(10):
            while (await by_name(haproxy.gateway))["engine/a"].state is not ServerState.DOWN:
                await asyncio.sleep(0.05)
        async with aiohttp.ClientSession() as session:
            for _ in range(10):
                async with session.post(f"{haproxy.url}/api/generate", json={}) as response:
                    assert (await response.json())["server"] == "b"


# --- pure


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(0, 100), max_size=6))
def test_weights_follow_shares(shares: dict[str, int]) -> None:
    found = weights(shares)
    assert all((found[name] == 0) == (share == 0) for name, share in shares.items())
    assert all(0 <= weight <= 256 for weight in found.values())
    for one, first in shares.items():
        for other, second in shares.items():
            assert first <= second or found[one] >= found[other]


@pytest.mark.parametrize("share", [-1, 101])
def test_a_share_that_is_no_percent_is_refused(share: int) -> None:
    with pytest.raises(ValueError, match="percent"):
        weights({"a": share})


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("a b", "1.2.3.4:5"),
        ("a\nserver x", "1.2.3.4:5"),
        ("a", "1.2.3.4"),
        ("a", "999.2.3.4:5"),
        ("a", "1.2.3.4:99999"),
    ],
)
def test_nothing_but_a_server_reaches_the_file_or_the_socket(name: str, address: str) -> None:
    with pytest.raises(ValueError, match=r"server|range|IPv4|Octet|octet"):
        server_line(route(name, 1, address), 1)


names = st.sampled_from(["a", "b", "c"])


@given(
    wanted=st.dictionaries(names, st.integers(0, 100)),
    seen=st.dictionaries(names, st.tuples(st.integers(0, 256), st.integers(0, 3), st.sampled_from(list(ServerState)))),
)
def test_a_plan_adds_what_is_missing_and_deletes_only_what_is_idle(
    wanted: dict[str, int], seen: dict[str, tuple[int, int, ServerState]]
) -> None:
    routes = [route(name, share) for name, share in wanted.items()]
    observed = [
        Server(pool="engine", server=n, address="127.0.0.1:9", weight=w, sessions=s, state=state)
        for n, (w, s, state) in seen.items()
    ]
    plan = plan_commands(routes, observed)
    added = {c.split("/")[1].split()[0] for c in plan.add if c.startswith("add server")}
    deleted = {c.split("/")[1] for c in plan.delete}
    assert added == set(wanted) - set(seen)
    assert deleted == {n for n in set(seen) - set(wanted) if seen[n][1] == 0}
    assert all(c.endswith("maint") for c in plan.leave)


@given(st.text())
def test_any_statistics_are_parsed_without_a_crash(text: str) -> None:
    parse_stat(text)
    parse_stat("# pxname,svname,scur,qcur,status,weight,addr,\n" + text)


def test_the_file_names_both_pools_even_when_empty() -> None:
    text = render(GatewayConfig(public_port=1, internal_address="10.0.0.1", internal_port=2, max_body_bytes=3), ())
    assert "backend engine" in text
    assert "backend agent" in text
