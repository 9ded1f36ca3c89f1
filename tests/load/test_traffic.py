"""The load generator against a server that fails on purpose: what it counts is what went wrong."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise

import pytest
from bench.figures import Record, count, latencies, quantile, within
from bench.traffic import Generator, Plan

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CHUNKED = b"HTTP/1.1 200 OK\r\nX-Loopbox-Release: abc\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(line: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(line), line)


GOOD = CHUNKED + chunk(b'{"response":"a","done":false}\n') + chunk(b'{"response":"","done":true}\n') + b"0\r\n\r\n"
UNFINISHED = CHUNKED + chunk(b'{"response":"a","done":false}\n')
ENDED_EARLY = UNFINISHED + b"0\r\n\r\n"
REPEATING = CHUNKED + chunk(b'{"response":"\\"","done":false}\n') * 30 + b"0\r\n\r\n"
OVERLOADED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"


async def answers(answer: bytes, *, close: bool) -> tuple[asyncio.Server, int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(answer)
                await writer.drain()
                if close:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, int(server.sockets[0].getsockname()[1])


async def ask(port: int, *, streams: int, rate: float, seconds: float = 0.3, patience_s: float = 5.0) -> list[Record]:
    out = io.StringIO()
    plan = Plan(port=port, streams=streams, rate=rate, pause_s=0.05, patience_s=patience_s)
    generator = Generator(plan, out)
    asyncio.get_running_loop().call_later(seconds, generator.stop)
    await generator.run()
    return [Record.from_line(line) for line in out.getvalue().splitlines()]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[int]]]:
    servers: list[asyncio.Server] = []

    async def start(answer: bytes, *, close: bool = False) -> int:
        server, port = await answers(answer, close=close)
        servers.append(server)
        return port

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("answer", "close", "kind", "fault"),
    [
        (GOOD, False, "stream", ""),
        (GOOD, True, "stream", ""),
        (UNFINISHED, True, "stream", "cut"),
        (ENDED_EARLY, False, "stream", "cut"),
        (REPEATING, False, "stream", "stopped"),
        (OVERLOADED, False, "stream", "failed"),
        (b"", True, "stream", "failed"),
        (CHUNKED, True, "stream", "failed"),
        (GOOD, False, "whole", ""),
        (UNFINISHED, True, "whole", "failed"),
        (OVERLOADED, False, "whole", "failed"),
    ],
)
async def test_each_way_to_fail_is_counted_as_what_it_is(
    serve: Callable[..., Awaitable[int]], answer: bytes, close: bool, kind: str, fault: str
) -> None:
    port = await serve(answer, close=close)
    streams, rate = (2, 0.0) if kind == "stream" else (0, 30.0)
    records = await ask(port, streams=streams, rate=rate)
    assert len(records) >= 4
    assert {record.kind for record in records} == {kind}
    assert {record.fault.partition(":")[0] for record in records} == {fault}
    if answer == GOOD:
        assert {record.release for record in records} == {"abc"}


async def test_a_stream_that_falls_silent_is_cut_and_a_silent_server_fails(
    serve: Callable[..., Awaitable[int]],
) -> None:
    records = await ask(await serve(UNFINISHED), streams=1, rate=0, patience_s=0.2)
    assert {record.fault.partition(":")[0] for record in records} == {"cut"}
    records = await ask(await serve(b""), streams=1, rate=0, patience_s=0.2)
    assert {record.fault.partition(":")[0] for record in records} == {"failed"}


async def test_a_port_that_nobody_holds_fails(serve: Callable[..., Awaitable[int]]) -> None:
    del serve
    records = await ask(1, streams=0, rate=20)
    assert records
    assert all("refused" in record.fault.lower() for record in records)


async def test_the_rate_holds_while_nothing_answers(serve: Callable[..., Awaitable[int]]) -> None:
    """An open loop: a server that stalls is asked on, and each wait counts from when the request was due."""
    records = await ask(await serve(b""), streams=0, rate=40, seconds=0.5, patience_s=0.6)
    assert 18 <= len(records) <= 21
    due = sorted(record.due for record in records)
    assert all(abs(later - earlier - 0.025) < 0.001 for earlier, later in pairwise(due))
    assert min(record.ms for record in records) >= 590


def record(due: float, ended: float, fault: str = "", kind: str = "whole") -> Record:
    return Record.from_line(f'["{kind}", {due}, {due}, {ended}, {ended}, "", "{fault}"]')


def test_a_request_counts_as_during_when_any_of_it_falls_into_a_window() -> None:
    windows = [(20.0, 30.0), (10.0, 12.0)]
    inside = [record(9, 11), record(11, 11.5), record(11.9, 13), record(9, 40), record(29, 31)]
    outside = [record(1, 10), record(12, 20), record(30, 31)]
    assert within([*inside, *outside], windows) == (inside, outside)


def test_latencies_leave_out_what_failed_and_keep_kinds_apart() -> None:
    records = [record(0, 0.010), record(0, 9.0, "failed: x"), record(0, 0.030, kind="stream")]
    assert count(records) == {"requests": 3, "failed": 1, "cut": 0, "stopped": 0}
    figures = latencies(records, "steady")
    assert figures["p99_steady_ms"] == 10.0
    assert figures["stream_p99_steady_ms"] == 30.0
    assert quantile([], 0.5) is None
    assert quantile([float(n) for n in range(1, 101)], 0.99) == 99.0
