"""Requests that wait for an engine, and what loopd hears of requests, both in a real HAProxy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_haproxy import RealHaproxy, open_haproxy, route
from stub_engine import Stub, serving

from loopd.analysis import Answer
from loopd.tap import LINE_BYTES, open_tap, parse_answer


@pytest.fixture
async def haproxy() -> AsyncIterator[RealHaproxy]:
    async with open_haproxy() as real:
        yield real


async def ask(session: aiohttp.ClientSession, haproxy: RealHaproxy) -> int:
    async with session.post(f"{haproxy.url}/api/generate", json={}) as response:
        await response.read()
        return response.status


async def test_requests_wait_for_an_engine_that_comes_back(haproxy: RealHaproxy) -> None:
    """Longer than the limit on a client's own slowness, since the client has done its part."""
    haproxy.configure(hold_s=20, request_s=1)
    await haproxy.start()
    stub = Stub("a")
    async with serving(stub), aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        waiting = [asyncio.create_task(ask(session, haproxy)) for _ in range(50)]
        done, _ = await asyncio.wait(waiting, timeout=3)
        assert not done, "a request was answered with no engine there"
        await haproxy.gateway.apply((route("a", 100, stub.address),))
        async with asyncio.timeout(5):
            assert set(await asyncio.gather(*waiting)) == {200}


async def test_a_request_that_waited_too_long_is_told_what_to_do(haproxy: RealHaproxy) -> None:
    await haproxy.start()
    async with aiohttp.ClientSession() as session, asyncio.timeout(10):
        assert await ask(session, haproxy) == 503


async def test_a_server_at_no_weight_is_no_engine(haproxy: RealHaproxy) -> None:
    """While a release is swapped in place the new one is attached at 0: requests wait until it is promoted."""
    stub = Stub("a")
    async with serving(stub), aiohttp.ClientSession() as session:
        haproxy.configure(hold_s=20)
        await haproxy.start(route("a", 0, stub.address))
        waiting = asyncio.create_task(ask(session, haproxy))
        await asyncio.wait({waiting}, timeout=0.3)
        assert stub.answered == 0
        await haproxy.gateway.apply((route("a", 100, stub.address),))
        assert await waiting == 200


async def test_each_engines_answer_is_heard_while_somebody_listens(haproxy: RealHaproxy) -> None:
    a, b = Stub("a"), Stub("b")
    heard: list[Answer] = []
    async with serving(a, b), aiohttp.ClientSession() as session:
        await haproxy.start(route("a", 50, a.address), route("b", 50, b.address))
        assert await ask(session, haproxy) == 200  # nobody listens: nothing waits
        all_heard = asyncio.Event()

        def hear(answer: Answer) -> None:
            heard.append(answer)
            if len(heard) == 20:
                all_heard.set()

        async with open_tap(haproxy.directory, uid=None) as tap, tap.answers(hear):
            for _ in range(20):
                await ask(session, haproxy)
            async with asyncio.timeout(5):
                await all_heard.wait()
        assert await ask(session, haproxy) == 200
    assert {answer.server for answer in heard} == {"a", "b"}
    assert not any(answer.failed for answer in heard)
    assert all(0 <= answer.first_byte_ms < 5000 for answer in heard)


def line(**changes: object) -> bytes:
    entry = {"pool": "engine", "server": "a", "status": 200, "first_byte_ms": 7, "end": "--"}
    return json.dumps(entry | changes).encode()


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, False),
        ({"status": 404}, False),
        ({"status": 500}, True),
        ({"end": "SD"}, True),
        ({"end": "sH"}, True),
        ({"end": "CD"}, False),
        ({"status": 502, "first_byte_ms": -1, "end": "SH"}, True),
    ],
)
def test_what_the_server_broke_counts_against_it(changes: dict[str, object], failed: bool) -> None:
    answer = parse_answer(line(**changes))
    assert answer is not None
    assert answer.failed is failed


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        line(pool="agent"),
        line(server="<NOSRV>"),
        line(first_byte_ms=-1, end="CH"),
        line(status="x"),
        line(path="a" * LINE_BYTES),
        b"[" * 5000,
    ],
)
def test_other_lines_are_no_answers(raw: bytes) -> None:
    assert parse_answer(raw) is None


@given(st.binary(max_size=200))
def test_no_line_breaks_the_reader(raw: bytes) -> None:
    parse_answer(raw)
