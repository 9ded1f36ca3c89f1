"""app: owns how loopd is put together, started and stopped.

Each part opens in a cleanup context and is reached by a typed key. Stopping loopd stops only loopd: containers
serve on, and the next start adopts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, Protocol

import aiohttp
import structlog
from aiohttp import web

from loopd.admission import read_capacity
from loopd.alert_channels import channels_of
from loopd.alerts import Alerts
from loopd.api.auth import BODY_BYTES as AUTH_BODY_BYTES
from loopd.api.jobs import JobRoutes
from loopd.api.routes import Routes
from loopd.api.web import FORWARDED, IDENTITY, METRICS, Endpoint, answer_errors, correlate, guard
from loopd.attempts import Buckets
from loopd.audit import open_trail
from loopd.auth import ensure_token
from loopd.backup_schedule import Backups
from loopd.backups import open_shelf
from loopd.bake import Baker
from loopd.blobs import Blobs
from loopd.boot import STARTED, read_host_times
from loopd.boxes import Boxes
from loopd.collect import Collector
from loopd.config import ConfigError, Settings, load_settings
from loopd.docker_engine import Connection, DockerEngine
from loopd.doors import DoorKeeper
from loopd.egress import Egress
from loopd.endure import endure
from loopd.engine import Engine
from loopd.errors import LoopdError
from loopd.gateway import Gateway, GatewayDownError, Route
from loopd.gpu import Gpus, InMemoryGpus, NvmlGpus, free_memory
from loopd.haproxy import GatewayConfigError, HaproxyGateway
from loopd.haproxy_auth import SOCKET as AUTH_SOCKET
from loopd.haproxy_config import GatewayConfig
from loopd.haproxy_limits import RateLimits
from loopd.identity import Identity
from loopd.images import ImageSet, load_images
from loopd.inspection import check
from loopd.intake import Intake
from loopd.job import Jobs
from loopd.journal import Journal
from loopd.keys import Keyring
from loopd.lease import Leases
from loopd.ledger import Ledger
from loopd.loading import OllamaLoader, own
from loopd.lock import sole_owner
from loopd.login import Login
from loopd.logs import configure_logs
from loopd.metrics import Metrics, build_metrics
from loopd.notify import Notifier
from loopd.passwords import Passwords
from loopd.policy import policy_of
from loopd.registry import Registry
from loopd.restarts import Restarts
from loopd.rollout import Rollouts
from loopd.routing import Routing
from loopd.runner import RunLimits, Runner
from loopd.sandbox import Broker
from loopd.state import StateError, open_database
from loopd.status import Status
from loopd.supervise import Supervisor
from loopd.tap import open_tap, parse_request
from loopd.tokens import Tokens
from loopd.toolbox import Toolbox
from loopd.trainer import Trainer
from loopd.units import (
    AGENT_UID,
    GATEWAY_UID,
    Layout,
    SandboxKind,
    agent_unit,
    engine_unit,
    gateway_unit,
    layout_of,
    trainer_unit,
)
from loopd.users import Users
from loopd.vitals import Vitals
from loopd.watch import Watcher

NICE = 5  # requests come first: what loopd does at a swap must not slow what serves
EX_CONFIG = 78  # sysexits.h: the supervisor must not try again
EX_OSERR = 71
CONNECTIONS = 32  # of loopd to its engines
SHUTDOWN_S = 3.0
CHECK_S = 20.0  # for HAProxy to read a configuration

log = structlog.get_logger("loopd.app")


class StartedGateway(Gateway, Protocol):
    """A gateway whose configuration loopd writes before it starts."""

    async def ensure_config(self, routes: Sequence[Route]) -> bool:
        """Write it, checked; True when it changed."""
        ...


@dataclass(frozen=True, slots=True)
class Host:
    """What loopd stands on; in memory in tests."""

    engine: Engine
    gateway: StartedGateway
    notifier: Notifier


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything loopd is made of, opened."""

    settings: Settings
    layout: Layout
    routes: Routes
    tokens: Tokens
    metrics: Metrics
    ledger: Ledger
    supervisor: Supervisor
    background: tuple[tuple[str, Callable[[], Coroutine[None, None, None]]], ...]


def make_directories(layout: Layout) -> None:
    """Make every directory with its mode and owner. Raises LoopdError naming the one that could not be made."""
    for path, mode, uid in layout.directories():
        try:
            path.mkdir(mode=mode, parents=True, exist_ok=True)
            path.chmod(mode)
            own(path, uid)
        except OSError as error:
            raise LoopdError(
                f"{path} cannot be made: {error.strerror}. Run loopd as root, or set home and run_dir"
            ) from error


def sandbox_images(images: ImageSet) -> dict[SandboxKind, str]:
    """Return the image of each kind of sandbox that this host has."""
    browser: str | None = getattr(images, "browser", None)
    kinds: dict[SandboxKind, str] = {"tools": images.toolrunner}
    return kinds | {"browser": browser} if browser else kinds


def open_gateway(settings: Settings, engine: Engine, image: str) -> HaproxyGateway:
    """Return the gateway's driver; a new configuration is checked by HAProxy itself, in the gateway's own image."""

    def config() -> GatewayConfig:
        return GatewayConfig(
            public_port=settings.public_port,
            internal_address=engine.internal_address,
            internal_port=settings.internal_port,
            max_body_bytes=settings.max_body_bytes,
            hold_s=math.ceil(settings.hold_s),
            auth=settings.auth.mode == "required",
            issuer=settings.instance,
            limits=RateLimits(**settings.limits.model_dump()),
        )

    async def check_config(path: Path) -> None:
        unit = replace(
            gateway_unit(settings, image),
            name="gateway-check",
            network="none",
            command=("-c", "-f", f"/run/gateway/{path.name}"),
        )
        result = await engine.run(unit, timeout_s=CHECK_S)
        if result.exit_code != 0:
            raise GatewayConfigError(f"HAProxy refuses the configuration; the old one stays: {result.output[-600:]}")

    return HaproxyGateway(config, layout_of(settings).gateway, check=check_config, uid=GATEWAY_UID)


@contextlib.asynccontextmanager
async def open_parts(settings: Settings, images: ImageSet, host: Host) -> AsyncIterator[Parts]:
    """Open the state and build what works on it. Raises StateError.

    The container engine may be down: the supervisor opens it as soon as it answers.
    """
    layout = layout_of(settings)
    metrics = build_metrics()
    shelf = open_shelf(settings)
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(layout.state, shelf))
        trail = await stack.enter_async_context(
            open_trail(layout.audit, keep_days=settings.audit.keep_days, most=settings.audit.most_entries)
        )
        tap = await stack.enter_async_context(open_tap(layout.gateway, uid=GATEWAY_UID))
        await stack.enter_async_context(
            tap.listen(lambda line: trail.add(record) if (record := parse_request(line)) else None)
        )
        engine, traffic, notifier = host.engine, host.gateway, host.notifier
        stack.push_async_callback(engine.close)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS), trust_env=False)
        )
        registry = Registry(database)
        ledger = Ledger(database)
        users = Users(database, ledger, Passwords())
        keyring = await asyncio.to_thread(Keyring.open, layout.keys)
        tokens = Tokens(
            database=database,
            ledger=ledger,
            users=users,
            keyring=keyring,
            issuer=settings.instance,
            access_s=settings.auth.access_s,
            refresh_s=settings.auth.refresh_s,
        )
        doors = DoorKeeper(
            tokens=tokens, keyring=keyring, gateway=traffic, ledger=ledger, rotate_s=settings.auth.rotate_s
        )
        login = Login(
            users=users,
            tokens=tokens,
            ledger=ledger,
            per_address=Buckets(settings.limits.login_rate, settings.limits.login_burst),
            tell=doors.tell,
        )
        # Before anything asks for routes: a gateway that knew no key would let nobody in.
        with contextlib.suppress(GatewayDownError):
            await traffic.admit(await doors.wanted())
        rollouts = Rollouts(database, registry, ledger, policy=policy_of(settings.rollout))
        journal = Journal(database, epoch=await registry.raise_epoch())
        await journal.settle()
        loader = OllamaLoader(settings, engine, session)
        routing = Routing.over(registry, engine, traffic)
        gpus: Gpus = NvmlGpus() if settings.engine_gpu else InMemoryGpus()
        toolbox = Toolbox()
        restarts = Restarts(database)

        async def prepare_gateway() -> None:
            await traffic.ensure_config(await routing.wanted())

        supervisor = Supervisor(
            engine=engine,
            loader=loader,
            registry=registry,
            rollouts=rollouts,
            routing=routing,
            restarts=restarts,
            ledger=ledger,
            metrics=metrics,
            fixed=lambda: (
                gateway_unit(settings, images.gateway),
                agent_unit(settings, images.agent, internal_address=engine.internal_address),
            ),
            engine_unit=lambda release: engine_unit(settings, release),
            prepare_gateway=prepare_gateway,
            relist_s=settings.relist_s,
            limits=settings.supervise,
            host=read_host_times(
                await ledger.last("loopd", STARTED), datetime.now(UTC), engine_is_local=settings.docker_host is None
            ),
            on_success=notifier.alive,
        )
        runner = Runner(
            rollouts=rollouts,
            registry=registry,
            journal=journal,
            ledger=ledger,
            engine=engine,
            loader=loader,
            gateway=traffic,
            routing=routing,
            metrics=metrics,
            baker=Baker(
                engine=engine,
                gateway=traffic,
                loader=loader,
                tap=tap.answers,
                limits=settings.rollout.analysis,
            ),
            capacity=lambda: read_capacity(lambda: free_memory(gpus)),
            limits=RunLimits(
                drain_s=settings.rollout.drain_s,
                threads=settings.threads,
                parallel=settings.engine_parallel,
                reserve_bytes=settings.rollout.reserve_bytes,
                in_place=settings.rollout.swap_in_place,
            ),
        )
        vitals = Vitals(
            engine=engine,
            gateway=traffic,
            loader=loader,
            supervisor=supervisor,
            limits=settings.supervise,
            gpus=gpus,
        )
        egress = Egress(settings=settings, layout=layout, engine=engine, ledger=ledger, image=images.egress)
        broker = Broker(
            settings=settings,
            layout=layout,
            boxes=Boxes(
                settings=settings, layout=layout, engine=engine, toolbox=toolbox, images=sandbox_images(images)
            ),
            leases=Leases(database),
            ledger=ledger,
            metrics=metrics,
            egress=egress,
        )
        blobs = Blobs(layout)
        intake = Intake(
            layout=layout,
            registry=registry,
            rollouts=rollouts,
            ledger=ledger,
            metrics=metrics,
            engine_image=lambda: engine.image_id(images.ollama),
            inspect=check,
            num_ctx=settings.num_ctx,
            max_model_bytes=settings.max_model_bytes,
            blobs=blobs,
            public_key=settings.registry.public_key,
        )
        backups = Backups(shelf=shelf, ledger=ledger, every_s=settings.backup.every_s)
        alerts = Alerts(folder=layout.alerts, channels=channels_of(settings.alerts), ledger=ledger)
        collector = Collector(
            layout=layout,
            blobs=blobs,
            registry=registry,
            rollouts=rollouts,
            ledger=ledger,
            settings=settings.registry,
        )
        jobs = Jobs(database, ledger)
        trainer = Trainer(
            jobs=jobs,
            engine=engine,
            layout=layout,
            settings=settings.training,
            image=getattr(images, "trainer", None),
            unit=lambda image, job: trainer_unit(settings, image, job.id, job.kind),
        )
        watcher = Watcher(
            directory=layout.incoming,
            intake=intake,
            settle_s=settings.incoming_settle_s,
            stale_s=settings.incoming_stale_s,
        )
        status = Status(
            settings=settings,
            engine=engine,
            gateway=traffic,
            registry=registry,
            rollouts=rollouts,
            journal=journal,
            runner=runner,
            supervisor=supervisor,
            restarts=restarts,
            broker=broker,
            metrics=metrics,
            started_at=datetime.now(UTC),
            trouble=lambda: database.trouble,
        )
        routes = Routes(
            status=status,
            registry=registry,
            rollouts=rollouts,
            ledger=ledger,
            broker=broker,
            toolbox=toolbox,
            metrics=metrics,
            layout=layout,
            collector=collector,
            backups=backups,
            trail=trail,
            alerts=alerts,
            login=login,
            users=users,
            doors=doors,
            jobs=JobRoutes(
                trainer=trainer, jobs=jobs, registry=registry, settings=settings.training, num_ctx=settings.num_ctx
            ),
        )
        yield Parts(
            settings=settings,
            layout=layout,
            routes=routes,
            tokens=tokens,
            metrics=metrics,
            ledger=ledger,
            supervisor=supervisor,
            background=(
                ("supervise", supervisor.run_forever),
                ("vitals", vitals.run_forever),
                ("rollouts", runner.run_forever),
                ("sandboxes", broker.run_forever),
                ("egress", egress.run_forever),
                ("incoming", watcher.run_forever),
                ("jobs", trainer.run_forever),
                ("collection", collector.run_forever),
                ("backups", backups.run_forever),
                ("doors", doors.run_forever),
                ("state", database.watch_trouble),
                ("audit", trail.run_forever),
                ("audit anchors", lambda: trail.anchor_forever(ledger)),
                ("alerts", alerts.run_forever),
            ),
        )


def build_app(
    endpoints: tuple[Endpoint, ...],
    metrics: Metrics,
    *,
    identity: Identity | None,
    body_bytes: int,
    forwarded: bool = False,
) -> web.Application:
    """Return an application with these endpoints.

    ``identity`` None: the socket's file mode is the lock. ``forwarded``: only the gateway reaches it and says for whom.
    """
    app = web.Application(middlewares=[correlate, answer_errors], client_max_size=body_bytes)
    app[METRICS] = metrics
    app[IDENTITY] = identity
    app[FORWARDED] = forwarded
    for endpoint in endpoints:
        app.router.add_route(endpoint.method, endpoint.path, guard(endpoint))
    return app


@contextlib.asynccontextmanager
async def serve_unix(app: web.Application, path: str, *, mode: int, uid: int = 0) -> AsyncIterator[None]:
    """Serve an application on a unix socket, replacing the one a killed loopd left."""
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    async with _running(app) as runner:
        old = os.umask(0o177)  # never open to others, not even between bind and chmod
        try:
            await web.UnixSite(runner, path).start()
        finally:
            os.umask(old)
        Path(path).chmod(mode)
        if os.geteuid() == 0:
            os.chown(path, uid, uid)
        yield


@contextlib.asynccontextmanager
async def serve_tcp(app: web.Application, port: int) -> AsyncIterator[None]:
    """Serve an application on loopback. Raises LoopdError when the port is taken."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("127.0.0.1", port))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"port {port} of 127.0.0.1 cannot be taken: {error.strerror}. Stop what holds it, or set control_port"
        ) from error
    async with _running(app) as runner:
        await web.SockSite(runner, sock).start()
        yield


@contextlib.asynccontextmanager
async def _running(app: web.Application) -> AsyncIterator[web.AppRunner]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S, handler_cancellation=True)
    await runner.setup()
    try:
        yield runner
    finally:
        await runner.cleanup()


async def run(settings: Settings, images: ImageSet, host: Host, stop: asyncio.Event) -> None:
    """Run loopd until ``stop`` is set, or one of its background tasks dies, which is a bug and raised."""
    layout = layout_of(settings)
    make_directories(layout)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(sole_owner(layout))
        token = ensure_token(layout.token)
        parts = await stack.enter_async_context(open_parts(settings, images, host))
        limit = settings.max_body_bytes
        control = parts.routes.control()
        await stack.enter_async_context(
            serve_tcp(
                build_app(
                    control,
                    parts.metrics,
                    identity=Identity(tokens=parts.tokens, control=token),
                    body_bytes=limit,
                ),
                settings.control_port,
            )
        )
        await stack.enter_async_context(
            serve_unix(
                build_app(control, parts.metrics, identity=None, body_bytes=limit),
                str(layout.control_socket),
                mode=0o600,
            )
        )
        await stack.enter_async_context(
            serve_unix(
                build_app(
                    parts.routes.login_routes(),
                    parts.metrics,
                    identity=Identity(tokens=parts.tokens, control=None),
                    body_bytes=AUTH_BODY_BYTES,
                    forwarded=True,
                ),
                str(layout.gateway / AUTH_SOCKET),
                mode=0o600,
                uid=GATEWAY_UID,
            )
        )
        times = parts.supervisor.host
        await parts.ledger.append(STARTED, "loopd", times.told, **times.record)
        await stack.enter_async_context(
            serve_unix(
                build_app(parts.routes.leases(), parts.metrics, identity=None, body_bytes=64 << 10),
                str(layout.broker / "broker.sock"),
                mode=0o600,
                uid=AGENT_UID,
            )
        )
        tasks = [asyncio.create_task(endure(name, work), name=name) for name, work in parts.background]
        stopping = asyncio.create_task(stop.wait(), name="stop")
        host.notifier.ready(f"control API on 127.0.0.1:{settings.control_port}")
        try:
            done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()
                raise LoopdError(f"the background task {task.get_name()} ended by itself")
        finally:
            host.notifier.stopping()
            for task in [*tasks, stopping]:
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
        with contextlib.suppress(StateError):  # a full disk must not make a wanted end a failed one
            await parts.ledger.append("loopd.stopped", "loopd", "it was asked to stop; containers serve on")
    log.info("loopd.ended")


async def _until_signalled(settings: Settings, images: ImageSet) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    engine = DockerEngine(Connection(settings.docker_host, settings.instance))
    host = Host(engine, open_gateway(settings, engine, images.gateway), Notifier.from_environment())
    await run(settings, images, host, stop)


def main() -> None:
    """Run loopd; the console script.

    Exits 78 on a configuration that cannot work, 71 on a state that cannot be used.
    """
    try:
        settings = load_settings()
        images = load_images(settings.home)
        configure_logs(settings.log_level)
        os.nice(NICE)
        asyncio.run(_until_signalled(settings, images))
    except StateError as error:
        _die(EX_OSERR, error)
    except ConfigError as error:
        _die(EX_CONFIG, error)
    except LoopdError as error:
        _die(1, error)


def _die(code: int, error: LoopdError) -> NoReturn:
    sys.stderr.write(f"loopd: {error}\n")
    sys.exit(code)
