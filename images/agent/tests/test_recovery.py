"""Runs with transient faults on three calls of ten, over real HTTP, without and with what resilience adds.

A run is a model call, a tool call and a model call. Whether a call meets a fault, and which, follows from a seed, the
run and the number of the call in it; so both sides of the comparison begin with the same faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
import structlog
from aiohttp import web
from images.agent.tests.conftest import answering, calls, done, piece
from images.agent.tests.talking import Made, dialogue
from pydantic_ai.models import Model

from loopbox_agent.classify import classify
from loopbox_agent.deadline import Deadline
from loopbox_agent.engine import Engine, EngineAt
from loopbox_agent.metrics import Metrics
from loopbox_agent.model import OllamaModel, Served
from loopbox_agent.model_pool import BrokeOffError, ModelPool
from loopbox_agent.pool_member import PoolMember
from loopbox_agent.retry import Backoff, Retries
from loopbox_agent.tool_spec import ToolSpec

SEED = 20_261_121
RUNS = 200
AT_ONCE = 40
SHARE = 0.30
RUN_S = 25.0
SILENCE_S = 0.3
RESTARTS = 3
KINDS = ("refused", "reset", "429", "500", "503", "timeout", "rubbish")
ANSWER, FOUND = "It is forty-two.", "the answer is 42"
BACKOFF = Backoff(tries=4, base_s=0.05, cap_s=0.5)


@dataclass
class FaultyTransport(httpx2.AsyncBaseTransport):
    """Brings faults to calls: it refuses by a port where nobody listens, and asks the stub for all others."""

    refusing: int  #: a port where nobody listens
    inner: httpx2.AsyncHTTPTransport = field(default_factory=httpx2.AsyncHTTPTransport)
    made: Counter[str] = field(default_factory=Counter)  #: calls by run
    met: Counter[str] = field(default_factory=Counter)  #: faults by kind
    asked: int = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        run = request.headers["X-Correlation-Id"]
        drawn = random.Random(f"{SEED}:{run}:{self.made[run]}")  # noqa: S311 the same faults in every run
        self.made[run] += 1
        self.asked += 1
        if drawn.random() >= SHARE:
            return await self.inner.handle_async_request(request)
        kind = drawn.choice(KINDS)
        self.met[kind] += 1
        if kind == "refused":
            request.url = request.url.copy_with(port=self.refusing)
        else:
            request.headers["X-Fault"] = kind
        return await self.inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def fault(request: web.Request, begun: bytes) -> web.StreamResponse | None:
    """Answer with the fault asked for, if any."""
    kind = request.headers.get("X-Fault")
    if kind is None:
        return None
    if kind in {"429", "500", "503"}:
        headers = {"Retry-After": "1"} if kind == "429" else {}
        return web.json_response({"error": "injected"}, status=int(kind), headers=headers)
    response = web.StreamResponse()
    if kind == "timeout":
        await asyncio.Event().wait()  # until the client leaves
    await response.prepare(request)
    await response.write(begun)
    if kind == "rubbish":
        await response.write(b'{"message": {"conte\n')
    elif request.transport is not None:
        request.transport.abort()
    return response


async def chat(request: web.Request) -> web.StreamResponse:
    order = await request.json()
    if (faulty := await fault(request, piece_line("It "))) is not None:
        return faulty
    asked = [message["content"] for message in order["messages"] if message["role"] == "tool"]
    lines = [calls("lookup", what="everything"), done()]
    if asked:
        lines = [piece("It is "), piece("forty-two." if asked == [FOUND] else f"not {asked}"), done()]
    response = web.StreamResponse()
    await response.prepare(request)
    for line in lines:
        await response.write(piece_line(line))
    return response


def piece_line(line: object) -> bytes:
    return (web.json_response(piece(line) if isinstance(line, str) else line).text or "").encode() + b"\n"


async def lookup(request: web.Request) -> web.StreamResponse:
    if (faulty := await fault(request, b'{"found": ')) is not None:
        return faulty
    return web.json_response({"found": FOUND})


@dataclass
class Stage:
    """A stub engine with a tool, and clients whose calls meet faults."""

    url: str
    engine: Engine
    http: httpx2.AsyncClient
    transport: FaultyTransport

    def native(self) -> OllamaModel:
        return OllamaModel(self.engine, Served(model="agent", num_ctx=512, max_output_tokens=16))

    async def look(self) -> str:
        known = structlog.contextvars.get_contextvars()["correlation_id"]
        response = await self.http.get("/lookup", headers={"X-Correlation-Id": known})
        response.raise_for_status()
        return str(response.json()["found"])


@contextlib.asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    async with contextlib.AsyncExitStack() as stack:
        taken = stack.enter_context(socket.socket())
        taken.bind(("127.0.0.1", 0))  # bound, so that nobody else gets it; not listening, so that it refuses
        url = await stack.enter_async_context(answering(web.post("/api/chat", chat), web.get("/lookup", lookup)))
        transport = FaultyTransport(taken.getsockname()[1])
        engine = Engine(EngineAt(url=url, model="agent", silence_s=SILENCE_S), Metrics(), transport=transport)
        stack.push_async_callback(engine.close)
        http = await stack.enter_async_context(
            httpx2.AsyncClient(base_url=url, transport=transport, timeout=SILENCE_S, trust_env=False)
        )
        yield Stage(url, engine, http, transport)


Look = Callable[[], Awaitable[str]]


async def turns(model: Model, look: Look, **more: Any) -> str:
    """One run's loop, as the service's. Any: fields of the dialogue."""
    lookup = ToolSpec("lookup", "Look it up.", {"type": "object", "properties": {"what": {"type": "string"}}})
    return await dialogue(model, Made(lambda _name, _arguments: look()), [lookup], **more).go("What is it?")


async def resilient(stage: Stage, pool: ModelPool) -> str:
    deadline = Deadline.after(RUN_S)
    reads = Retries(deadline, BACKOFF)
    model = pool.for_run(deadline, backoff=BACKOFF)
    return await turns(model, lambda: reads.run(stage.look, "read"), broken=(BrokeOffError,))


async def shares(one: Callable[[Stage], Callable[[], Awaitable[str]]]) -> tuple[set[int], Counter[str], Stage]:
    """Return which runs succeeded, and what the others failed of."""
    room, good, failed = asyncio.Semaphore(AT_ONCE), set[int](), Counter[str]()
    async with staged() as stage:
        run = one(stage)

        async def numbered(number: int) -> None:
            async with room:
                with structlog.contextvars.bound_contextvars(correlation_id=f"run-{number:05}"):
                    try:
                        output = await run()
                    except Exception as error:  # noqa: BLE001 each failure is counted by what it is
                        failed[classify(error).category] += 1
                    else:
                        assert output == ANSWER
                        good.add(number)

        await asyncio.gather(*(numbered(number) for number in range(RUNS)))
    return good, failed, stage


@pytest.mark.timeout(120)
async def test_most_runs_that_transient_faults_ended_now_succeed() -> None:
    plain, plain_failed, before = await shares(lambda stage: lambda: turns(stage.native(), stage.look))

    def with_pool(stage: Stage) -> Callable[[], Awaitable[str]]:
        pool = ModelPool([PoolMember(name="gateway")], lambda _: stage.native())
        return lambda: resilient(stage, pool)

    good, still_failed, after = await shares(with_pool)
    lost = set(range(RUNS)) - plain
    recovered = len(lost & good) / len(lost)
    print(  # noqa: T201 the figures are what this is for
        f"\nruns {RUNS}, faults on {sum(before.transport.met.values()) / before.transport.asked:.1%} of calls "
        f"({dict(sorted(before.transport.met.items()))})\n"
        f"without: {len(plain) / RUNS:.1%} succeed; failed by {dict(plain_failed)}\n"
        f"with:    {len(good) / RUNS:.1%} succeed; failed by {dict(still_failed)}; "
        f"faults on {sum(after.transport.met.values()) / after.transport.asked:.1%} of {after.transport.asked} calls\n"
        f"of the {len(lost)} runs that failed without, {recovered:.1%} succeed with it"
    )
    assert set(before.transport.met) == set(KINDS)
    assert len(lost) > RUNS / 4  # else there was nothing to recover from
    assert recovered >= 0.70
    assert len(plain & good) >= 0.98 * len(plain)  # what went well goes well still, on a busy machine, too
