"""The gateway seam's contract, held by the fake and by a real HAProxy alike, and the shares' arithmetic."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_haproxy import RealHaproxy, agent, open_haproxy, route
from stub_engine import Stub, serving

from loopd.gateway import (
    MOST_SERVERS,
    Doors,
    Gateway,
    GatewayDownError,
    InMemoryGateway,
    Pool,
    Route,
    RouteError,
    Server,
    ServerState,
    really_set,
    route_weights,
    weights,
)
from loopd.keys import Keyring


@dataclass
class Bench:
    """A gateway, two servers behind it, and the means to put a request in flight."""

    gateway: Gateway
    stubs: dict[str, Stub]
    haproxy: RealHaproxy | None

    def route(self, server: str, share: int) -> Route:
        return route(server, share, self.stubs[server].address)

    async def seen(self) -> dict[str, Server]:
        return {f"{s.pool}/{s.server}": s for s in await self.gateway.observe()}

    async def states(self) -> dict[str, ServerState]:
        """Return the states once every probe has ended."""
        async with asyncio.timeout(10):
            while ServerState.STARTING in (found := {n: s.state for n, s in (await self.seen()).items()}).values():
                await asyncio.sleep(0.02)
        return found

    @contextlib.asynccontextmanager
    async def in_flight(self, server: str) -> AsyncIterator[None]:
        """Keep one request in flight on a server, which must be the one that takes traffic."""
        if self.haproxy is None:
            assert isinstance(self.gateway, InMemoryGateway)
            self.gateway.hold("engine", server, 1)
            yield
            if ("engine", server) in self.gateway.servers:
                self.gateway.hold("engine", server, 0)
            return
        stub = self.stubs[server]
        async with aiohttp.ClientSession() as session, session.post(f"{self.haproxy.url}/api/chat") as response:
            await stub.streaming.wait()
            yield
            stub.hold.set()
            assert await response.text() == "begin end"

    async def down(self) -> None:
        if self.haproxy is None:
            assert isinstance(self.gateway, InMemoryGateway)
            self.gateway.down = True
        else:
            await self.haproxy.kill()


@pytest.fixture(params=["memory", "haproxy"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    stubs = {name: Stub(name) for name in ("old", "new")}
    async with serving(*stubs.values()):
        if request.param == "memory":
            yield Bench(InMemoryGateway(), stubs, None)
            return
        async with open_haproxy() as haproxy:
            await haproxy.start()
            yield Bench(haproxy.gateway, stubs, haproxy)


async def test_servers_become_equal_to_the_routes(bench: Bench) -> None:
    await bench.gateway.apply((route("old", 100), agent()))
    applied = await bench.gateway.apply((route("old", 75), route("new", 25, "127.0.0.1:10"), agent()))
    assert {name: (s.weight, s.address) for name, s in (await bench.seen()).items()} == {
        "engine/old": (225, "127.0.0.1:9"),
        "engine/new": (75, "127.0.0.1:10"),
        "agent/agent": (256, "127.0.0.1:7"),
    }
    assert applied.changed
    assert applied.shares == {"engine/old": 75.0, "engine/new": 25.0, "agent/agent": 100.0}


async def test_applying_twice_changes_nothing_the_second_time(bench: Bench) -> None:
    routes = (route("old", 100), route("new", 0))
    first, second = await bench.gateway.apply(routes), await bench.gateway.apply(routes)
    assert (first.changed, second.changed, second.flip_s) == (True, False, 0.0)
    assert second.shares == {"engine/old": 100.0, "engine/new": 0.0}


async def test_an_address_that_moved_is_followed(bench: Bench) -> None:
    """A container that was started again may have another address."""
    await bench.gateway.apply((route("old", 100, "127.0.0.1:9"),))
    assert (await bench.gateway.apply((route("old", 100, "127.0.0.2:10"),))).changed
    assert (await bench.seen())["engine/old"].address == "127.0.0.2:10"


async def test_what_is_idle_and_not_wanted_goes_and_may_come_back(bench: Bench) -> None:
    await bench.gateway.apply((route("old", 100), route("new", 0)))
    await bench.gateway.apply((route("new", 100),))
    assert list(await bench.seen()) == ["engine/new"]
    await bench.gateway.apply((route("old", 100), route("new", 0)))
    assert {n: s.weight for n, s in (await bench.seen()).items()} == {"engine/old": 256, "engine/new": 0}


async def test_a_server_in_use_leaves_when_its_stream_has_ended(bench: Bench) -> None:
    await bench.gateway.apply((bench.route("old", 100), bench.route("new", 0)))
    async with bench.in_flight("old"):
        await bench.gateway.apply((bench.route("new", 100),))
        leaving = (await bench.seen())["engine/old"]
        assert (leaving.state, leaving.weight, leaving.sessions) == (ServerState.MAINT, 0, 1)
        assert not (await bench.gateway.apply((bench.route("new", 100),))).changed
    assert await bench.gateway.wait_idle("engine", "old", deadline_s=5)
    await bench.gateway.apply((bench.route("new", 100),))
    assert list(await bench.seen()) == ["engine/new"]


async def test_a_leaving_server_can_be_wanted_again(bench: Bench) -> None:
    """A rollback in the middle of a drain."""
    await bench.gateway.apply((bench.route("old", 100), bench.route("new", 0)))
    async with bench.in_flight("old"):
        await bench.gateway.apply((bench.route("new", 100),))
        await bench.gateway.apply((bench.route("old", 100), bench.route("new", 0)))
        back = (await bench.seen())["engine/old"]
        assert (back.weight, back.sessions) == (256, 1)
    assert await bench.states() == {"engine/old": ServerState.UP, "engine/new": ServerState.DRAIN}


async def test_whom_it_lets_in_changes_nothing_else(bench: Bench, tmp_path: Path) -> None:
    await bench.gateway.apply((route("old", 100), agent()))
    before = {name: (s.weight, s.address) for name, s in (await bench.seen()).items()}
    key = (await asyncio.to_thread(Keyring.open, tmp_path)).current.public_pem
    doors = Doors(keys=(key,), revoked={"0" * 32: 2**31, "f" * 32: 2**31})
    for wanted in (doors, doors, Doors(keys=(key,), revoked={"f" * 32: 2**31}), Doors(keys=(), revoked={})):
        await bench.gateway.admit(wanted)
        assert {name: (s.weight, s.address) for name, s in (await bench.seen()).items()} == before
    await bench.down()
    with pytest.raises(GatewayDownError):
        await bench.gateway.admit(doors)


async def test_wait_idle_tells_whether_the_drain_ended_in_time(bench: Bench) -> None:
    await bench.gateway.apply((bench.route("old", 100),))
    async with bench.in_flight("old"):
        assert not await bench.gateway.wait_idle("engine", "old", deadline_s=0.05)
    assert await bench.gateway.wait_idle("engine", "old", deadline_s=5)
    assert await bench.gateway.wait_idle("engine", "never-was", deadline_s=0)


async def test_probes_tell_up_from_down(bench: Bench) -> None:
    bench.stubs["new"].healthy = False
    if isinstance(bench.gateway, InMemoryGateway):
        bench.gateway.sick.add(bench.stubs["new"].address)
    await bench.gateway.apply((bench.route("old", 100), bench.route("new", 0)))
    async with asyncio.timeout(10):
        while (await bench.states())["engine/new"] is not ServerState.DOWN:
            await asyncio.sleep(0.02)
    assert (await bench.states())["engine/old"] is ServerState.UP


@pytest.mark.parametrize("shares", [(50, 40), (100, 100), (1, 0)])
async def test_shares_that_are_no_whole_are_refused_and_nothing_changes(bench: Bench, shares: tuple[int, int]) -> None:
    await bench.gateway.apply((route("old", 100),))
    with pytest.raises(RouteError, match="100 percent together"):
        await bench.gateway.apply((route("old", shares[0]), route("new", shares[1])))
    assert {n: s.weight for n, s in (await bench.seen()).items()} == {"engine/old": 256}


async def test_a_gateway_that_is_down_says_so(bench: Bench) -> None:
    await bench.down()
    for call in (
        bench.gateway.observe(),
        bench.gateway.apply((route("old", 100),)),
        bench.gateway.wait_idle("engine", "old", deadline_s=1),
    ):
        with pytest.raises(GatewayDownError, match="loopctl why gateway"):
            await call


# --- pure


@st.composite
def wholes(draw: st.DrawFn) -> dict[str, int]:
    """Draw shares of one pool that sum to 100."""
    cuts = sorted(draw(st.lists(st.integers(0, 100), max_size=8)))
    return {f"s{i}": high - low for i, (low, high) in enumerate(zip([0, *cuts], [*cuts, 100], strict=True))}


@given(wholes())
def test_weights_are_exactly_in_proportion(shares: dict[str, int]) -> None:
    """A rounded 1 % would be 0 and a canary would never see a request."""
    found = weights(shares)
    assert all(0 <= weight <= 256 for weight in found.values())
    assert all((found[name] == 0) == (share == 0) for name, share in shares.items())
    assert all(found[name] * 100 == share * sum(found.values()) for name, share in shares.items())
    if 100 in shares.values():
        assert max(found.values()) == 256


@given(wholes(), st.sampled_from(["engine", "agent"]))
def test_the_shares_really_set_are_the_shares_asked_for(shares: dict[str, int], pool: Pool) -> None:
    routes = [Route(pool=pool, server=name, address="10.0.0.1:1", share=share) for name, share in shares.items()]
    assert really_set(routes) == {f"{pool}/{name}": pytest.approx(share) for name, share in shares.items()}


def test_a_drained_pool_has_no_weight() -> None:
    assert weights({"a": 0, "b": 0}) == {"a": 0, "b": 0}
    assert really_set([route("a", 0)]) == {"engine/a": 0.0}


@pytest.mark.parametrize("share", [-1, 101])
def test_a_share_that_is_no_percent_is_refused(share: int) -> None:
    with pytest.raises(RouteError, match="percent"):
        weights({"a": share})
    with pytest.raises(RouteError, match="percent"):
        route("a", share)


def test_a_server_named_twice_or_too_many_servers_are_refused() -> None:
    with pytest.raises(RouteError, match="each server once"):
        route_weights([route("a", 100), route("a", 100)])
    with pytest.raises(RouteError, match="at most"):
        route_weights([route(f"s{i}", 0) for i in range(MOST_SERVERS + 1)])


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("a b", "1.2.3.4:5"),
        ("a\nserver x", "1.2.3.4:5"),
        ("a;set", "1.2.3.4:5"),
        ("", "1.2.3.4:5"),
        ("a" * 65, "1.2.3.4:5"),
        ("a", "1.2.3.4"),
        ("a", "999.2.3.4:5"),
        ("a", "1.2.3.4:99999"),
        ("a", "1.2.3.4:5 backup"),
        ("a", "localhost:5"),
        ("a", "fe80::1%eth0 x:5"),
    ],
)
def test_nothing_but_a_server_reaches_the_file_or_the_socket(name: str, address: str) -> None:
    """A name with a line break would be a line of configuration."""
    with pytest.raises(RouteError):
        route(name, 1, address)
