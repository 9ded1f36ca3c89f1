"""parts: owns what the routes work with, opened once, and what they tell of its health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

from fastapi import Depends
from pydantic_ai.models import Model
from starlette.requests import HTTPConnection

from loopbox_agent import delegation
from loopbox_agent.audit import Audit
from loopbox_agent.breaker import Breakers
from loopbox_agent.builtin_tools import Builtins
from loopbox_agent.engine import Engine, EngineAt, EngineUnavailableError
from loopbox_agent.hub import STOPPED, Hub
from loopbox_agent.mcp_servers import McpServers
from loopbox_agent.metrics import Metrics
from loopbox_agent.model import OllamaModel, Served
from loopbox_agent.model_pool import ModelPool
from loopbox_agent.moderation import Moderation
from loopbox_agent.pool_member import PoolMember, parse_members
from loopbox_agent.remote_model import open_remotes
from loopbox_agent.reviews import Reviews
from loopbox_agent.risk import Risk
from loopbox_agent.runs import AgentWork, Kit
from loopbox_agent.sandbox import Broker
from loopbox_agent.server_store_sql import SqlServerStore
from loopbox_agent.settings import Settings
from loopbox_agent.slots import Slots
from loopbox_agent.store import Store, open_store
from loopbox_agent.threats import Threats
from loopbox_agent.tokens import Meters
from loopbox_agent.toolkit import Toolkit
from loopbox_agent.web_search import WebSearch

READY_CACHE_S = 1.0
READY_PROBE_S = 2.0


@dataclass
class Parts:
    """What the routes work with."""

    settings: Settings
    metrics: Metrics
    engine: Engine
    broker: Broker
    hub: Hub
    slots: Slots
    store: Store
    audit: Audit
    reviews: Reviews
    toolkit: Toolkit
    servers: McpServers
    pool: ModelPool
    breakers: Breakers
    started_at: float = field(default_factory=time.monotonic)
    _checked_at: float = float("-inf")
    _reason: str = ""
    _checking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def unready(self) -> str:
        """Return why the agent cannot answer, '' when it can; asked of the engine once a second at most."""
        if self.hub.stopping:
            return STOPPED
        async with self._checking:
            if time.monotonic() - self._checked_at > READY_CACHE_S:
                try:
                    await self.engine.check(timeout_s=READY_PROBE_S)
                    self._reason = ""
                except EngineUnavailableError as error:
                    self._reason = str(error)
                self._checked_at = time.monotonic()
            return self._reason


def parts_of(connection: HTTPConnection) -> Parts:
    """Return the parts of the application that a request or a WebSocket came to."""
    parts: Parts = connection.app.state.parts
    return parts


Wired = Annotated[Parts, Depends(parts_of)]


def native(member: PoolMember, settings: Settings, engine: Engine, meters: Meters) -> Model:
    """Return the model of a native member of the pool."""
    num_ctx = member.num_ctx or settings.num_ctx
    served = Served(model=member.model, num_ctx=num_ctx, max_output_tokens=settings.max_output_tokens)
    return OllamaModel(engine, served, meter=meters.of(member.model))


@asynccontextmanager
async def open_parts(settings: Settings) -> AsyncIterator[Parts]:
    """Open everything, and close it in the order that loses nothing."""
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(settings))
        audit = Audit(settings.broker_socket, settings.state_dir / "audit.jsonl")
        stack.push_async_callback(audit.close)
        engine, broker = Engine(settings, metrics), Broker(settings)
        stack.push_async_callback(engine.close)
        stack.push_async_callback(broker.close)
        proxy = settings.egress_proxy or None
        web = WebSearch(settings.search_url or None, proxy)
        stack.push_async_callback(web.close)
        servers = McpServers(SqlServerStore(store.database), secrets_dir=settings.secrets_dir, proxy=proxy)
        stack.push_async_callback(servers.close)
        toolkit = Toolkit(broker=broker, builtins=Builtins(store, web, [delegation.spec()]), servers=servers)
        meters = Meters()
        members = parse_members(settings.models)
        engines = {"": engine}  # by address, so that members share connections
        for member in members:
            if member.kind == "native" and member.url is not None and str(member.url) not in engines:
                at = replace(EngineAt.the_gateway(settings), url=str(member.url), model=member.model)
                engines[str(member.url)] = made = Engine(at, metrics)
                stack.push_async_callback(made.close)
        build = await stack.enter_async_context(
            open_remotes(
                members,
                lambda member: native(member, settings, engines[str(member.url or "")], meters),
                silence_s=settings.engine_silence_s,
            )
        )
        pool = ModelPool(members, build, told=metrics.tried)
        kit = Kit(
            settings,
            engine,
            toolkit,
            metrics,
            store,
            audit,
            Risk(Threats(), store.memories, settings.threats),
            pool,
            meters=meters,
            moderation=Moderation(hold_from=settings.hold_output_from),
        )
        slots = Slots(settings.max_concurrent_runs, metrics)
        hub = Hub(settings, slots, metrics, store.run_log, lambda run, asked: AgentWork(kit, run, asked))
        sending = asyncio.create_task(audit.send_forever(), name="audit")
        stack.callback(sending.cancel)
        stack.push_async_callback(hub.close)
        yield Parts(
            settings,
            metrics,
            engine,
            broker,
            hub,
            slots,
            store,
            audit,
            Reviews(store, audit),
            toolkit,
            servers,
            pool,
            kit.breakers,
        )


def package_version() -> str:
    """Return the version the image was built as."""
    try:
        return version("loopbox")
    except PackageNotFoundError:
        return "unpackaged"
