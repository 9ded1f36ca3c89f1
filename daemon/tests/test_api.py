"""The control API of a whole loopd over real sockets, on the in-memory engine and gateway."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from openapi_spec_validator import validate

from loopd.api.audit import AuditRoutes
from loopd.api.auth import AuthRoutes
from loopd.api.backups import BackupRoutes
from loopd.api.events import EventRoutes
from loopd.api.host import HostRoutes
from loopd.api.jobs import JobRoutes
from loopd.api.releases import ReleaseRoutes
from loopd.api.rollouts import RolloutRoutes
from loopd.api.sandboxes import SandboxRoutes
from loopd.api.schema import ErrorBody, EventView, StatusView
from loopd.api.users import UserRoutes
from loopd.app import Host, run
from loopd.config import Settings
from loopd.engine import InMemoryEngine
from loopd.notify import Notifier
from loopd.sandbox import Broker
from running_loopd import IMAGES, Gateway, free_ports


@dataclass
class Daemon:
    settings: Settings
    engine: InMemoryEngine
    session: aiohttp.ClientSession
    unix: aiohttp.ClientSession
    broker: aiohttp.ClientSession
    token: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.control_port}"

    @property
    def auth(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    home = Path(tempfile.mkdtemp(prefix="lb"))
    ports = set(free_ports(12))
    settings = Settings(
        home=home / "home",
        run_dir=home / "run",
        public_port=ports.pop(),
        internal_port=ports.pop(),
        control_port=ports.pop(),
        max_body_bytes=100_000,
        relist_s=0.2,
        sandbox={"warm": 0},
    )
    engine = InMemoryEngine(images={tag: f"sha256:{tag}" for tag in IMAGES.tags()})
    stop = asyncio.Event()
    ended = asyncio.create_task(run(settings, IMAGES, Host(engine, Gateway(), Notifier("")), stop))
    socket_path = settings.run_dir / "control.sock"
    async with asyncio.timeout(10):
        while not (settings.run_dir / "broker" / "broker.sock").exists():
            assert not ended.done(), ended
            await asyncio.sleep(0.01)
    async with (
        aiohttp.ClientSession() as session,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket_path))) as unix,
        aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(settings.run_dir / "broker" / "broker.sock"))
        ) as broker,
    ):
        token = (settings.home / "control.token").read_text().strip()
        yield Daemon(settings, engine, session, unix, broker, token)
    stop.set()
    async with asyncio.timeout(10):
        await ended
    shutil.rmtree(home)


async def test_status_needs_the_token_and_tells_the_truth(daemon: Daemon) -> None:
    async with daemon.session.get(f"{daemon.url}/v1/status") as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert ErrorBody.model_validate_json(await response.read()).error.code == "unauthenticated"
    async with daemon.session.get(f"{daemon.url}/v1/status", headers=daemon.auth) as response:
        status = StatusView.model_validate_json(await response.read())
    assert (status.state, status.releases) == ("starting", [])
    assert "models/incoming" in status.reason


async def test_a_users_token_opens_what_its_role_may(daemon: Daemon) -> None:
    """And the control token is an admin, as it always was."""

    async def status(method: str, path: str, token: str, **body: object) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        async with daemon.session.request(method, daemon.url + path, headers=headers, json=body or None) as response:
            return response.status

    async def token(role: str) -> str:
        body = {"user": "ann", "role": role, "ttl_s": 600}
        async with daemon.session.post(f"{daemon.url}/v1/tokens", headers=daemon.auth, json=body) as response:
            assert response.status == 201
            assert response.headers["Cache-Control"] == "no-store"
            return str((await response.json())["token"])

    tokens = [await token(role) for role in ("viewer", "user", "operator", "admin")] + [daemon.token]
    asked = [await status("GET", "/v1/status", one) for one in tokens]
    assert asked == [200, 200, 200, 200, 200]
    acted = [await status("POST", "/v1/releases/rollback", one) for one in tokens]
    assert acted == [403, 403, 409, 409, 409]
    listed = [await status("GET", "/v1/tokens", one) for one in tokens]
    assert listed == [403, 403, 403, 200, 200]
    backed = [await status("POST", "/v1/backups", one) for one in tokens]
    assert backed == [403, 403, 403, 201, 201]
    issued = [await status("POST", "/v1/tokens", one, user="eve", role="admin", ttl_s=600) for one in tokens]
    assert issued == [403, 403, 403, 201, 201], "nobody makes a token that may more than its maker"


async def test_the_gateways_socket_answers_logins_and_nothing_else(daemon: Daemon) -> None:
    """What the gateway could be made to ask, it may ask: this is all of it."""
    path = daemon.settings.run_dir / "gateway" / "auth.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        for closed in ("/v1/status", "/v1/tokens", "/v1/users", "/metrics", "/healthz", "/openapi.json", "/v1/exec"):
            async with session.get(f"http://loopd{closed}", headers=daemon.auth) as response:
                assert response.status == 404
        async with session.get("http://loopd/.well-known/jwks.json") as response:
            assert response.status == 200
        async with session.get("http://loopd/auth/whoami", headers=daemon.auth) as response:
            assert response.status == 401, "the control token is no way in from outside"
        async with session.post("http://loopd/auth/login", data=b"x" * 9000) as response:
            assert response.status == 413


async def test_roots_socket_needs_no_token_and_is_roots_alone(daemon: Daemon) -> None:
    path = daemon.settings.run_dir / "control.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    async with daemon.unix.get("http://loopd/v1/status") as response:
        assert response.status == 200


async def test_the_agents_socket_lends_sandboxes_and_nothing_else(daemon: Daemon) -> None:
    for path in ("/v1/status", "/v1/releases", "/metrics", "/v1/exec"):
        async with daemon.broker.get(f"http://loopd{path}") as response:
            assert response.status == 404
    async with daemon.broker.delete(f"http://loopd/v1/leases/{'0' * 32}") as response:
        assert response.status == 404


async def test_the_document_is_valid_and_names_every_route(daemon: Daemon) -> None:
    async with daemon.session.get(f"{daemon.url}/openapi.json") as response:
        document = await response.json()
    validate(document)
    for path, operations in document["paths"].items():
        concrete = (
            path.replace("{reference}", "none").replace("{id}", "1").replace("{lease}", "0" * 32).replace("{user}", "u")
        )
        concrete = concrete.replace("{name}", "nobody").replace("{job}", "job-000000000000")
        for method in operations:
            async with daemon.session.request(method, daemon.url + concrete) as response:
                assert response.status not in (404, 405), f"{method} {path} is in the document and not in the routes"
    documented = {op["operationId"] for ops in document["paths"].values() for op in ops.values()}
    groups = (
        HostRoutes,
        ReleaseRoutes,
        RolloutRoutes,
        EventRoutes,
        SandboxRoutes,
        BackupRoutes,
        AuthRoutes,
        UserRoutes,
        AuditRoutes,
        JobRoutes,
    )
    named = [(group, name) for group in groups for name in dir(group) if not name.startswith("_")]
    handlers = {name for group, name in named if asyncio.iscoroutinefunction(getattr(group, name))}
    assert handlers == documented


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/nothing", None, 404, "not_found"),
        ("GET", "/v1/exec", None, 405, "method_not_allowed"),
        ("GET", "/v1/releases/none", None, 404, "not_found"),
        ("POST", "/v1/releases/none/promote", None, 404, "not_found"),
        ("POST", "/v1/releases/rollback", None, 409, "no_rollback"),
        ("GET", "/v1/rollouts/99", None, 404, "not_found"),
        ("GET", "/v1/events?after=x", None, 422, "validation"),
        ("GET", "/v1/events?limit=0", None, 422, "validation"),
        ("POST", "/v1/exec", b"{}", 422, "validation"),
        ("POST", "/v1/exec", b"not json", 422, "validation"),
        ("POST", "/v1/exec", b'{"argv": ["x"], "unknown": 1}', 422, "validation"),
        ("POST", "/v1/exec", b"x" * ((1 << 20) - 1), 413, "request_entity_too_large"),
        ("DELETE", "/v1/leases/" + "0" * 32, None, 404, "not_found"),
    ],
)
async def test_each_bad_request_gets_its_status_and_a_sentence(
    daemon: Daemon, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    async with daemon.session.request(method, daemon.url + path, data=body, headers=daemon.auth) as response:
        error = ErrorBody.model_validate_json(await response.read()).error
        assert (response.status, error.code) == (status, code)
        assert error.message


async def test_with_no_sandbox_free_the_answer_is_503(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Broker.acquire
    monkeypatch.setattr(Broker, "acquire", lambda self, *args, **more: original(self, *args, **more, wait_s=0.05))
    body = {"session": "s"}
    async with daemon.broker.post("http://loopd/v1/leases", json=body) as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "sandboxes_busy"


async def test_events_are_paged_and_followed_from_where_one_left(daemon: Daemon) -> None:
    async with daemon.session.get(f"{daemon.url}/v1/events?limit=1", headers=daemon.auth) as response:
        page = await response.json()
    assert [event["event"] for event in page["events"]] == ["loopd.started"]
    headers = daemon.auth | {"Last-Event-ID": str(page["next_after"])}
    async with daemon.session.get(f"{daemon.url}/v1/events/stream", headers=headers) as response:
        assert response.content_type == "text/event-stream"
        async with asyncio.timeout(5):
            async for line in response.content:
                if line.startswith(b"data: "):
                    event = EventView.model_validate(json.loads(line[6:]))
                    break
    assert event.seq == page["next_after"] + 1
    assert event.event == "unit.started"


async def test_the_correlation_id_is_kept_or_made(daemon: Daemon) -> None:
    given = daemon.auth | {"X-Correlation-Id": "my-own-id-1"}
    async with daemon.session.get(f"{daemon.url}/v1/status", headers=given) as response:
        assert response.headers["X-Correlation-Id"] == "my-own-id-1"
    bad = daemon.auth | {"X-Correlation-Id": "a b"}
    async with daemon.session.get(f"{daemon.url}/v1/status", headers=bad) as response:
        assert response.headers["X-Correlation-Id"] not in ("", "a b")


async def test_metrics_carry_the_projects_names(daemon: Daemon) -> None:
    async with daemon.session.get(f"{daemon.url}/metrics", headers=daemon.auth) as response:
        text = await response.text()
    assert "loopbox_ledger_entries" in text
    assert "process_resident_memory_bytes" in text


async def test_a_second_loopd_on_the_same_home_is_refused(daemon: Daemon) -> None:
    """Two daemons on one state would undo each other's work."""
    with pytest.raises(Exception, match="another loopd runs"):
        await run(daemon.settings, IMAGES, Host(daemon.engine, Gateway(), Notifier("")), asyncio.Event())


async def test_a_taken_port_is_named() -> None:
    home = Path(tempfile.mkdtemp(prefix="lb"))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        settings = Settings(home=home / "home", run_dir=home / "run", control_port=sock.getsockname()[1])
        engine = InMemoryEngine()
        with pytest.raises(Exception, match="control_port"):
            await run(settings, IMAGES, Host(engine, Gateway(), Notifier("")), asyncio.Event())
    assert engine.instances == {}
    shutil.rmtree(home)


async def test_an_engine_that_is_down_is_said_and_loopd_answers_all_the_same(daemon: Daemon) -> None:
    daemon.engine.down = True
    async with daemon.session.get(f"{daemon.url}/v1/status", headers=daemon.auth) as response:
        status = StatusView.model_validate_json(await response.read())
    assert status.state == "down"
    assert "container engine" in status.reason
    daemon.engine.down = False
