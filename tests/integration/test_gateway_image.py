"""The gateway's image as loopd runs it: host network, another user, read-only, no capabilities, no docker network."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import aiohttp
import docker
import pytest
from docker.models.containers import Container
from real_haproxy import agent, free_port, route
from stub_engine import Stub, serving

from built import built
from loopd.gateway import GatewayDownError, Route, ServerState
from loopd.haproxy import GatewayConfigError, HaproxyGateway
from loopd.haproxy_config import GatewayConfig

pytestmark = pytest.mark.docker

IMAGE = built().gateway
UID = 10004
MAX_BODY = 100_000
REQUEST_S = 2


@dataclass
class Gateway:
    """The container, its driver, and clients' way to it."""

    container: Container
    driver: HaproxyGateway
    config: GatewayConfig
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.config.public_port}"

    async def answers(self) -> None:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(GatewayDownError):
                    await self.driver.observe()
                    return
                await asyncio.sleep(0.05)

    async def ask(self, method: str, path: str, *, port: int | None = None, **kwargs: object) -> tuple[int, object]:
        """Return status and JSON body; every answer must carry a correlation id."""
        url = f"http://127.0.0.1:{port or self.config.public_port}{path}"
        async with self.session.request(method, url, **kwargs) as response:  # type: ignore[arg-type]  # by name
            assert response.headers["X-Correlation-Id"]
            return response.status, await response.json() if method != "HEAD" else None

    async def refused(self, method: str, path: str, *, port: int | None = None, **kwargs: object) -> tuple[int, str]:
        """Return status and error code; the body must have the appliance's form."""
        status, body = await self.ask(method, path, port=port, **kwargs)
        assert isinstance(body, dict)
        assert set(body) == {"error"}
        error = body["error"]
        assert set(error) == {"code", "message", "details", "timestamp"}
        assert error["details"]["correlation_id"]
        assert datetime.fromisoformat(error["timestamp"]).tzinfo
        return status, error["code"]

    async def raw(self, data: bytes) -> bytes:
        """Send bytes and return all that comes back."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.config.public_port)
        writer.write(data)
        try:
            async with asyncio.timeout(20):
                return await reader.read()
        finally:
            writer.close()


@pytest.fixture(scope="module")
def client() -> docker.DockerClient:
    return docker.from_env()


@pytest.fixture
async def gateway(client: docker.DockerClient) -> AsyncIterator[Gateway]:
    directory = Path(tempfile.mkdtemp(prefix="gw"))
    directory.chmod(0o750)
    os.chown(directory, UID, UID)
    config = GatewayConfig(
        public_port=free_port(),
        internal_address="127.0.0.1",
        internal_port=free_port(),
        max_body_bytes=MAX_BODY,
        request_s=REQUEST_S,
    )

    def run(command: list[str] | None, network: str) -> Container:
        return client.containers.run(
            IMAGE,
            command,
            name=f"gateway-test-{secrets.token_hex(4)}",
            network_mode=network,
            detach=True,
            user=f"{UID}:{UID}",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            volumes={str(directory): {"bind": "/run/gateway", "mode": "rw"}},
            mem_limit=256 << 20,
            pids_limit=64,
        )

    def check_in_image(path: Path) -> None:
        checked = run(["-c", "-f", f"/run/gateway/{path.name}"], "none")
        try:
            if checked.wait()["StatusCode"]:
                raise GatewayConfigError(checked.logs().decode())
        finally:
            checked.remove(force=True)

    async def check(path: Path) -> None:
        await asyncio.to_thread(check_in_image, path)

    driver = HaproxyGateway(lambda: config, directory, check=check, uid=UID)
    await driver.ensure_config(())
    container = await asyncio.to_thread(run, None, "host")
    try:
        async with aiohttp.ClientSession() as session:
            opened = Gateway(container, driver, config, session)
            await opened.answers()
            yield opened
    finally:
        await asyncio.to_thread(container.remove, force=True)
        shutil.rmtree(directory)
        client.close()


@pytest.fixture
async def stub(gateway: Gateway) -> AsyncIterator[Stub]:
    """Serve one engine, that is the agent too."""
    async with serving(stub := Stub("alpha")):
        await gateway.driver.apply(both(stub))
        async with asyncio.timeout(10):
            while {s.state for s in await gateway.driver.observe()} != {ServerState.UP}:
                await asyncio.sleep(0.02)
        yield stub


def both(stub: Stub) -> tuple[Route, Route]:
    return route("alpha", 100, stub.address), agent(stub.address)


async def test_only_what_answers_questions_is_let_through(gateway: Gateway, stub: Stub) -> None:
    """An engine's API for making and deleting models must never be reachable."""
    for port in (gateway.config.public_port, gateway.config.internal_port):
        for path in ("create", "pull", "push", "copy", "delete", "blobs/sha256:00", "CREATE"):
            for method in ("POST", "DELETE", "HEAD"):
                if method != "HEAD":
                    assert await gateway.refused(method, f"/api/{path}", port=port) == (403, "forbidden")
                else:
                    assert (await gateway.ask(method, f"/api/{path}", port=port))[0] == 403
        for path in ("/api/tags", "/api/ps", "/", "/v1/models", "/v1/models/agent"):
            assert (await gateway.ask("GET", path, port=port))[0] == 200
            assert await gateway.refused("POST", path, port=port) == (405, "method_not_allowed")
        for path in ("/api/generate", "/api/show", "/api/embed", "/v1/chat/completions", "/v1/responses"):
            assert await gateway.ask("POST", path, port=port, json={}) == (200, {"server": "alpha", "path": path})
            assert await gateway.refused("GET", path, port=port) == (405, "method_not_allowed")
        assert await gateway.refused("GET", "/etc/passwd", port=port) == (404, "not_found")
    assert (await gateway.ask("POST", "/agents/run-agent", json={}))[0] == 200
    assert await gateway.refused("POST", "/agents/run-agent", port=gateway.config.internal_port) == (404, "not_found")
    assert await gateway.ask("GET", "/gateway/health") == (200, {"status": "ok", "engines": 1, "agents": 1})


@pytest.mark.parametrize(
    "path", ["/api/chat/../create", "//api/create", "/api//create", "/api/%63reate", "/v1/models/..", "/api/create?x=1"]
)
async def test_no_spelling_reaches_the_engines_admin_api(gateway: Gateway, stub: Stub, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    answer = await gateway.raw(head.encode())
    assert answer.split()[1] in (b"403", b"404", b"405")
    assert stub.answered == 0


async def test_a_stream_passes_chunk_by_chunk_and_names_its_release(gateway: Gateway, stub: Stub) -> None:
    async with asyncio.timeout(20), gateway.session.post(f"{gateway.url}/api/chat", json={}) as response:
        assert await response.content.readany() == b"begin "
        assert response.headers["X-Loopbox-Release"] == "alpha"
        stub.hold.set()
        assert await response.text() == "end"


async def test_a_websocket_reaches_the_agent(gateway: Gateway, stub: Stub) -> None:
    async with asyncio.timeout(20), gateway.session.ws_connect(f"{gateway.url}/agents/ws") as ws:
        await ws.send_str("hello")
        assert await ws.receive_str() == "hello"


async def test_bodies_are_limited_however_they_are_sent(gateway: Gateway, stub: Stub) -> None:
    assert (await gateway.ask("POST", "/api/generate", data=b"x" * MAX_BODY))[0] == 200
    assert stub.body_bytes == MAX_BODY
    assert await gateway.refused("POST", "/api/generate", data=b"x" * (MAX_BODY + 1)) == (413, "too_large")
    # Beyond 2^32, where a counter of 32 bits would start again.
    huge = await gateway.raw(b"POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 4294967300\r\n\r\n")
    assert huge.split()[1] == b"413"

    async def chunks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 1000

    assert (await gateway.ask("POST", "/api/generate", data=chunks(8)))[0] == 200
    assert stub.body_bytes == 8000
    assert await gateway.refused("POST", "/api/generate", data=chunks(9)) == (411, "length_required")
    # Large headers fill the buffer, so that little of the body is seen.
    pad = {f"X-Pad-{i}": "p" * 1000 for i in range(10)}
    assert await gateway.refused("POST", "/api/generate", data=chunks(5), headers=pad) == (411, "length_required")
    assert stub.answered == 2


async def test_slow_clients_are_sent_away_before_they_reach_an_engine(gateway: Gateway, stub: Stub) -> None:
    body, headers = await asyncio.gather(
        gateway.raw(b"POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nslow"),
        gateway.raw(b"POST /api/generate HTTP/1.1\r\nHo"),
    )
    assert body.split()[1] == headers.split()[1] == b"408"
    assert b'"request_timeout"' in body
    assert stub.answered == 0


@pytest.mark.parametrize(
    "request_", [b"GET / HTTP/1.1\r\nA: " + b"a" * 20000, b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * 100, b"no http"]
)
async def test_what_is_no_fit_request_is_refused(gateway: Gateway, stub: Stub, request_: bytes) -> None:
    assert (await gateway.raw(request_ + b"\r\n\r\n")).split()[1] == b"400"
    assert stub.answered == 0


async def test_without_servers_the_error_says_what_to_do(gateway: Gateway) -> None:
    for path, what in (("/api/chat", "engine"), ("/agents/run-agent", "agent")):
        async with gateway.session.post(gateway.url + path, json={}) as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "2"
            error = (await response.json())["error"]
            assert error["code"] == "unavailable"
            assert f"no {what} is ready; loopctl status" in error["message"]


async def test_an_engine_that_breaks_off_is_a_502(gateway: Gateway) -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/api/version" in await reader.readline():
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(break_off, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await gateway.driver.apply((route("broken", 100, f"127.0.0.1:{port}"),))
        assert await gateway.refused("POST", "/api/generate", json={}) == (502, "bad_gateway")


async def test_it_listens_where_it_should_and_nowhere_else(gateway: Gateway, stub: Stub) -> None:
    """Clients are on loopback in this cut; the host's other addresses must not answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # sends nothing; names the address of the way out
        except OSError:
            pytest.skip("this host has no other address than loopback")
        outside = sock.getsockname()[0]
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection(outside, gateway.config.public_port)


async def test_a_reload_and_a_kill_keep_the_routes(gateway: Gateway, stub: Stub) -> None:
    before = {(s.server, s.address, s.weight) for s in await gateway.driver.observe()}
    await gateway.driver.reload()
    assert {(s.server, s.address, s.weight) for s in await gateway.driver.observe()} == before
    await asyncio.to_thread(gateway.container.kill)
    await asyncio.to_thread(gateway.container.wait)
    await asyncio.to_thread(gateway.container.start)
    await gateway.answers()
    assert {(s.server, s.address, s.weight) for s in await gateway.driver.observe()} == before
    assert (await gateway.ask("POST", "/api/generate", json={}))[0] == 200


async def test_a_stop_lets_a_stream_end(gateway: Gateway, stub: Stub) -> None:
    async with asyncio.timeout(30), gateway.session.post(f"{gateway.url}/api/chat", json={}) as response:
        await stub.streaming.wait()
        stopping = asyncio.create_task(asyncio.to_thread(gateway.container.stop, timeout=20))
        while True:  # until the listener is closed, so that the stop has begun
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", gateway.config.public_port)
            except ConnectionRefusedError:
                break
            writer.close()
            await asyncio.sleep(0.02)
        stub.hold.set()
        assert await response.text() == "begin end"
        await stopping
