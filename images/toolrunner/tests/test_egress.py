"""The way to a granted proxy: there exactly while its socket is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loopbox_toolrunner import egress as module
from loopbox_toolrunner.egress import Egress


@pytest.fixture
async def egress(tmp_path: Path) -> AsyncIterator[Egress]:
    made = Egress(tmp_path / "egress.sock", port=0)
    yield made
    await made.close()


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[asyncio.Server]:
    """Answers each connection with what it got, in capitals."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(1 << 16):
                writer.write(chunk.upper())
                await writer.drain()
        except OSError:
            pass
        writer.close()

    server = await asyncio.start_unix_server(answer, tmp_path / "egress.sock")
    yield server
    server.close()
    await server.wait_closed()


async def port(egress: Egress) -> int:
    return int((await egress.environment())["HTTP_PROXY"].rsplit(":", 1)[1])


async def test_without_a_grant_there_is_nothing(egress: Egress, tmp_path: Path) -> None:
    assert await egress.environment() == {}
    (tmp_path / "egress.sock").write_text("no socket", encoding="ascii")
    assert await egress.environment() == {}
    assert not egress.granted
    assert egress._server is None


async def test_with_a_grant_bytes_go_through_both_ways(egress: Egress, proxy: asyncio.Server) -> None:
    told = await egress.environment()
    names = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
    assert set(told) == names | {name.lower() for name in names}
    assert {value for name, value in told.items() if name.upper() != "NO_PROXY"} == {told["HTTP_PROXY"]}
    assert await egress.environment() == told
    reader, writer = await asyncio.open_connection("127.0.0.1", await port(egress))
    body = b"abc" * 500_000
    asked = asyncio.create_task(reader.read(-1))
    writer.write(body)
    writer.write_eof()  # the end of one side is passed on, and the other stays open
    assert await asked == body.upper()
    writer.close()
    await writer.wait_closed()


async def test_a_grant_that_ends_closes_port_and_connections(
    egress: Egress, proxy: asyncio.Server, tmp_path: Path
) -> None:
    number = await port(egress)
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    writer.write(b"a")
    assert await reader.read(1) == b"A"
    (tmp_path / "egress.sock").unlink()
    assert await egress.environment() == {}
    assert await reader.read(1) == b""
    writer.close()
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", number)


async def test_connections_are_bounded(egress: Egress, proxy: asyncio.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)
    number = await port(egress)
    pairs = [await asyncio.open_connection("127.0.0.1", number) for _ in range(2)]
    for reader, writer in pairs:
        writer.write(b"a")
        assert await reader.read(1) == b"A"
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    assert await reader.read(1) == b""
    for _, one in [*pairs, (reader, writer)]:
        one.close()


async def test_a_proxy_that_is_gone_is_a_closed_connection(egress: Egress, proxy: asyncio.Server) -> None:
    number = await port(egress)
    proxy.close()
    await proxy.wait_closed()
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    assert await reader.read(1) == b""
    writer.close()


async def test_a_port_that_is_taken_is_no_way_and_no_error(tmp_path: Path, proxy: asyncio.Server) -> None:
    other = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    egress = Egress(tmp_path / "egress.sock", port=other.sockets[0].getsockname()[1])
    assert await egress.environment() == {}
    other.close()
    await other.wait_closed()
    assert await egress.environment() != {}
    await egress.close()
