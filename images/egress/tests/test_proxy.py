"""One listener on real sockets: who gets where, what it may carry, what is recorded. The resolver alone is a fake."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from loopbox_egress import proxy
from loopbox_egress.addresses import Address, is_public
from loopbox_egress.limits import Limits, read_limits
from loopbox_egress.proxy import Listener
from loopbox_egress.rules import Rule

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Bench:
    """A listener, the far side, and the world as the resolver tells it."""

    path: Path
    port: int
    listener: Listener
    records: list[dict[str, str | int]]
    names: dict[str, list[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    handler: Handler | None = None
    seen: bytes = b""
    recorded: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, request: bytes, *, until_end: bool = True) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        try:
            writer.write(request)
            return await reader.read() if until_end else await reader.readuntil(b"\r\n\r\n")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def last(self) -> dict[str, str | int]:
        async with asyncio.timeout(5):
            await self.recorded.wait()
        return self.records[-1]

    def get(self, host: str, *fields: str) -> bytes:
        return "\r\n".join([f"GET http://{host}/ HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode()


LIMITS = Limits(head_s=1, connect_s=2, idle_s=1, connection_s=5, connections=3, connection_bytes=1 << 20)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    # The far side is on loopback, so here 127.0.0.1 stands for the world; 127.0.0.2 stays private.
    public = is_public
    monkeypatch.setattr(proxy, "is_public", lambda a: str(a) == "127.0.0.1" or public(a))
    folder = tempfile.TemporaryDirectory(prefix="lbe")
    path = Path(folder.name) / "s"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    records: list[dict[str, str | int]] = []

    async def far(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if made.handler is not None:
                await made.handler(reader, writer)
            else:
                made.seen = await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
        finally:
            writer.close()

    def record(told: dict[str, str | int]) -> None:
        records.append(told)
        made.recorded.set()

    async def resolve(host: str, port: int) -> list[Address]:
        made.asked.append(host)
        if host not in made.names:
            raise socket.gaierror(-2, "Name or service not known")
        return [ipaddress.ip_address(a) for a in made.names[host]]

    server = await asyncio.start_server(far, "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    ports = frozenset({port})
    rules = (
        Rule("a.org", below=False, ports=ports, literal=False),
        Rule("b.org", below=True, ports=ports, literal=False),
        Rule("127.0.0.1", below=False, ports=frozenset({port}), literal=True),
    )
    listener = Listener(id="l1", rules=rules, limits=LIMITS, record=record, resolve=resolve)
    made = Bench(path, port, listener, records, names={"a.org": ["127.0.0.1"], "x.b.org": ["127.0.0.1"]})
    await listener.start(listening)
    yield made
    listener.close()
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0)
    folder.cleanup()


async def test_a_granted_name_is_reached_and_the_connection_recorded(bench: Bench) -> None:
    answer = await bench.ask(bench.get(f"a.org:{bench.port}"))
    assert answer.endswith(b"\r\n\r\nhi")
    assert bench.seen.startswith(f"GET / HTTP/1.1\r\nhost: a.org:{bench.port}\r\n".encode())
    record = await bench.last()
    assert {k: v for k, v in record.items() if k != "ms"} == {
        "listener": "l1",
        "method": "GET",
        "host": "a.org",
        "port": bench.port,
        "address": "127.0.0.1",
        "up": 0,
        "down": len(answer),
        "verdict": "allowed",
    }


async def test_a_tunnel_carries_both_ways_and_halves_are_closed_one_by_one(bench: Bench) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read())[::-1])

    bench.handler = echo
    reader, writer = await asyncio.open_unix_connection(str(bench.path))
    writer.write(f"CONNECT x.b.org:{bench.port} HTTP/1.1\r\n\r\nabc".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.write_eof()
    assert await reader.read() == b"cba"
    writer.close()
    record = await bench.last()
    assert (record["verdict"], record["up"], record["down"]) == ("allowed", 3, 3)


@pytest.mark.parametrize("host", ["c.org", "b.org", "xb.org", "a.org.evil.org", "127.0.0.2", "[::1]"])
async def test_what_was_not_granted_is_not_even_resolved(bench: Bench, host: str) -> None:
    assert (await bench.ask(bench.get(f"{host}:{bench.port}"))).startswith(b"HTTP/1.1 403 ")
    assert bench.asked == []
    assert (await bench.last())["verdict"] == "not_granted"


async def test_another_port_of_a_granted_name_is_not_granted(bench: Bench) -> None:
    assert (await bench.ask(bench.get("a.org:22"))).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "address", ["127.0.0.2", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fd00:ec2::254"]
)
async def test_a_granted_name_of_a_private_address_is_refused(bench: Bench, address: str) -> None:
    bench.names["a.org"] = [address]
    assert (await bench.ask(bench.get(f"a.org:{bench.port}"))).startswith(b"HTTP/1.1 403 ")
    record = await bench.last()
    assert (record["verdict"], record["address"]) == ("not_public", "")


async def test_the_address_that_was_checked_is_the_one_connected_to(bench: Bench) -> None:
    """A second look at the name, which an attacker's server would answer otherwise, never happens."""
    bench.names["a.org"] = ["10.0.0.1", "127.0.0.1"]
    assert (await bench.ask(bench.get(f"a.org:{bench.port}"))).endswith(b"hi")
    assert bench.asked == ["a.org"]
    assert (await bench.last())["address"] == "127.0.0.1"


async def test_an_address_that_the_operator_named_needs_no_resolver(bench: Bench) -> None:
    assert (await bench.ask(bench.get(f"127.0.0.1:{bench.port}"))).endswith(b"hi")
    assert bench.asked == []


async def test_a_name_that_does_not_exist_is_told(bench: Bench) -> None:
    assert (await bench.ask(bench.get(f"nope.b.org:{bench.port}"))).startswith(b"HTTP/1.1 502 ")
    assert (await bench.last())["verdict"] == "unreachable"


async def test_what_follows_a_request_is_not_a_second_one(bench: Bench) -> None:
    first = bench.get(f"a.org:{bench.port}")
    answer = await bench.ask(first + bench.get("c.org:80"))
    assert answer.count(b"HTTP/1.1") == 1
    assert b"c.org" not in bench.seen


@pytest.mark.parametrize("request_", [b"", b"GET http://a.org/", b"x" * (LIMITS.head_bytes + 100) + b"\r\n\r\n"])
async def test_a_head_that_never_ends_or_is_too_long_ends_the_connection(bench: Bench, request_: bytes) -> None:
    async with asyncio.timeout(4):
        assert (await bench.ask(request_)).split(b" ")[1] in (b"431", b"504")


async def test_one_connection_carries_so_many_bytes_and_no_more(bench: Bench) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()

    bench.handler = flood
    got = await bench.ask(bench.get(f"a.org:{bench.port}"))
    assert len(got) <= LIMITS.connection_bytes
    assert (await bench.last())["verdict"] == "too_big"


async def test_a_session_carries_so_many_bytes_and_no_more(bench: Bench) -> None:
    bench.listener.used = LIMITS.listener_bytes
    assert (await bench.ask(bench.get(f"a.org:{bench.port}"))).startswith(b"HTTP/1.1 403 ")
    assert (await bench.last())["verdict"] == "spent"


async def test_silence_ends_a_connection(bench: Bench) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    bench.handler = silent
    async with asyncio.timeout(4):
        assert await bench.ask(bench.get(f"a.org:{bench.port}")) == b""
    assert (await bench.last())["verdict"] == "out_of_time"


async def test_one_session_has_so_many_connections_at_once(bench: Bench) -> None:
    open_ = [await asyncio.open_unix_connection(str(bench.path)) for _ in range(LIMITS.connections)]
    assert (await bench.ask(b"")).startswith(b"HTTP/1.1 429 ")
    for _, writer in open_:
        writer.close()


async def test_a_closed_listener_ends_what_goes_through_it(bench: Bench) -> None:
    began = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        began.set()
        await reader.read()

    bench.handler = silent
    asking = asyncio.create_task(bench.ask(bench.get(f"a.org:{bench.port}")))
    await began.wait()
    bench.listener.close()
    async with asyncio.timeout(0.8):
        await asking
    assert (await bench.last())["verdict"] == "closed"


def test_limits_are_read_from_the_environment() -> None:
    assert read_limits({"EGRESS_CONNECTIONS": "7"}).connections == 7
    with pytest.raises(ValueError, match="EGRESS_IDLE_S"):
        read_limits({"EGRESS_IDLE_S": "-1"})
