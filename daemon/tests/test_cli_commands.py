"""The commands against a loopd and a gateway that speak the real schema over a real socket and real ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from loopd.api.schema import (
    ErrorBody,
    ErrorDetail,
    EventList,
    EventView,
    ExecRequest,
    ExecResult,
    HealthView,
    ReleaseList,
    ReleaseView,
    RolloutList,
    RolloutView,
    SandboxView,
    ServiceView,
    StatusView,
    StepView,
)
from loopd.cli import client as client_module
from loopd.cli import complete as completion
from loopd.cli import follow, progress, reference, releases, wire
from loopd.cli import status as status_module
from loopd.cli.exits import ExitCode
from loopd.cli.main import app
from loopd.cli.screen import Screen
from loopd.cli.session import open_client

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TOKEN = "t0ken-of-at-least-thirty-two-characters"
DAEMON = Path(__file__).parents[1]
DEADLINE_S = 20.0


def service(name: str, **fields: Any) -> ServiceView:  # Any: whichever fields the test is about
    ready = {
        "name": name,
        "state": "running",
        "ready": True,
        "reason": "",
        "container": "0123456789ab",
        "image": "sha256:image",
        "address": "172.17.0.2",
        "started_at": NOON,
        "restarts": 0,
        "last_restart_cause": None,
        "last_restart_at": None,
    }
    return ServiceView.model_validate({**ready, **fields})


def release(name: str, digit: str, **fields: Any) -> ReleaseView:  # Any: as above
    idle = {
        "id": digit * 64,
        "short": digit * 12,
        "name": name,
        "architecture": "llama",
        "size_bytes": 93 << 20,
        "num_ctx": 2048,
        "gguf_sha256": "f" * 64,
        "engine_image": "sha256:engine",
        "source": f"{name}.gguf",
        "created_at": NOON,
        "role": "idle",
        "share_percent": 0,
        "weight": None,
        "sessions": 0,
        "container": None,
        "ready": False,
    }
    return ReleaseView.model_validate({**idle, **fields})


def step(name: str, state: str, error: str = "") -> StepView:
    begun = None if state == "planned" else NOON
    finished = NOON + timedelta(seconds=2) if state in ("done", "failed") else None
    return StepView.model_validate(
        {"step": name, "state": state, "begun_at": begun, "finished_at": finished, "error": error}
    )


def rollout(number: int, phase: str, *steps: StepView, reason: str = "beta.gguf came in", **fields: Any) -> RolloutView:
    ended = phase in ("promoted", "rolled_back", "superseded")
    body = {
        "id": number,
        "kind": "rollout",
        "candidate": "b" * 12,
        "candidate_name": "beta",
        "champion": "a" * 12,
        "phase": phase,
        "policy": "instant",
        "strategy": "beside",
        "reason": reason,
        "created_at": NOON,
        "finished_at": NOON + timedelta(seconds=12) if ended else None,
        "steps": list(steps),
    }
    return RolloutView.model_validate({**body, **fields})  # Any: as above


def event(seq: int, name: str = "unit.started", subject: str = "gateway", **fields: Any) -> EventView:
    body = {
        "seq": seq,
        "at": NOON,
        "event": name,
        "subject": subject,
        "cause": "it was absent",
        "correlation_id": "",
        "detail": {},
        "hash": "0" * 64,
    }
    return EventView.model_validate({**body, **fields})  # Any: as above


ALPHA = release(
    "alpha", "a", role="champion", share_percent=100, weight=256, sessions=3, container="0123456789ab", ready=True
)
BETA = release("beta", "b")
PROMOTION = [
    rollout(7, "waiting"),
    rollout(7, "active", step("start", "begun"), step("load", "planned")),
    rollout(7, "active", step("start", "done"), step("load", "begun")),
    rollout(7, "promoted", step("start", "done"), step("load", "done"), reason="all steps done"),
]
REVERSAL = [
    rollout(7, "active", step("start", "done"), step("check", "begun")),
    rollout(7, "aborting", step("check", "failed", "it babbled"), reason="it babbled"),
    rollout(7, "rolled_back", step("check", "failed", "it babbled"), reason="it babbled"),
]


@dataclass
class World:
    """What the stand-in loopd and gateway know, and what they were asked."""

    home: Path
    run_dir: Path
    control_port: int
    public_port: int
    status: StatusView
    releases: list[ReleaseView] = field(default_factory=lambda: [BETA, ALPHA])
    rollouts: dict[int, list[RolloutView]] = field(default_factory=dict)  #: views in turn; the last one stays
    queued: list[RolloutView] = field(default_factory=list)  #: appear in the list once it was asked for
    events: list[EventView] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)  #: by connection: entries before it breaks
    refused_from: int = 1 << 53  #: following after this entry is refused
    run: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  #: Any: JSON of the agent's stream
    result: ExecResult | None = None
    error: tuple[int, str, str] | None = None  #: status, code and message of the next answers
    raw: bytes | None = None  #: body of the next answers
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)  #: Any: JSON
    gate: threading.Event = field(default_factory=threading.Event)  #: the agent waits for it before its second event

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LOOPBOX_HOME": str(self.home),
            "LOOPBOX_RUN_DIR": str(self.run_dir),
            "LOOPBOX_CONTROL_PORT": str(self.control_port),
            "LOOPBOX_PUBLIC_PORT": str(self.public_port),
            "LOOPBOX_AUTH__MODE": "off",  # test_cli_doors.py is about tokens
        }


class FakeLoopd:
    """The control API over World."""

    def __init__(self, world: World) -> None:
        self.world = world

    def app(self, *, locked: bool) -> web.Application:
        @web.middleware
        async def watch(
            request: web.Request, handler: Callable[[web.Request], Any]
        ) -> web.StreamResponse:  # Any: aiohttp's own
            world = self.world
            world.asked.append(f"{request.method} {request.raw_path}")
            world.headers.append(dict(request.headers))
            if locked and request.path != "/healthz" and request.headers.get("Authorization") != f"Bearer {TOKEN}":
                return refuse(401, "unauthenticated", "the control API needs a token")
            if world.error:
                return refuse(*world.error)
            if world.raw is not None:
                return web.Response(body=world.raw, content_type="application/json")
            answer: web.StreamResponse = await handler(request)
            return answer

        made = web.Application(middlewares=[watch])
        made.router.add_get("/healthz", self.health)
        made.router.add_get("/v1/status", self.status)
        made.router.add_get("/v1/releases", self.releases)
        made.router.add_post("/v1/releases/rollback", self.ask_rollout)
        made.router.add_get("/v1/releases/{reference}", self.release)
        made.router.add_post("/v1/releases/{reference}/promote", self.ask_rollout)
        made.router.add_get("/v1/rollouts", self.rollouts)
        made.router.add_get("/v1/rollouts/{id}", self.rollout)
        made.router.add_get("/v1/events", self.events)
        made.router.add_get("/v1/events/stream", self.stream)
        made.router.add_post("/v1/exec", self.execute)
        return made

    async def health(self, _: web.Request) -> web.Response:
        return body(HealthView(version="9.9.9"))

    async def status(self, _: web.Request) -> web.Response:
        return body(self.world.status)

    async def releases(self, _: web.Request) -> web.Response:
        return body(ReleaseList(releases=self.world.releases))

    async def release(self, request: web.Request) -> web.Response:
        wanted = request.match_info["reference"]
        for view in self.world.releases:
            if wanted == view.name or view.id.startswith(wanted):
                return body(view)
        return refuse(404, "not_found", f"there is no release {wanted!r}; `loopctl releases list` shows them")

    async def ask_rollout(self, _: web.Request) -> web.Response:
        return body(next(iter(self.world.rollouts.values()))[0], 202)

    async def rollouts(self, _: web.Request) -> web.Response:
        found = [views[0] for views in self.world.rollouts.values()]
        for view in self.world.queued:
            self.world.rollouts[view.id] = [view]
        self.world.queued = []
        return body(RolloutList(rollouts=sorted(found, key=lambda v: -v.id)))

    async def rollout(self, request: web.Request) -> web.Response:
        views = self.world.rollouts.get(int(request.match_info["id"]))
        if not views:
            return refuse(404, "not_found", "there is no such rollout")
        return body(views.pop(0) if len(views) > 1 else views[0])

    async def events(self, request: web.Request) -> web.Response:
        after, limit = int(request.query["after"]), int(request.query["limit"])
        found = [e for e in self.world.events if e.seq > after][:limit]
        return body(EventList(events=found, next_after=found[-1].seq if found else after))

    async def stream(self, request: web.Request) -> web.StreamResponse:
        many = self.world.streams.pop(0) if self.world.streams else 1000
        after = int(request.headers["Last-Event-ID"])
        if after >= self.world.refused_from:
            return refuse(429, "too_many_streams", "64 clients follow the ledger already; close one")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": loopd\n\n")
        for entry in [e for e in self.world.events if e.seq > after][:many]:
            text = f"id: {entry.seq}\nevent: {entry.event}\ndata: {entry.model_dump_json()}\n\n"
            await response.write(text.encode())
        if many < 1000 and request.transport:
            request.transport.close()  # what was written arrives; the chunked answer has no end
        else:
            await asyncio.Event().wait()  # until the client goes
        return response

    async def execute(self, request: web.Request) -> web.Response:
        asked = ExecRequest.model_validate_json(await request.read())
        self.world.bodies.append(asked.model_dump())
        assert self.world.result
        return body(self.world.result)


class FakeGateway:
    """The gateway with an agent behind it, over World."""

    def __init__(self, world: World) -> None:
        self.world = world

    def app(self) -> web.Application:
        made = web.Application()
        made.router.add_get("/gateway/health", self.ready)
        made.router.add_post("/agents/run-agent", self.answer)
        return made

    async def ready(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "engines": 1, "agents": 1})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.world.bodies.append(await request.json())
        if self.world.raw is not None:
            return web.Response(status=503, body=self.world.raw, content_type="text/html")
        if self.world.error:
            return refuse(*self.world.error)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for at, (name, data) in enumerate(self.world.run):
            if at == 1:
                await asyncio.to_thread(self.world.gate.wait, DEADLINE_S)
            await response.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
        return response


def body(model: BaseModel, status: int = 200) -> web.Response:
    return web.Response(text=model.model_dump_json(), status=status, content_type="application/json")


def refuse(status: int, code: str, message: str) -> web.Response:
    detail = ErrorDetail(code=code, message=message, timestamp=NOON)
    answer = body(ErrorBody(error=detail), status)
    answer.headers["X-Correlation-Id"] = "c0ffee00"
    return answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def serving(world: World, *, unix: bool = True, tcp: bool = True) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:

        async def runner(made: web.Application) -> web.AppRunner:
            runner = web.AppRunner(made, handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            return runner

        loopd = FakeLoopd(world)
        if unix:
            await web.UnixSite(await runner(loopd.app(locked=False)), str(world.run_dir / "control.sock")).start()
        if tcp:
            await web.TCPSite(await runner(loopd.app(locked=True)), "127.0.0.1", world.control_port).start()
        await web.TCPSite(await runner(FakeGateway(world).app()), "127.0.0.1", world.public_port).start()
        yield


@contextlib.contextmanager
def started(world: World, **sites: bool) -> Iterator[None]:
    """Serve from a thread, so that commands run in the test's own."""
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with serving(world, **sites):
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(DEADLINE_S)
    try:
        yield
    finally:
        world.gate.set()
        loop.call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_S)
        loop.close()


@pytest.fixture
def absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A host on which nothing runs."""
    run_dir = Path(tempfile.mkdtemp(prefix="lb-"))  # short: a socket's path has 108 bytes at most
    status = StatusView(
        instance="loopbox",
        version="9.9.9",
        state="serving",
        reason="",
        started_at=NOON,
        public_url="http://127.0.0.1:8080",
        home=str(tmp_path),
        services=[service("gateway"), service("agent"), service("engine-aaaaaaaaaaaa")],
        releases=[ALPHA],
        rollout=None,
        sandboxes=SandboxView(warm=2, leased=1, most=16),
    )
    world = World(home=tmp_path, run_dir=run_dir, control_port=free_port(), public_port=free_port(), status=status)
    world.gate.set()
    for name in [name for name in os.environ if name.startswith("LOOPBOX_")]:
        monkeypatch.delenv(name)
    for name, value in world.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(progress, "TICK_S", 0.01)
    monkeypatch.setattr(follow, "FIRST_WAIT_S", 0.01)
    yield world
    shutil.rmtree(run_dir)


@pytest.fixture
def world(absent: World) -> Iterator[World]:
    """A host on which everything runs, with the socket and the token."""
    (absent.home / "control.token").write_text(TOKEN + "\n")
    with started(absent):
        yield absent


def loopctl(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, catch_exceptions=False)


def spawn(world: World, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:  # Any: Popen's own
    """Start the real program, with Ctrl-C as a terminal has it even where these tests run in the background."""
    options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    code = "import sys; from loopd.cli.main import main; sys.argv[0] = 'loopctl'; main()"
    environment = {**os.environ, **world.environment, "PYTHONPATH": str(DAEMON), "COLUMNS": "200"}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, **options)


def complete(world: World, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    pipe = subprocess.PIPE
    with spawn(world, *arguments, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        out, err = process.communicate(stdin, timeout=DEADLINE_S)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def row(text: str, start: str) -> str:
    """Return the line that starts so."""
    return next(line for line in text.splitlines() if line.startswith(start))


# status


def test_status_tells_services_releases_and_pool(world: World) -> None:
    """Each fact of the view has to reach the screen."""
    cause = "its container ended with code 137"
    world.status = world.status.model_copy(
        update={
            "services": [
                service("gateway"),
                service(
                    "agent", ready=False, reason="starting", restarts=2, last_restart_cause=cause, last_restart_at=NOON
                ),
                service("engine-x", state="stopped", ready=False, reason="its container is stopped"),
                service("engine-y", state="created", ready=False, reason="r"),
                service("engine-z", state="absent", ready=False, reason="r", container=None),
            ],
            "rollout": PROMOTION[2],
        }
    )
    result = loopctl("status")
    assert result.exit_code == 0
    text = result.stdout
    assert text.splitlines()[0] == "✔ loopbox is serving"
    assert re.search(r"✔ ready +0123456789ab +0 +-$", row(text, "gateway"))
    assert re.search(rf"● not ready +0123456789ab +2 +{cause} \(\d+ .* ago\)$", row(text, "agent"))
    assert "✖ stopped" in row(text, "engine-x")
    assert "● starting" in row(text, "engine-y")
    assert "○ absent" in row(text, "engine-z")
    assert re.search(r"alpha +✔ champion +100 % +256 +3 +93.0 MiB$", row(text, "a" * 12))
    assert "● rollout 7: beta" in text
    assert re.search(r"✔ +start +done +2.0 s", text)
    assert "sandboxes: 2 warm, 1 leased, at most 16" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("state", ["degraded", "starting", "down"])
def test_status_exits_1_when_it_does_not_serve(world: World, state: str) -> None:
    """A health check in a script goes by the exit code; the reason is in words."""
    world.status = world.status.model_copy(update={"state": state, "reason": "agent: its container is stopped"})
    result = loopctl("status")
    assert result.exit_code == ExitCode.FAILED
    assert f"loopbox is {state}: agent: its container is stopped" in result.stdout
    assert loopctl("status", "--json").exit_code == ExitCode.FAILED


def test_status_as_json_is_the_schema(world: World) -> None:
    """Programs parse what the API's document describes."""
    result = loopctl("status", "--json")
    assert StatusView.model_validate_json(result.stdout) == world.status


def test_without_loopd_status_says_what_was_not_harmed_and_what_to_do(absent: World) -> None:
    """loopd may be away while requests are still answered: the operator must not panic."""
    result = loopctl("status")
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "connection refused" in result.stderr
    assert "go on serving without it" in result.stderr
    assert "`make up`" in result.stderr
    assert "are not answered either [unreachable]" in result.stderr
    with started(absent, unix=False, tcp=False):
        assert "are still answered [unreachable]" in loopctl("status").stderr


def test_a_newer_loopd_is_understood(world: World) -> None:
    """loopd is upgraded first; unknown fields at any depth must not break the older loopctl."""
    raw = json.loads(world.status.model_dump_json())
    raw["weather"] = "fine"
    raw["services"][0]["mood"] = {"deep": [1]}
    world.raw = json.dumps(raw).encode()
    result = loopctl("status", "--json")
    assert result.exit_code == 0
    assert StatusView.model_validate_json(result.stdout) == world.status


@pytest.mark.parametrize("raw", [b"<html>", b"{}", b"[1]", b"\xff"])
def test_an_answer_that_is_none_of_ours_is_said(world: World, raw: bytes) -> None:
    """Another server on the port, or a schema too new, must not end in a traceback."""
    world.raw = raw
    result = loopctl("status")
    assert result.exit_code == ExitCode.FAILED
    assert "the answer to GET /v1/status cannot be read" in result.stderr
    assert "[answer_not_understood]" in result.stderr


def test_an_endless_answer_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign server must not fill the memory."""
    monkeypatch.setattr(wire, "MAX_ANSWER_BYTES", 1000)
    world.raw = b" " * 70_000
    result = loopctl("status")
    assert result.exit_code == ExitCode.FAILED
    assert "larger than" in result.stderr


def test_an_answer_that_never_comes_is_not_waited_for(absent: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loopd that hangs must not hang loopctl."""
    monkeypatch.setattr(client_module.Client._call, "__kwdefaults__", {"body": None, "timeout_s": 0.2})
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(absent.run_dir / "control.sock"))
        silent.listen()
        result = loopctl("releases", "list")
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "did not answer GET /v1/releases within 0.2 s" in result.stderr


def test_a_connection_that_breaks_is_said(absent: World) -> None:
    """loopd killed in the middle of an answer."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(absent.run_dir / "control.sock"))
        server.listen()

        def hang_up() -> None:
            with contextlib.suppress(OSError):  # until the server is shut down
                while True:
                    server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        result = loopctl("releases", "list")
        server.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE_S)
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "loopd broke off GET /v1/releases" in result.stderr


def test_watching_status_shows_changes_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of the same picture every second helps nobody; a loopd that is away is said once."""
    degraded = world.status.model_copy(update={"state": "degraded", "reason": "agent: x"})
    first = world.status
    looks = 0

    def next_look(_: float) -> None:
        nonlocal looks
        looks += 1
        world.status = first if looks < 3 else degraded
        world.raw = None
        if looks == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr("loopd.cli.status.time.sleep", next_look)
    result = loopctl("status", "--watch", "--json")
    assert result.exit_code == ExitCode.INTERRUPTED
    assert [json.loads(line)["state"] for line in result.stdout.splitlines()] == ["serving", "degraded"]
    looks = 0
    world.status = first
    plain = loopctl("status", "--watch")
    assert plain.stdout.count("loopbox is serving") == 1
    assert plain.stdout.count("loopbox is degraded: agent: x") == 1


@pytest.mark.parametrize("fancy", [False, True])
def test_watching_status_outlives_loopd(
    absent: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, fancy: bool
) -> None:
    """`--watch` is left open during an upgrade of loopd."""
    monkeypatch.setattr(status_module, "open_screen", lambda: Screen(fancy=fancy, terminal=fancy))
    with contextlib.ExitStack() as running:
        running.enter_context(started(absent))
        looks = 0

        def next_look(_: float) -> None:
            nonlocal looks
            looks += 1
            if looks == 1:
                running.close()
            if looks == 4:
                raise KeyboardInterrupt

        monkeypatch.setattr("loopd.cli.status.time.sleep", next_look)
        with pytest.raises(KeyboardInterrupt):
            status_module.status(watch=True)
    captured = capsys.readouterr()
    assert "loopbox is serving" in captured.out
    # rich wraps the line at the terminal's width
    away = " ".join((captured.out if fancy else captured.err).split())
    assert away.count("does not answer") == 1


# how loopd is reached


def test_the_socket_is_preferred_and_needs_no_token(world: World) -> None:
    """Root has the socket; the token need not be sent where it is not needed."""
    assert loopctl("status").exit_code == 0
    assert all("Authorization" not in headers for headers in world.headers)


def test_without_the_socket_the_token_opens_the_port(absent: World) -> None:
    """A user who may read the token but not the socket; a socket left by a killed loopd."""
    (absent.home / "control.token").write_text(TOKEN + "\n")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(absent.run_dir / "control.sock"))
    with started(absent, unix=False):
        assert loopctl("status").exit_code == 0
    assert absent.headers[-1]["Authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"two\nlines"])
def test_without_a_token_the_refusal_says_where_it_would_be(absent: World, content: bytes | None) -> None:
    """`loopctl status` without sudo is everybody's first mistake."""
    path = absent.home / "control.token"
    if content is not None:
        path.write_bytes(content)
    with started(absent, unix=False):
        result = loopctl("releases", "list")
    assert result.exit_code == ExitCode.REFUSED
    assert str(path) in result.stderr
    assert "sudo loopctl" in result.stderr
    assert "[unauthenticated]" in result.stderr


def test_a_wrong_token_is_refused_in_loopds_words(absent: World) -> None:
    """The token of another home."""
    (absent.home / "control.token").write_text("wrong" * 10)
    with started(absent, unix=False):
        result = loopctl("releases", "list")
    assert result.exit_code == ExitCode.REFUSED
    assert "the control API needs a token [unauthenticated]" in result.stderr
    assert "wrong" not in result.stderr


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, ExitCode.NOT_FOUND), (409, ExitCode.CONFLICT), (422, ExitCode.FAILED), (500, ExitCode.FAILED)],
)
def test_refusals_have_message_code_and_exit_code(world: World, status: int, code: ExitCode) -> None:
    """Scripts branch on the exit code, people read the text, both can quote the code."""
    world.error = (status, "some_code", "the reason\x1b[2J in words")
    result = loopctl("rollouts", "list")
    assert result.exit_code == code
    assert result.stderr.startswith("error: the reason\\u001b[2J in words")
    assert "[some_code]" in result.stderr
    assert ("c0ffee00" in result.stderr) == (status == 500)
    assert result.stdout == ""


# releases and rollouts


def test_releases_are_listed_and_shown(world: World) -> None:
    """What a person needs to choose one for a promotion."""
    text = loopctl("releases", "list").stdout
    assert re.search(r"beta +○ idle +0 % +- +0 ", row(text, "b" * 12))
    assert ReleaseList.model_validate_json(loopctl("releases", "list", "--json").stdout).releases == [BETA, ALPHA]
    shown = loopctl("releases", "show", "alpha").stdout
    assert "champion, 100 % of the traffic (gateway weight 256, 3 in flight)" in shown
    assert "a" * 64 in shown
    assert ReleaseView.model_validate_json(loopctl("releases", "show", "aaaa", "--json").stdout) == ALPHA
    world.releases = []
    assert "drop a GGUF file" in loopctl("releases", "list").stdout


def test_a_release_that_is_not_there(world: World) -> None:
    """Exit 4 and the command that lists what there is."""
    result = loopctl("releases", "show", "gamma")
    assert result.exit_code == ExitCode.NOT_FOUND
    assert "`loopctl releases list`" in result.stderr


@pytest.mark.parametrize("text", ["..", ".", "a/b", "", "x" * 81, "a\nb", "ü"])
def test_a_reference_cannot_leave_its_place_in_the_url(world: World, text: str) -> None:
    """`releases promote ..` would otherwise ask for another path."""
    assert loopctl("releases", "show", text).exit_code == ExitCode.USAGE
    assert world.asked == []


def test_a_name_with_a_space_is_quoted(world: World) -> None:
    """File names may have spaces."""
    world.releases = [release("my model", "c")]
    assert loopctl("releases", "show", "my model").exit_code == 0
    assert world.asked == ["GET /v1/releases/my%20model"]


@pytest.mark.parametrize("command", [["promote", "beta"], ["rollback"]])
def test_promoting_waits_and_shows_each_step(world: World, command: list[str]) -> None:
    """The default is to stay until it is known how it ended."""
    world.rollouts = {7: list(PROMOTION)}
    result = loopctl("releases", *command)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "beta (bbbbbbbbbbbb), in the place of aaaaaaaaaaaa" in lines[0]
    told = [line.split("  ", 1)[1].split()[:2] for line in lines[1:-1]]
    assert told == [["start", "begun"], ["start", "done"], ["load", "begun"], ["load", "done"]]
    assert lines[-1] == "✔ promoted: beta (bbbbbbbbbbbb) takes all traffic after 12 s"


def test_promoting_without_waiting(world: World) -> None:
    """For scripts that watch elsewhere."""
    world.rollouts = {7: list(PROMOTION)}
    result = loopctl("releases", "promote", "beta", "--no-wait")
    assert result.exit_code == 0
    assert "`loopctl rollouts watch 7` shows it" in result.stdout
    assert RolloutView.model_validate_json(loopctl("releases", "rollback", "--no-wait", "--json").stdout).id == 7


def test_a_watcher_that_leaves_says_that_the_rollout_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the picture, not the rollout."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(releases, "watch", interrupted)
    world.rollouts = {7: list(PROMOTION)}
    result = loopctl("releases", "promote", "beta")
    assert result.exit_code == ExitCode.INTERRUPTED
    assert "goes on without being watched; `loopctl rollouts watch 7`" in result.stderr


def test_a_rollout_that_is_turned_back_exits_1_and_says_who_serves(world: World) -> None:
    """`rollouts watch && deploy` must not go on."""
    world.rollouts = {7: list(REVERSAL)}
    result = loopctl("rollouts", "watch", "7")
    assert result.exit_code == ExitCode.FAILED
    assert "check     failed   2.0 s: it babbled" in result.stdout
    assert result.stdout.splitlines()[-1] == "✖ rolled back after 12 s: it babbled; aaaaaaaaaaaa serves as before"


def test_watching_as_json_writes_each_change_on_a_line(world: World) -> None:
    """Programs follow a rollout line by line."""
    world.rollouts = {7: list(PROMOTION)}
    result = loopctl("rollouts", "watch", "7", "--json")
    views = [RolloutView.model_validate_json(line) for line in result.stdout.splitlines()]
    assert [view.phase for view in views] == ["waiting", "active", "active", "promoted"]


def test_watch_finds_the_rollout_under_way(world: World) -> None:
    """Nobody knows the number."""
    world.rollouts = {8: [rollout(8, "waiting")], 7: [PROMOTION[2], PROMOTION[3]], 6: [rollout(6, "promoted")]}
    result = loopctl("rollouts", "watch")
    assert result.exit_code == 0
    assert result.stdout.startswith("rollout 7:")


def test_watch_waits_for_the_next_rollout(world: World) -> None:
    """Started before the file is copied, as the README says."""
    world.rollouts = {6: [rollout(6, "promoted")]}
    world.queued = [rollout(7, "superseded", reason="release cccccccccccc came while it waited", champion=None)]
    result = loopctl("rollouts", "watch")
    assert "waiting for the next" in result.stderr
    assert result.exit_code == ExitCode.FAILED
    assert "superseded after 12 s: release cccccccccccc came" in result.stdout


def test_watch_outlives_broken_streams(world: World) -> None:
    """A restart of loopd in the middle of a rollout: the watcher is there when it returns."""
    world.rollouts = {7: [PROMOTION[0], *[PROMOTION[1]] * 6, PROMOTION[3]]}
    world.streams = [0, 0]
    result = loopctl("rollouts", "watch", "7")
    assert result.exit_code == 0
    assert result.stderr.count("trying again") == 2


def test_the_live_picture_ends_with_the_end(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal the last picture stays on the screen."""
    world.rollouts = {7: list(PROMOTION)}
    with open_client() as opened:
        code = progress.watch(opened, 7, Screen(fancy=True, terminal=True))
    shown = " ".join(capsys.readouterr().out.split())
    assert code == ExitCode.OK
    assert "✔ load done 2.0 s" in shown
    assert "promoted: beta" in shown


def test_rollouts_are_listed_and_shown(world: World) -> None:
    """The history, and one with its planned steps."""
    world.rollouts = {7: [PROMOTION[1]], 6: [rollout(6, "rolled_back", reason="it babbled")]}
    text = loopctl("rollouts", "list").stdout
    assert "● active" in row(text, "7 ")
    assert re.search(r"✖ rolled back .* 12 s +it babbled", row(text, "6 "))
    assert len(RolloutList.model_validate_json(loopctl("rollouts", "list", "--json").stdout).rollouts) == 2
    shown = loopctl("rollouts", "show", "7")
    assert "○   load      planned" in shown.stdout
    assert "under way" in shown.stdout
    assert RolloutView.model_validate_json(loopctl("rollouts", "show", "7", "--json").stdout) == PROMOTION[1]
    assert loopctl("rollouts", "show", "99").exit_code == ExitCode.NOT_FOUND
    assert loopctl("rollouts", "show", "-1").exit_code == ExitCode.USAGE
    world.rollouts = {}
    assert "no rollout yet" in loopctl("rollouts", "list").stdout


@pytest.mark.parametrize(
    ("phase", "words"),
    [("waiting", "waiting for its turn"), ("aborting", "being turned back"), ("superseded", "superseded after 12 s")],
)
def test_every_phase_has_words(world: World, phase: str, words: str) -> None:
    """A phase without words would be an empty line."""
    world.rollouts = {7: [rollout(7, phase)]}
    assert words in loopctl("rollouts", "show", "7").stdout


# events and why


def test_events_shows_the_latest(world: World) -> None:
    """The first entries of a long ledger are of no interest."""
    world.events = [
        event(seq, cause=f"cause {seq}", detail={"exit_code": 137, "oom": True, "x": None}) for seq in range(1, 900)
    ]
    lines = loopctl("events", "--limit", "2").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["898", "899"]
    assert lines[1].endswith("gateway: cause 899 exit_code=137 oom=yes")


def test_events_after_a_number_about_a_subject(world: World) -> None:
    """Paging from where a program stopped; the filter reaches past one page."""
    world.events = [event(seq, subject="agent" if seq % 400 == 0 else "gateway") for seq in range(1, 1300)]
    result = loopctl("events", "--after", "400", "--limit", "5", "--subject", "agent", "--json")
    assert [EventView.model_validate_json(line).seq for line in result.stdout.splitlines()] == [800, 1200]
    assert loopctl("events", "--after", "9999").stdout == ""


def test_an_entry_cannot_steer_the_terminal(world: World) -> None:
    """File names of dropped models are anybody's."""
    world.events = [event(1, subject="\x1b]0;owned\x07.gguf", cause="a\nb")]
    shown = loopctl("events").stdout
    assert "\x1b" not in shown
    assert "\\u001b]0;owned" in shown
    assert len(shown.splitlines()) == 1


def test_following_resumes_without_gap_or_repeat(world: World) -> None:
    """Connections that break in the middle; a refusal in the end, because this test has to end.

    What was sent just before a break may be lost on the way; then it is sent again.
    """
    world.events = [event(seq) for seq in range(1, 8)]
    world.streams = [2, 1, *[4] * 40]
    world.refused_from = 7
    result = loopctl("events", "--follow", "--after", "0", "--json")
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == [1, 2, 3, 4, 5, 6, 7]
    resumed_at = [int(h["Last-Event-ID"]) for h in world.headers if "Last-Event-ID" in h]
    assert resumed_at[0] == 0
    assert resumed_at == sorted(resumed_at)
    assert result.stderr.count("trying again") == len(resumed_at) - 1 >= 2
    assert result.exit_code == ExitCode.FAILED
    assert "[too_many_streams]" in result.stderr


def test_following_begins_with_the_latest_past_entries(world: World) -> None:
    """As tail -f does, filtered alike."""
    world.events = [event(seq, subject="agent" if seq > 7 else "gateway") for seq in range(1, 10)]
    world.refused_from = 9
    result = loopctl("events", "--follow", "--limit", "1", "--subject", "agent")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["9"]
    assert [h["Last-Event-ID"] for h in world.headers if "Last-Event-ID" in h] == ["9"]


def test_a_stream_that_is_none_is_said(world: World) -> None:
    """Something else on the port answers with a page."""
    world.raw = b'{"events": [], "next_after": 0}'
    result = loopctl("events", "--follow", "--after", "0")
    assert result.exit_code == ExitCode.FAILED
    assert "not with a stream" in result.stderr


def test_why_tells_of_a_service_newest_first(world: World) -> None:
    """The question after every restart."""
    world.status = world.status.model_copy(
        update={"services": [service("agent", ready=False, reason="its probe fails", restarts=1)]}
    )
    world.events = [
        event(1, subject="agent"),
        event(2, subject="gateway"),
        event(3, "unit.restarted", "agent", cause="its container ended", detail={"exit_code": 137, "oom_killed": True}),
        event(4, "something.new_to_us", "agent", cause="c", detail={"x": False}),
    ]
    now, newest, middle, first = loopctl("why", "agent").stdout.splitlines()
    assert now == "agent is not ready: its probe fails; it was restarted 1 time"
    assert newest.endswith("agent new to us: c")
    assert middle.endswith("agent was restarted: its container ended (exit code 137, oom killed yes)")
    assert middle.startswith("2026-03-01 12:00:00Z, ")
    assert first.endswith("agent was started: it was absent")
    answer = json.loads(loopctl("why", "agent", "--json", "--limit", "1").stdout)
    assert [e["seq"] for e in answer["entries"]] == [4]


@pytest.mark.parametrize("name", ["alpha", "aaaaaaaaaaaa", "a" * 64, "engine-aaaa"])
def test_why_knows_a_release_by_each_of_its_names(world: World, name: str) -> None:
    """The ledger writes short ids, people say names, containers are engine-<id>."""
    world.events = [event(1, "release.promoted", "a" * 12), event(2, subject="engine-aaaaaaaaaaaa"), event(3)]
    text = loopctl("why", name).stdout
    assert text.startswith("alpha (aaaaaaaaaaaa) is champion, with 100 % of the traffic and container 0123456789ab")
    assert "was promoted" in text
    assert len(text.splitlines()) == 3


def test_why_tells_of_a_file_that_was_refused(world: World) -> None:
    """The file is gone from incoming; only the ledger knows why."""
    world.events = [event(1, "candidate.rejected", "bad.gguf", cause="it is truncated", detail={"code": "truncated"})]
    assert loopctl("why", "bad.gguf").stdout.rstrip().endswith("bad.gguf was refused: it is truncated (code truncated)")


def test_why_of_nothing_suggests_names(world: World) -> None:
    """A typo is the usual cause."""
    result = loopctl("why", "gatway")
    assert result.exit_code == ExitCode.NOT_FOUND
    assert "did you mean gateway" in result.stderr
    assert "`loopctl status`" in loopctl("why", "zzzzzz").stderr
    assert "nothing is written about it" in loopctl("why", "gateway").stdout


# exec


def outcome(**fields: Any) -> ExecResult:  # Any: whichever fields the test is about
    ended = {
        "exit_code": 0,
        "stdout": "42\n",
        "stderr": "",
        "timed_out": False,
        "truncated": False,
        "duration_ms": 5,
        "sandbox": "sandbox-1",
    }
    return ExecResult.model_validate({**ended, **fields})


def test_exec_is_like_running_it_here(world: World) -> None:
    """Output byte for byte, the exit code, arguments that look like options passed on."""
    world.result = outcome(exit_code=7, stdout="é\x1b[0m no end", stderr="warning\n")
    done = complete(world, "exec", "--timeout", "5", "--", "python3", "-c", "print(6*7)", "--json")
    assert (done.returncode, done.stdout, done.stderr) == (7, "é\x1b[0m no end".encode(), b"warning\n")
    assert world.bodies == [{"argv": ["python3", "-c", "print(6*7)", "--json"], "timeout_s": 5.0}]


@pytest.mark.parametrize(
    ("result", "code", "remark"),
    [
        (outcome(), 0, ""),
        (outcome(exit_code=-9), 137, ""),
        (outcome(exit_code=1000), 255, ""),
        (outcome(exit_code=-1, timed_out=True), 124, "ended after 30 s"),
        (outcome(truncated=True), 0, "its end is missing"),
    ],
)
def test_exec_ends_as_a_shell_would_say_it(world: World, result: ExecResult, code: int, remark: str) -> None:
    """Signals, time-outs and cut output must not look like success."""
    world.result = result
    done = loopctl("exec", "true")
    assert done.exit_code == code
    assert remark in done.stderr
    assert done.stdout == "42\n"
    assert ExecResult.model_validate_json(loopctl("exec", "--json", "--", "true").stdout) == result


@pytest.mark.parametrize(
    "arguments", [[], ["--"], ["--timeout", "0", "--", "x"], ["--timeout", "121", "--", "x"], ["a"] * 257]
)
def test_exec_refuses_what_loopd_would_refuse(world: World, arguments: list[str]) -> None:
    """Found here, it costs no sandbox."""
    assert loopctl("exec", *arguments).exit_code == ExitCode.USAGE
    assert world.asked == []


# ask


def spoken(*texts: str) -> list[tuple[str, dict[str, Any]]]:  # Any: JSON
    return [
        ("run.started", {"run": "1"}),
        *[("text.delta", {"text": t}) for t in texts],
        ("run.completed", {"tokens": 2}),
    ]


def test_ask_sends_the_question_and_prints_the_answer(world: World) -> None:
    """All options reach the agent; the last line is ended."""
    world.run = spoken("Par", "is")
    result = loopctl("ask", "Capital?", "--system", "Be brief.", "--max-tokens", "9", "--call", "bash")
    assert (result.exit_code, result.stdout) == (0, "Paris\n")
    assert world.bodies == [
        {
            "instruction": "Capital?",
            "stream": True,
            "system": "Be brief.",
            "max_output_tokens": 9,
            "tool_choice": "bash",
        }
    ]
    loopctl("ask", "Capital?")
    assert world.bodies[1] == {"instruction": "Capital?", "stream": True}


def test_ask_reads_standard_input(world: World) -> None:
    """Long questions come through a pipe."""
    world.run = spoken("yes\n")
    result = loopctl("ask", "-", stdin="Ist das schön?".encode())
    assert result.stdout == "yes\n"
    assert world.bodies[0]["instruction"] == "Ist das schön?"


@pytest.mark.parametrize(("argument", "stdin"), [("", b""), ("-", b" \n"), ("-", b"x" * ((1 << 20) + 1))])
def test_ask_refuses_nothing_and_too_much(world: World, argument: str, stdin: bytes) -> None:
    """An empty pipe is a mistake in the script; a disk image is, too."""
    assert loopctl("ask", argument, stdin=stdin).exit_code == ExitCode.USAGE
    assert world.bodies == []


def test_ask_as_json_is_one_object(world: World) -> None:
    """For jq."""
    world.run = [
        ("tool.started", {"tool": "bash"}),
        ("tool.finished", {"tool": "bash", "output": "42"}),
        ("text.delta", {"text": "It is "}),
        ("text.delta", {"text": "42"}),
        ("run.completed", {"tokens": 2}),
    ]
    result = loopctl("ask", "6*7?", "--json")
    assert json.loads(result.stdout) == {
        "text": "It is 42",
        "tools": [{"tool": "bash", "output": "42"}],
        "run": {"tokens": 2},
    }
    assert "[tool: bash]" in result.stderr


@pytest.mark.parametrize(
    ("run", "shown"),
    [
        ([("run.completed", {"output": "42\n"})], "42\n"),
        ([("run.completed", {"output": {"answer": 42}})], '{"answer": 42}\n'),
        ([("tool.finished", {"result": "42"}), ("run.completed", {})], "42\n"),
        ([("run.completed", {})], "\n"),
    ],
)
def test_a_run_that_streams_no_text_shows_its_output(
    world: World, run: list[tuple[str, dict[str, Any]]], shown: str
) -> None:
    """A forced tool's output is the answer."""
    world.run = run
    assert loopctl("ask", "q", "--call", "bash").stdout == shown


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (
            [("run.failed", {"error": {"code": "no_engine", "message": "no engine is ready"}})],
            "no engine is ready [no_engine]",
        ),
        ([("run.failed", {"error": "odd"})], "gave no reason"),
        ([("text.delta", {"text": "Par"})], "the answer broke off before its end"),
        ([("text.delta", ["Par"])], "is no JSON object"),
    ],
)
def test_ask_says_when_a_run_fails(world: World, run: list[tuple[str, dict[str, Any]]], words: str) -> None:
    """Half an answer must not look like a whole one."""
    world.run = run
    result = loopctl("ask", "q")
    assert result.exit_code == ExitCode.FAILED
    assert words in result.stderr


def test_ask_says_why_the_gateway_refuses(world: World) -> None:
    """The agent's own error format, and HAProxy's page when there is no agent."""
    world.error = (422, "tool_unknown", "there is no tool 'x'")
    assert "there is no tool 'x' [tool_unknown]" in loopctl("ask", "q").stderr
    world.raw = b"<html>503</html>"
    result = loopctl("ask", "q")
    assert result.exit_code == ExitCode.FAILED
    assert "HTTP status 503 and no reason [http_503]" in result.stderr


def test_ask_without_gateway(absent: World) -> None:
    """Nothing runs: say so, and what to run."""
    result = loopctl("ask", "q")
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "the gateway does not answer" in result.stderr
    assert "`make up`" in result.stderr


def test_ask_streams_to_a_pipe_before_the_answer_ends(world: World) -> None:
    """A buffer in between would make a slow model look dead."""
    world.run = [("text.delta", {"text": "Par"}), ("text.delta", {"text": "is"}), ("run.completed", {})]
    world.gate.clear()
    with spawn(world, "ask", "q", stdout=subprocess.PIPE) as process:
        assert process.stdout
        first = process.stdout.read(3)
        world.gate.set()
        rest = process.stdout.read()
    assert (first, rest, process.returncode) == (b"Par", b"is\n", 0)


# settings, token, version, the program itself


def test_config_shows_values_and_where_they_come_from(absent: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works with loopd down."""
    (absent.home / "loopbox.toml").write_text("num_ctx = 4096\n[sandbox]\nwarm = 1\n")
    text = loopctl("config", "show").stdout
    assert row(text, "num_ctx").split() == ["num_ctx", "4096", "file"]
    assert row(text, "sandbox.warm").split() == ["sandbox.warm", "1", "file"]
    assert row(text, "sandbox.most").split() == ["sandbox.most", "16", "default"]
    assert row(text, "home").split() == ["home", str(absent.home), "LOOPBOX_HOME"]
    assert json.loads(loopctl("config", "show", "--json").stdout)["num_ctx"] == 4096
    assert str(absent.home / "loopbox.toml") in loopctl("config", "check").stdout
    monkeypatch.setenv("LOOPBOX_NUM_CTX", "12")
    broken = loopctl("config", "check")
    assert broken.exit_code == ExitCode.CONFIG
    assert "num_ctx" in broken.stderr
    assert "12" in broken.stderr
    assert loopctl("status").exit_code == ExitCode.CONFIG


def test_paths_are_written_alone_for_scripts(absent: World) -> None:
    """`curl -H "Authorization: Bearer $(cat $(loopctl token path))"`; the token itself is never shown."""
    result = loopctl("token", "path")
    assert result.stdout == f"{absent.home / 'control.token'}\n"
    assert "does not exist yet" in result.stderr
    result = loopctl("config", "path")
    assert result.stdout == f"{absent.home / 'loopbox.toml'}\n"
    assert "does not exist" in result.stderr
    assert "there is no" in loopctl("config", "check").stdout
    (absent.home / "control.token").write_text(TOKEN)
    result = loopctl("token", "path")
    assert (result.stderr, TOKEN in result.stdout) == ("", False)


def test_version_compares_both(absent: World) -> None:
    """Of use above all when they differ, and when loopd is away."""
    away = loopctl("version")
    assert away.exit_code == 0
    assert "loopd does not answer" in away.stdout
    with started(absent, unix=False):
        assert "loopd 9.9.9" in loopctl("version").stdout
        assert json.loads(loopctl("version", "--json").stdout)["loopd"] == "9.9.9"
    assert loopctl("--version").stdout.startswith("loopctl ")


def test_references_complete_from_what_there_is(absent: World) -> None:
    """Tab after `releases promote`; quiet when loopd is away."""
    assert completion.releases("") == []
    with started(absent):
        (absent.home / "control.token").write_text(TOKEN)
        assert completion.releases("al") == [("alpha", "a" * 12)]
        assert completion.releases("bb") == [("b" * 12, "beta")]


def test_the_shell_completes_commands(absent: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol that `--install-completion` sets up."""
    monkeypatch.setenv("_LOOPCTL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "loopctl roll")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert complete(absent).stdout.split() == [b"rollouts"]


@pytest.mark.parametrize("arguments", [["nonsense"], ["status", "--nonsense"], ["events", "--limit", "0"], ["ask"]])
def test_usage_errors_exit_2(absent: World, arguments: list[str]) -> None:
    """As every tool does."""
    assert loopctl(*arguments).exit_code == ExitCode.USAGE


def test_the_page_is_what_the_program_says() -> None:
    """Prose that drifted; write it anew with `python -m loopd.cli.reference > docs/loopctl.md`."""
    assert (DAEMON.parent / "docs" / "loopctl.md").read_text() == reference.render()


def test_ctrl_c_exits_130_without_a_trace(world: World) -> None:
    """Following ends with Ctrl-C; that is no bug."""
    world.events = [event(1)]
    pipe = subprocess.PIPE
    with spawn(world, "events", "--follow", "--after", "0", stdout=pipe, stderr=pipe) as process:
        assert process.stdout
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == ExitCode.INTERRUPTED
    assert err == b""


def test_a_reader_that_leaves_is_no_error(world: World) -> None:
    """`loopctl events | head -1`."""
    world.events = [event(seq, cause="x" * 1000) for seq in range(1, 490)]
    pipe = subprocess.PIPE
    with spawn(world, "events", "--limit", "500", stdout=pipe, stderr=pipe) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
    assert err == b""


def test_a_terminal_that_knows_no_icons(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """LANG=C over a serial line: question marks, no traceback."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("PYTHONUTF8", "0")
    done = complete(world, "status")
    assert done.returncode == 0
    assert done.stdout.startswith(b"? loopbox is serving")


@pytest.mark.parametrize("colour", [True, False])
def test_colour_and_live_pictures_are_for_terminals(
    world: World, monkeypatch: pytest.MonkeyPatch, *, colour: bool
) -> None:
    """On a real terminal the rollout is drawn live; NO_COLOR makes it lines."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    world.rollouts = {7: list(PROMOTION)}
    master, slave = pty.openpty()
    with spawn(world, "rollouts", "watch", "7", stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the program closed the terminal
            while piece := os.read(master, 1 << 16):
                shown += piece
    os.close(master)
    assert process.returncode == 0
    assert b"promoted: beta" in shown
    assert (b"\x1b[" in shown) == colour


def test_on_a_terminal_the_model_cannot_steer(world: World) -> None:
    """What a model writes may hold escape sequences; a file gets them as they are."""
    world.run = spoken("a\x1b]0;x\x07b\tc\n")
    assert loopctl("ask", "q").stdout == "a\x1b]0;x\x07b\tc\n"
    master, slave = pty.openpty()
    with spawn(world, "ask", "q", stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):
            while piece := os.read(master, 1 << 16):
                shown += piece
    os.close(master)
    assert process.returncode == 0
    assert b"\x1b" not in shown
    assert b"a\\u001b]0;x\\u0007b" in shown


def test_help_does_not_wait_for_what_it_does_not_need(absent: World) -> None:
    """HTTP, settings and container libraries take longer to import than the whole of `--help`."""
    heavy = "{'aiohttp', 'docker', 'pydantic_settings', 'structlog', 'watchdog'}"
    code = f"import sys, loopd.cli.main; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(DAEMON)}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\n", b"")
