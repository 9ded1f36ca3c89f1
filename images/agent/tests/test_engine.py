"""What the agent asks of the engine, and each way an engine can fail."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from images.agent.tests.conftest import Launch, Script, StubEngine, done, piece, says

from loopbox_agent.engine import Engine
from loopbox_agent.errors import AgentError
from loopbox_agent.metrics import Metrics
from loopbox_agent.settings import Settings
from loopbox_agent.wire import ChatOrder, Message, Options

ORDER = ChatOrder(
    model="agent", messages=(Message(role="user", content="Hi"),), options=Options(num_ctx=2048, num_predict=8)
)


async def ask(url: str, **changes: Any) -> str:  # Any: settings
    settings = Settings.model_validate({"engine_url": url, "engine_silence_s": 5, **changes})
    engine = Engine(settings, Metrics())
    try:
        async with engine.chat(ORDER) as chunks:
            return "".join([chunk.message.content async for chunk in chunks])
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("script", "code", "status"),
    [
        (Script((piece("a"),)), "engine_broke_off", 502),
        (Script((piece("a"),), cut=True), "engine_broke_off", 502),
        (Script((piece("a"), {"error": "out of memory"})), "engine_failed", 502),
        (Script((b"<html>\n",)), "engine_failed", 502),
        (Script((b"x" * ((1 << 20) + 1),)), "engine_failed", 502),
        (Script(({"error": "boom"},), status=500), "engine_failed", 502),
        (Script((b"<html>busy</html>",), status=503), "engine_unavailable", 503),
        (Script(({"error": 'model "agent" not found'},), status=404), "engine_unavailable", 503),
        (Script(({"error": "prompt exceeds the context length"},), status=400), "context_exceeded", 422),
    ],
)
async def test_each_way_to_fail_has_its_own_name(engine: StubEngine, script: Script, code: str, status: int) -> None:
    """Guards against a cut answer that passes for a whole one, and against causes that get lost."""
    engine.scripts = [script]
    with pytest.raises(AgentError) as caught:
        await ask(engine.url)
    assert (caught.value.code, caught.value.status) == (code, status)


async def test_a_silent_engine_is_given_up(engine: StubEngine) -> None:
    engine.scripts = [Script((piece("a"),), hold=True)]
    with pytest.raises(AgentError) as caught:
        await ask(engine.url, engine_silence_s=0.2)
    assert caught.value.code == "engine_silent"


async def test_no_gateway_is_named_as_such() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so that nobody else gets it; not listening, so that it refuses
        with pytest.raises(AgentError) as caught:
            await ask(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert (caught.value.code, caught.value.retry_after_s) == ("engine_unavailable", 2)
    assert caught.value.__cause__ is not None


async def test_an_answer_with_separators_of_text_libraries_is_read_whole(engine: StubEngine) -> None:
    """Guards against cutting the stream at U+2028 or U+0085, which are lawful inside a JSON string."""
    words = "one\u2028two\u0085three"
    line = f'{{"message":{{"content":"{words}"}}}}\n'.encode()
    engine.scripts = [Script((line, done()))]
    assert await ask(engine.url) == words


async def test_every_request_carries_the_context_length_and_forbids_silent_cuts(
    launch: Launch, engine: StubEngine
) -> None:
    """Guards against a reload for another num_ctx, and against a prompt that the engine shortens by itself."""
    agent = await launch(num_ctx=1024, max_output_tokens=99)
    await agent.run(system="Be kind.", temperature=0.25, seed=5)
    await agent.run(max_output_tokens=4)
    first, second = engine.orders
    assert first["options"] == {"num_ctx": 1024, "num_predict": 99, "temperature": 0.25, "seed": 5}
    assert first["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Say hello."},
    ]
    assert (first["truncate"], first["shift"], "tools" in first) == (False, False, False)
    assert second["options"] == {"num_ctx": 1024, "num_predict": 4}


async def test_connections_to_the_engine_are_used_again(launch: Launch, engine: StubEngine) -> None:
    agent = await launch()
    engine.scripts = [says("a")]
    for _ in range(3):
        assert (await agent.run()).status_code == 200
    assert len(engine.orders) == 3
    assert len(engine.peers) == 1
