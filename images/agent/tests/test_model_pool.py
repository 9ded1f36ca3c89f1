"""Several models behind one face, over real HTTP: who is asked, who instead, and what a break is told as."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from images.agent.tests.conftest import Script, StubEngine, answering, done, piece, says
from pydantic import ValidationError
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
)
from pydantic_ai.models import Model, ModelRequestParameters

from loopbox_agent.breaker import Policy
from loopbox_agent.deadline import Deadline
from loopbox_agent.dialogue import Dialogue
from loopbox_agent.engine import ContextExceededError, Engine, EngineAt, EngineFailedError, EngineUnavailableError
from loopbox_agent.errors import AgentError, DeadlineError
from loopbox_agent.metrics import Metrics
from loopbox_agent.model import OllamaModel, Served
from loopbox_agent.model_pool import BrokeOffError, ModelPool, ModelsUnavailableError, PooledModel, Tried
from loopbox_agent.pool_health import Health, Standing, plan_order
from loopbox_agent.pool_member import MOST_MEMBERS, THE_GATEWAY, PoolMember, check_members, least_context, parse_members
from loopbox_agent.remote_model import KeyUnusableError, open_remotes, read_key
from loopbox_agent.retry import Backoff

ASKED: list[ModelMessage] = [ModelRequest.user_text_prompt("Hi")]
QUICK = Backoff(tries=4, base_s=0.001, cap_s=0.002, longest_wait_s=6)
ONCE = Backoff(tries=1, longest_wait_s=0)


def seeded(seed: int) -> Callable[[], float]:
    return random.Random(seed).random  # noqa: S311 the same draws in every run


class Stage:
    """Engines over HTTP and a pool of them."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self.stack = stack
        self.engines: dict[str, StubEngine] = {}
        self.told: list[Tried] = []
        self.now = 0.0

    async def engine(self, name: str, *scripts: Script) -> StubEngine:
        stub = StubEngine(scripts=list(scripts))
        stub.url = await self.stack.enter_async_context(answering(web.post("/api/chat", stub.chat)))
        self.engines[name] = stub
        return stub

    def build(self, member: PoolMember) -> Model:
        url = self.engines[member.name].url
        engine = Engine(EngineAt(url=url, model=member.model, connect_s=2, silence_s=2), Metrics())
        self.stack.push_async_callback(engine.close)
        return OllamaModel(engine, Served(model=member.model, num_ctx=512, max_output_tokens=16))

    def pool(self, *members: PoolMember, **changes: Any) -> ModelPool:  # Any: the pool's own arguments
        given = {"clock": lambda: self.now, "told": self.told.append, **changes}
        return ModelPool(members or [PoolMember(name=name) for name in self.engines], self.build, **given)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with contextlib.AsyncExitStack() as stack:
        yield Stage(stack)


def model(pool: ModelPool, seconds: float = 20, backoff: Backoff = QUICK, sleep: Any = asyncio.sleep) -> PooledModel:
    return pool.for_run(Deadline.after(seconds), backoff=backoff, draw=seeded(3), sleep=sleep)


def ranked(*names: str) -> list[PoolMember]:
    return [PoolMember(name=name, priority=number) for number, name in enumerate(names)]


async def stream(asked: Model) -> str:
    text = ""
    async with asked.request_stream(ASKED, None, ModelRequestParameters()) as response:
        async for event in response:
            match event:
                case (
                    PartStartEvent(part=TextPart(content=more))
                    | PartDeltaEvent(delta=TextPartDelta(content_delta=more))
                ):
                    text += more
    return text


REFUSED = [
    Script(({"error": "boom"},), status=500),
    Script(({"error": "busy"},), status=503),
    Script(({"error": "too many"},), status=429),
    Script((b"<html>\n",)),
    Script((), cut=True),
    Script(()),
    Script(({"error": 'model "agent" not found'},), status=404),
]


@pytest.mark.parametrize("script", REFUSED, ids=range(len(REFUSED)))
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_member_that_fails_before_its_first_token_is_passed_over(
    stage: Stage, script: Script, *, streamed: bool
) -> None:
    await stage.engine("first", script)
    await stage.engine("second", says("Hello", " there"))
    asked = model(stage.pool(*ranked("first", "second")))
    if streamed:
        assert await stream(asked) == "Hello there"
    else:
        assert (await asked.request(ASKED, None, ModelRequestParameters())).text == "Hello there"
    assert [(tried.member, tried.category is None) for tried in stage.told] == [("first", False), ("second", True)]
    assert len(stage.engines["second"].orders) == 1


async def test_a_break_after_the_first_token_is_told_and_nobody_else_is_asked(stage: Stage) -> None:
    """Guards against text that a client has seen being said twice, by another model, as if it went on."""
    await stage.engine("first", Script((piece("Hel"), piece("lo")), cut=True))
    await stage.engine("second", says("Other"))
    with pytest.raises(BrokeOffError) as caught:
        await stream(model(stage.pool(*ranked("first", "second"))))
    assert (caught.value.member, caught.value.failure.category) == ("first", "network")
    assert not stage.engines["second"].orders
    assert [tried.streaming for tried in stage.told] == [False, True]


async def test_unseen_text_that_breaks_off_is_asked_for_again(stage: Stage) -> None:
    await stage.engine("only", Script((piece("Hel"),), cut=True), says("Hello"))
    answer = await model(stage.pool()).request(ASKED, None, ModelRequestParameters())
    assert answer.text == "Hello"


async def test_one_member_alone_is_tried_again_and_then_given_up(stage: Stage) -> None:
    engine = await stage.engine("only", *[Script(({"error": "x"},), status=500)] * 2, says("Hello"))
    assert await stream(model(stage.pool())) == "Hello"
    engine.scripts = [Script(({"error": "x"},), status=500)]
    with pytest.raises(EngineFailedError):
        await stream(model(stage.pool()))
    assert len(engine.orders) == 3 + QUICK.tries


async def test_a_request_that_is_wrong_is_asked_once_and_blames_nobody(stage: Stage) -> None:
    await stage.engine("first", Script(({"error": "prompt exceeds the context length"},), status=400))
    await stage.engine("second", says("Hello"))
    pool = stage.pool(*ranked("first", "second"))
    with pytest.raises(ContextExceededError):
        await stream(model(pool))
    assert [len(engine.orders) for engine in stage.engines.values()] == [1, 0]
    assert (pool.snapshot()[0].breaker.calls, pool.snapshot()[0].failing) == (0, 0)


async def test_a_member_that_asks_for_rest_gets_it(stage: Stage) -> None:
    class Limited(StubEngine):
        async def chat(self, request: web.Request) -> web.StreamResponse:
            self.orders.append(await request.json())
            return web.json_response({"error": "slow down"}, status=429, headers={"Retry-After": "30"})

    limited = Limited()
    limited.url = await stage.stack.enter_async_context(answering(web.post("/api/chat", limited.chat)))
    stage.engines["limited"] = limited
    await stage.engine("other", says("Hello"))
    pool = stage.pool(*ranked("limited", "other"))
    for _ in range(3):
        assert await stream(model(pool)) == "Hello"
    assert (len(limited.orders), pool.snapshot()[0].held_s) == (1, 30)
    assert pool.snapshot()[0].breaker.failures == 0  # it is alive
    stage.now += 31
    assert await stream(model(pool)) == "Hello"
    assert len(limited.orders) == 2


async def test_a_member_that_keeps_failing_is_left_alone_then_probed(stage: Stage) -> None:
    engine = await stage.engine("ill", Script(({"error": "x"},), status=500))
    await stage.engine("well", says("Hello"))
    pool = stage.pool(*ranked("ill", "well"), policy=Policy(window=4, least=3, open_s=5))
    for _ in range(6):
        assert await stream(model(pool)) == "Hello"
    assert (len(engine.orders), pool.snapshot()[0].breaker.state) == (3, "open")
    engine.scripts = [says("Better")]
    stage.now += 5
    assert [await stream(model(pool)) for _ in range(2)] == ["Better", "Better"]
    assert pool.snapshot()[0].breaker.state == "closed"


async def test_a_probe_that_was_cancelled_lets_the_next_one_through(stage: Stage) -> None:
    engine = await stage.engine("only", Script(({"error": "x"},), status=500))
    pool = stage.pool(policy=Policy(window=3, least=3, open_s=5))
    for _ in range(3):
        with pytest.raises(EngineFailedError):
            await stream(model(pool, backoff=ONCE))
    stage.now += 5
    engine.scripts = [Script((), hold=True), says("Hello")]
    task = asyncio.create_task(stream(model(pool)))
    await engine.holding.wait()
    task.cancel()
    await asyncio.wait({task})
    assert await stream(model(pool, backoff=ONCE)) == "Hello"


async def test_a_probes_first_token_lets_the_others_in(stage: Stage) -> None:
    """Guards against runs that wait for the end of a long answer."""
    engine = await stage.engine("only", Script(({"error": "x"},), status=500))
    pool = stage.pool(policy=Policy(window=3, least=3, open_s=5))
    for _ in range(3):
        with pytest.raises(EngineFailedError):
            await stream(model(pool, backoff=ONCE))
    stage.now += 5
    engine.scripts = [Script((piece("Once"),), hold=True), says("Hello")]
    async with model(pool).request_stream(ASKED, None, ModelRequestParameters()) as response:
        async for _ in response:
            break
        assert await stream(model(pool, backoff=ONCE)) == "Hello"


async def test_when_nobody_may_be_asked_that_is_said_with_a_time(stage: Stage) -> None:
    engine = await stage.engine("only", Script(({"error": "x"},), status=500))
    pool = stage.pool(policy=Policy(window=3, least=3, open_s=5))
    for _ in range(3):
        with pytest.raises(EngineFailedError):
            await stream(model(pool, backoff=ONCE))
    with pytest.raises(ModelsUnavailableError) as caught:
        await stream(model(pool, backoff=ONCE))
    assert (caught.value.status, caught.value.retry_after_s, len(engine.orders)) == (503, 5, 3)

    async def sleep(seconds: float) -> None:
        stage.now += seconds
        engine.scripts = [says("Hello")]

    assert await stream(model(pool, sleep=sleep)) == "Hello"  # a run that has the time waits for the probe


async def test_a_slow_first_token_is_a_failure_of_that_member(stage: Stage) -> None:
    slow = await stage.engine("slow", Script((), hold=True))
    await stage.engine("swift", says("Hello"))
    members = [
        PoolMember(name="slow", priority=1, first_token_s=0.05),
        PoolMember(name="swift", priority=2),
    ]
    assert await stream(model(stage.pool(*members))) == "Hello"
    assert stage.told[0].category == "timeout"
    await asyncio.wait_for(slow.left.wait(), 5)  # nothing is generated for nobody


async def test_the_deadline_of_the_run_holds_around_everything(stage: Stage) -> None:
    engine = await stage.engine("only", Script((), hold=True))
    pool = stage.pool()
    with pytest.raises(DeadlineError):
        await stream(model(pool, seconds=0.1))
    await asyncio.wait_for(engine.left.wait(), 5)
    assert pool.snapshot()[0].breaker.failures == 0


async def test_leaving_early_stops_the_generation_and_blames_nobody(stage: Stage) -> None:
    engine = await stage.engine("only", Script((piece("a"), piece("b")), hold=True))
    pool = stage.pool()
    async with model(pool).request_stream(ASKED, None, ModelRequestParameters()) as response:
        async for _ in response:
            break
    await asyncio.wait_for(engine.left.wait(), 5)
    assert (pool.snapshot()[0].breaker.failures, pool.snapshot()[0].breaker.calls) == (0, 1)


async def test_an_error_of_whoever_reads_stays_what_it_is(stage: Stage) -> None:
    await stage.engine("only", says("a", "b"))
    with pytest.raises(ZeroDivisionError):
        async with model(stage.pool()).request_stream(ASKED, None, ModelRequestParameters()) as response:
            async for _ in response:
                raise ZeroDivisionError
    assert [tried.category for tried in stage.told] == [None]


async def test_the_answer_is_the_members_own_with_usage_and_parts(stage: Stage) -> None:
    await stage.engine("only", Script((piece("Hello"), done(read=11, generated=5))))
    async with model(stage.pool()).request_stream(ASKED, None, ModelRequestParameters()) as response:
        kinds = [type(event).__name__ async for event in response]
    answer = response.get()
    assert kinds == ["PartStartEvent"]
    assert (answer.text, answer.usage.input_tokens, answer.usage.output_tokens) == ("Hello", 11, 5)
    assert (answer.state, answer.finish_reason, answer.provider_name) == ("complete", "stop", "ollama")


async def test_an_empty_answer_is_an_answer(stage: Stage) -> None:
    await stage.engine("only", Script((done(),)))
    assert await stream(model(stage.pool())) == ""


async def test_a_turn_that_broke_off_is_begun_anew_from_the_history(stage: Stage) -> None:
    """The way a run's loop takes: what was half said is dropped, no prompt is asked twice."""
    broken = Script((piece("Half a"), piece(" sentence")), cut=True)
    engine = await stage.engine("only", broken, says("Whole"))
    told: list[tuple[str, Any]] = []  # Any: JSON
    talk = Dialogue(
        model=model(stage.pool()),
        settings={},
        most_turns=3,
        tell=lambda name, body: told.append((name, body)),
        instructions="Be kind.",
        broken=(BrokeOffError,),
    )
    assert await talk.go("Hi") == "Whole"
    assert engine.orders[0]["messages"] == engine.orders[1]["messages"]
    assert ("text.reset", {"characters": len("Half a sentence")}) in told
    assert [type(message) for message in talk.fresh] == [ModelRequest, ModelResponse]


# remote endpoints


def chunk(text: str = "", finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    body = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(body)}\n\n".encode()


@dataclass
class StubRemote:
    """An OpenAI-style endpoint."""

    pieces: list[bytes] = field(default_factory=lambda: [chunk("Hello"), chunk(" you"), chunk(finish="stop")])
    status: int = 200
    keys: list[str] = field(default_factory=list)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.keys.append(request.headers.get("Authorization", ""))
        await request.read()
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status, headers={"Retry-After": "3"})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for told in self.pieces:
            await response.write(told)
        return response


@contextlib.asynccontextmanager
async def remote_pool(stub: StubRemote, key: Path | None = None) -> AsyncIterator[ModelPool]:
    def none(_: PoolMember) -> Model:
        raise AssertionError("there is no native member")

    async with answering(web.post("/v1/chat/completions", stub.chat)) as url:
        member = PoolMember.model_validate(
            {"name": "far", "kind": "openai", "url": f"{url}/v1", "model": "m", "api_key_file": key}
        )
        async with open_remotes([member], none) as build:
            yield ModelPool([member], build)


async def test_a_remote_model_answers_with_its_key_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-test-1\n")
    stub = StubRemote()
    async with remote_pool(stub, tmp_path / "key") as pool:
        assert await stream(model(pool)) == "Hello you"
    assert stub.keys == ["Bearer sk-test-1"]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([chunk("Hello")], "finish_reason"),
        ([chunk("Hello"), b"data: {rubbish\n\n"], "property name"),
        ([chunk("Hello"), b'data: {"error": {"message": "overloaded"}}\n\n'], "overloaded"),
    ],
)
async def test_a_remote_answer_that_is_cut_is_no_answer(pieces: list[bytes], words: str) -> None:
    """Guards against half an answer that passes for a whole one: here a cut connection looks like an end."""
    async with remote_pool(StubRemote(pieces)) as pool:
        with pytest.raises(BrokeOffError, match=words):
            await stream(model(pool, backoff=ONCE))


@pytest.mark.parametrize(
    ("status", "category"), [(401, "authentication"), (404, "not_found"), (429, "rate_limit"), (500, "service")]
)
async def test_a_remote_refusal_has_its_category(status: int, category: str) -> None:
    told: list[Tried] = []
    async with remote_pool(StubRemote(status=status)) as pool:
        pool._told = told.append
        with pytest.raises(Exception, match="status_code"):
            await stream(model(pool, backoff=ONCE))
    assert [tried.category for tried in told] == [category]
    assert pool.snapshot()[0].held_s == pytest.approx(3 if status == 429 else 0, abs=0.5)


@pytest.mark.parametrize("text", ["", "two words", "x" * 5000, "ä", "a\nb"])
def test_a_file_without_a_key_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(KeyUnusableError) as caught:
        read_key(tmp_path / "key")
    assert "two words" not in str(caught.value)
    with pytest.raises(KeyUnusableError):
        read_key(tmp_path / "none")


# configuration and order


@pytest.mark.parametrize(
    "wrong",
    [
        [{"name": "a"}, {"name": "a"}],
        [{"name": f"m{number}"} for number in range(MOST_MEMBERS + 1)],
        [{"name": "A b"}],
        [{"name": "a", "kind": "openai"}],
        [{"name": "a", "proxy": "http://p:1"}],
        [{"name": "a", "url": "http://user:pass@x"}],
        [{"name": "a", "kind": "openai", "url": "http://far.example/v1", "api_key_file": "/k"}],
        [{"name": "a", "weight": 0}],
        [{"name": "a", "unknown": 1}],
        {"name": "a"},
    ],
)
def test_a_wrong_configuration_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError):
        parse_members(json.dumps(wrong))


def test_a_conversation_must_fit_whoever_is_asked() -> None:
    small, large = PoolMember(name="small", num_ctx=512), PoolMember(name="large", num_ctx=8192)
    assert least_context([large, small, PoolMember(name="own")], 2048) == 512
    assert least_context([large, PoolMember(name="own")], 2048) == 2048
    assert least_context([large], 2048) == 8192


def test_no_configuration_is_the_gateway_alone() -> None:
    assert parse_members("") == parse_members("[]") == check_members([]) == (THE_GATEWAY,)


STANDINGS = st.lists(
    st.builds(
        Standing, st.integers(0, 3), st.integers(1, 1000), st.floats(0, 1), st.none() | st.floats(0, 1e4, width=32)
    ),
    min_size=1,
    max_size=MOST_MEMBERS,
)


@given(STANDINGS, st.randoms(use_true_random=False))
def test_every_member_has_its_place_and_priority_comes_first(standings: list[Standing], rng: random.Random) -> None:
    order = plan_order(standings, rng.random)
    assert sorted(order) == list(range(len(standings)))
    assert [standings[place].priority for place in order] == sorted(one.priority for one in standings)


def shares(standings: list[Standing], draw: Callable[[], float]) -> float:
    return sum(plan_order(standings, draw)[0] == 0 for _ in range(4000)) / 4000


def test_equals_share_by_weight_and_health() -> None:
    draw = seeded(1)
    well, ill, slow = Standing(1, 300, 0, 0.1), Standing(1, 100, 0.9, 0.1), Standing(1, 100, 0, 1.0)
    assert shares([well, Standing(1, 100, 0, 0.1)], draw) == pytest.approx(0.75, abs=0.03)
    assert shares([ill, well], draw) < 0.05
    assert 0.01 < shares([slow, well], draw) < 0.1  # seldom, not never: it must be seen to recover


@given(st.lists(st.booleans(), max_size=200))
def test_health_forgets(outcomes: list[bool]) -> None:
    health = Health()
    for failed in outcomes:
        health.failed() if failed else health.answered(0.1)
        assert 0 <= health.failing <= 1
    for _ in range(40):
        health.answered(0.1)
    assert health.failing < 0.001
    assert health.first_token_s == pytest.approx(0.1)


async def test_an_engine_by_its_url_tells_what_was_answered(stage: Stage) -> None:
    engine = await stage.engine("only", Script(({"error": "busy"},), status=429))
    asked = stage.build(PoolMember(name="only"))
    with pytest.raises(EngineUnavailableError) as caught:
        await stream(asked)
    assert isinstance(caught.value, AgentError)
    assert (caught.value.details, caught.value.retry_after_s, len(engine.orders)) == ({"upstream_status": 429}, 2, 1)
