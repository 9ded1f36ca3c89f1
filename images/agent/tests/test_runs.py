"""Runs: chat, streams, tools offered and forced, and the way each run gives its sandbox back."""

from __future__ import annotations

import asyncio
import json

import pytest
from images.agent.tests.conftest import (
    Agent,
    Launch,
    Script,
    StubBroker,
    StubEngine,
    StubTools,
    calls,
    done,
    parse_events,
    piece,
    says,
)

PYTHON = {"name": "python", "arguments": {"code": "6*7"}}


def filled(text: str) -> Script:
    return Script((piece(text), done()))


async def test_a_chat_answers_in_the_documented_form(agent: Agent, broker: StubBroker) -> None:
    response = await agent.run()
    body = response.json()
    assert (response.status_code, body["status"], body["output"], body["tool_calls"]) == (
        200,
        "completed",
        "Hello there",
        [],
    )
    assert body["usage"] == {"input_tokens": 7, "output_tokens": 3}
    assert set(body) == {
        "run_id", "status", "output", "structured", "tool_calls", "usage", "model", "duration_ms", "correlation_id",
        "thread_id",
    }  # fmt: skip
    assert broker.lent == []  # a chat costs no sandbox


@pytest.mark.parametrize("by", ["field", "header"])
async def test_a_stream_has_each_piece_and_ends_with_the_blocking_body(agent: Agent, by: str) -> None:
    headers = {"Accept": "text/event-stream"} if by == "header" else {}
    body = {"instruction": "x", **({"stream": True} if by == "field" else {})}
    response = await agent.http.post("/agents/run-agent", json=body, headers=headers)
    events = parse_events(response.text)
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    assert [name for _, name, _ in events] == ["run.started", "text.delta", "text.delta", "run.completed"]
    assert "".join(e["text"] for _, name, e in events if name == "text.delta") == "Hello there"
    assert events[-1][2]["output"] == "Hello there"
    assert events[-1][2]["correlation_id"] == response.headers["X-Correlation-Id"]


async def test_a_stream_is_sent_while_the_model_still_speaks(agent: Agent, engine: StubEngine) -> None:
    """Guards against an answer that is collected first and streamed afterwards."""
    engine.scripts = [Script((piece("early"),), hold=True)]
    async with agent.http.stream("POST", "/agents/run-agent", json={"instruction": "x", "stream": True}) as response:
        async for line in response.aiter_lines():
            if "early" in line:
                break
    await asyncio.wait_for(engine.left.wait(), 5)


async def test_an_engine_that_dies_in_a_stream_ends_it_with_run_failed(agent: Agent, engine: StubEngine) -> None:
    engine.scripts = [Script((piece("a"),), cut=True)]
    events = await agent.events()
    assert events[-1][1] == "run.failed"
    assert events[-1][2]["error"]["code"] == "engine_broke_off"
    assert set(events[-1][2]["error"]) == {"code", "message", "details", "timestamp"}


async def test_a_forced_tool_with_arguments_runs_without_the_model(
    agent: Agent, engine: StubEngine, tools: StubTools, broker: StubBroker
) -> None:
    body = (await agent.run(tool_choice=PYTHON)).json()
    (call,) = body["tool_calls"]
    assert (body["output"], call["result"]) == ("ran 6*7", {"stdout": "ran 6*7", "exit_code": 0})
    assert (call["name"], call["arguments"], call["is_error"]) == ("python", {"code": "6*7"}, False)
    assert call["duration_ms"] >= 0
    assert tools.ran == [("python", {"code": "6*7"})]
    assert engine.orders == []
    await broker.all_back()


async def test_a_forced_tool_is_filled_by_the_model_under_its_schema(agent: Agent, engine: StubEngine) -> None:
    engine.scripts = [filled('{"code": "1+1"}')]
    body = (await agent.run(tool_choice={"name": "python"}, seed=4)).json()
    assert body["tool_calls"][0]["arguments"] == {"code": "1+1"}
    assert body["usage"] == {"input_tokens": 7, "output_tokens": 3}
    order = engine.orders[0]
    assert order["format"]["properties"]["code"]["maxLength"] <= 1024
    assert 0 < order["options"]["num_predict"] <= 512


@pytest.mark.parametrize("bad", ["{", "[1]", '"words"', '{"code": 5}', '{"code": "x", "zz": 1}', "[" * 50_000, "null"])
async def test_arguments_that_do_not_fit_are_asked_for_again(
    agent: Agent, engine: StubEngine, tools: StubTools, bad: str
) -> None:
    engine.scripts = [filled(bad), filled('{"code": "ok"}')]
    response = await agent.run(tool_choice={"name": "python"})
    assert (response.status_code, tools.ran) == (200, [("python", {"code": "ok"})])
    assert engine.orders[0]["options"]["seed"] != engine.orders[1]["options"]["seed"]


async def test_arguments_that_never_fit_end_the_run_before_the_tool(
    agent: Agent, engine: StubEngine, tools: StubTools, broker: StubBroker
) -> None:
    engine.scripts = [filled("rubbish")]
    response = await agent.run(tool_choice={"name": "python"})
    assert (response.status_code, response.json()["error"]["code"]) == (502, "model_output_invalid")
    assert (len(engine.orders), tools.ran) == (2, [])
    await broker.all_back()


async def test_given_arguments_are_checked_before_the_tool_is_called(
    agent: Agent, tools: StubTools, broker: StubBroker
) -> None:
    response = await agent.run(tool_choice={"name": "python", "arguments": {"code": 5}})
    assert response.status_code == 422
    assert "code" in response.json()["error"]["message"]
    assert tools.ran == []
    await broker.all_back()


@pytest.mark.parametrize("body", [{"tool_choice": {"name": "teleport"}}, {"tools": ["python", "teleport"]}])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_tool_lists_those_there_are_and_leaks_no_sandbox(
    agent: Agent, broker: StubBroker, body: dict[str, object], *, stream: bool
) -> None:
    if stream:
        error = (await agent.events(**body))[-1][2]["error"]
    else:
        response = await agent.run(**body)
        assert response.status_code == 400
        error = response.json()["error"]
    assert error["code"] == "unknown_tool"
    assert "python" in error["message"]
    assert len(broker.lent) == 1
    await broker.all_back()


async def test_a_tool_that_fails_is_an_answer(agent: Agent) -> None:
    body = (await agent.run(tool_choice={"name": "fail", "arguments": {}})).json()
    assert (body["status"], body["tool_calls"][0]["is_error"], body["output"]) == ("completed", True, "fail said so")


async def test_a_tool_without_structured_output_gives_its_text(agent: Agent) -> None:
    body = (await agent.run(tool_choice={"name": "plain", "arguments": {}})).json()
    assert "plain said so" in json.dumps(body["tool_calls"][0]["result"])


async def test_the_model_calls_an_offered_tool_and_answers_with_its_result(
    agent: Agent, engine: StubEngine, tools: StubTools, broker: StubBroker
) -> None:
    engine.scripts = [Script((calls("python", code="6*7"), done())), says("It is 42.")]
    events = await agent.events(tools=["python"])
    names = [name for _, name, _ in events]
    assert [n for n in names if n != "text.delta"] == ["run.started", "tool.started", "tool.finished", "run.completed"]
    assert events[-1][2]["output"] == "It is 42."
    assert events[-1][2]["usage"] == {"input_tokens": 14, "output_tokens": 6}
    first, second = engine.orders
    assert [t["function"]["name"] for t in first["tools"]] == ["python"]  # only what was asked for
    assert [m["role"] for m in second["messages"]] == ["user", "assistant", "tool"]
    assert second["messages"][-1]["content"] == "ran 6*7"
    assert tools.ran == [("python", {"code": "6*7"})]
    await broker.all_back()


async def test_a_model_that_calls_tools_for_ever_is_stopped(
    launch: Launch, engine: StubEngine, broker: StubBroker
) -> None:
    agent = await launch(max_turns=3)
    engine.scripts = [Script((calls("python", code="1"), done()))]
    response = await agent.run(tools=["python"])
    assert response.status_code == 502
    assert len(engine.orders) == 3
    await broker.all_back()


@pytest.mark.parametrize("script", [calls("teleport"), calls("python", code=5), calls("python")])
async def test_a_model_that_calls_a_tool_wrongly_does_not_break_the_agent(
    agent: Agent, engine: StubEngine, broker: StubBroker, tools: StubTools, script: dict[str, object]
) -> None:
    engine.scripts = [Script((script, done())), says("Sorry.")]
    response = await agent.run(tools=["python"])
    assert response.status_code in {200, 502}, response.text
    assert all(isinstance(arguments.get("code"), str) for _, arguments in tools.ran)
    await broker.all_back()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
@pytest.mark.parametrize("where", ["model", "tool"])
async def test_a_client_that_goes_away_ends_its_run_and_frees_its_sandbox(
    agent: Agent, engine: StubEngine, tools: StubTools, broker: StubBroker, where: str, *, stream: bool
) -> None:
    """Guards against runs that generate and hold a sandbox for nobody."""
    if where == "model":
        engine.scripts = [Script((piece("a"),), hold=True)]
        body: dict[str, object] = {"tools": ["python"]}
        busy = engine.holding
    else:
        body = {"tool_choice": {"name": "hang", "arguments": {}}}
        busy = tools.hanging
    run = asyncio.create_task(agent.run(stream=stream, **body))
    await asyncio.wait_for(busy.wait(), 5)
    assert broker.out
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    if where == "model":
        await asyncio.wait_for(engine.left.wait(), 5)
    await broker.all_back()
    async with asyncio.timeout(5):
        while (await agent.http.get("/health/detailed")).json()["running_runs"]:
            await asyncio.sleep(0.01)


async def test_a_client_that_leaves_while_a_sandbox_is_being_lent_leaves_no_lease(
    agent: Agent, broker: StubBroker
) -> None:
    """Guards against the lease whose name is lost between the broker's decision and its answer."""
    broker.answer.clear()
    run = asyncio.create_task(agent.run(tool_choice=PYTHON))
    await asyncio.wait_for(broker.asked.wait(), 5)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    async with asyncio.timeout(5):
        while (await agent.http.get("/health/detailed")).json()["running_runs"]:
            await asyncio.sleep(0.01)
    broker.answer.set()
    await broker.all_back()


async def test_a_run_past_its_deadline_is_ended_and_told_so(
    launch: Launch, broker: StubBroker, tools: StubTools
) -> None:
    agent = await launch(run_timeout_s=0.5)
    response = await agent.run(tool_choice={"name": "hang", "arguments": {}})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    await broker.all_back()


async def test_no_free_sandbox_is_told_as_such(agent: Agent, broker: StubBroker) -> None:
    broker.empty = True
    response = await agent.run(tool_choice=PYTHON)
    assert response.status_code == 503
    assert response.headers["Retry-After"]
    assert broker.out == set()


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "gone/tools.sock"])
async def test_a_socket_that_is_not_a_tool_runners_is_refused_and_given_back(
    agent: Agent, broker: StubBroker, path: str
) -> None:
    broker.socket = path
    response = await agent.run(tool_choice=PYTHON)
    assert response.status_code in {502, 503}, response.text
    await broker.all_back()


async def test_many_runs_at_once_stay_apart(agent: Agent, broker: StubBroker) -> None:
    codes = [f"code {n}" for n in range(12)]
    choices = [{"name": "python", "arguments": {"code": code}} for code in codes]
    bodies = await asyncio.gather(*(agent.run(tool_choice=choice) for choice in choices))
    assert [b.json()["output"] for b in bodies] == [f"ran {code}" for code in codes]
    await broker.all_back()


async def test_a_client_that_stops_reading_is_let_go(launch: Launch, engine: StubEngine, broker: StubBroker) -> None:
    """Guards against a full event queue that holds a run, its slot and its sandbox for ever."""
    agent = await launch(send_timeout_s=0.3)
    engine.scripts = [Script((*(piece("x" * 4096) for _ in range(3000)), done()))]
    reader, writer = await asyncio.open_connection("127.0.0.1", agent.http.base_url.port, limit=1024)
    body = json.dumps({"instruction": "x", "stream": True, "tools": ["python"]}).encode()
    head = f"POST /agents/run-agent HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await asyncio.wait_for(reader.readline(), 5)
    await asyncio.wait_for(broker.asked.wait(), 5)
    await broker.all_back()
    async with asyncio.timeout(5):
        while (await agent.http.get("/health/detailed")).json()["running_runs"]:
            await asyncio.sleep(0.01)
    writer.close()
