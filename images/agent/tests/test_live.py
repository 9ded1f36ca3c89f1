"""Runs that a client leaves, comes back to, steers and cancels, over SSE and over the WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

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
from websockets.asyncio.client import ClientConnection, connect

from loopbox_agent.live_run import ENDINGS, LiveRun
from loopbox_agent.recorder import Recorder

ANNA = {"X-Loopbox-User": "anna", "X-Loopbox-Role": "user"}
BERT = {"X-Loopbox-User": "bert", "X-Loopbox-Role": "user"}
OPERATOR = {"X-Loopbox-User": "olga", "X-Loopbox-Role": "operator"}
VIEWER = {"X-Loopbox-User": "vera", "X-Loopbox-Role": "viewer"}


async def started(agent: Agent, **body: object) -> str:
    response = await agent.run(background=True, **body)
    assert response.status_code == 202, response.text
    assert response.headers["Location"].endswith(response.json()["run_id"])
    return str(response.json()["run_id"])


async def told(
    agent: Agent, run_id: str, after: int = 0, headers: Mapping[str, str] | None = None
) -> list[tuple[int, str, dict[str, Any]]]:  # Any: JSON
    response = await agent.http.get(
        f"/agents/runs/{run_id}/events", headers={"Last-Event-ID": str(after), **(headers or {})}
    )
    assert response.status_code == 200, response.text
    return parse_events(response.text)


async def test_a_run_in_the_background_is_followed_to_its_end(agent: Agent) -> None:
    events = await told(agent, await started(agent))
    assert [name for _, name, _ in events] == ["run.started", "text.delta", "text.delta", "run.completed"]


@pytest.mark.parametrize("after", range(6))
async def test_a_client_goes_on_after_the_last_event_it_had(agent: Agent, after: int) -> None:
    run_id = await started(agent)
    whole = await told(agent, run_id)
    assert await told(agent, run_id, after) == whole[after:]


async def test_a_stream_that_broke_off_goes_on_within_the_grace(launch: Launch, engine: StubEngine) -> None:
    agent = await launch(resume_grace_s=30)
    engine.scripts = [Script((piece("one two "), piece("three four ")), hold=True)]
    async with agent.http.stream("POST", "/agents/run-agent", json={"instruction": "x", "stream": True}) as response:
        run_id = response.headers["X-Run-Id"]
        async for line in response.aiter_lines():
            if line.startswith("id: 2"):
                break
    assert not engine.left.is_set()
    follow = asyncio.create_task(told(agent, run_id, 2))
    await agent.http.post(f"/agents/runs/{run_id}/cancel")
    rest = await follow
    assert [number for number, _, _ in rest] == list(range(3, 3 + len(rest)))
    assert rest[-1][1] == "run.cancelled"
    assert rest[-1][2]["output"] == "one two three four"


async def test_cancel_while_the_model_speaks_stops_it_and_keeps_what_it_said(agent: Agent, engine: StubEngine) -> None:
    engine.scripts = [Script((piece("half an "),), hold=True)]
    run_id = await started(agent)
    await asyncio.wait_for(engine.holding.wait(), 5)
    answer = (await agent.http.post(f"/agents/runs/{run_id}/cancel")).json()
    assert (answer["status"], answer["output"]) == ("cancelled", "half an")
    await asyncio.wait_for(engine.left.wait(), 5)
    again = (await agent.http.post(f"/agents/runs/{run_id}/cancel")).json()
    assert again == answer


async def test_a_cancel_that_comes_while_the_end_is_written_changes_nothing(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, go_on, asked, end, ask = asyncio.Event(), asyncio.Event(), asyncio.Event(), Recorder.end, LiveRun.cancel

    async def slow(self: Recorder, *args: Any) -> None:  # Any: what it takes
        ending.set()
        await go_on.wait()
        await end(self, *args)

    def cancel(self: LiveRun, why: str) -> None:
        ask(self, why)
        asked.set()

    monkeypatch.setattr(Recorder, "end", slow)
    monkeypatch.setattr(LiveRun, "cancel", cancel)
    run_id = await started(agent)
    await asyncio.wait_for(ending.wait(), 5)
    answer = asyncio.create_task(agent.http.post(f"/agents/runs/{run_id}/cancel"))
    await asyncio.wait_for(asked.wait(), 5)
    go_on.set()
    assert (await answer).json()["status"] == "completed"
    events = await told(agent, run_id)
    assert [name for _, name, _ in events if name in ENDINGS] == ["run.completed"]
    assert (await agent.http.get(f"/agents/runs/{run_id}")).json()["status"] == "completed"


async def test_cancel_while_a_tool_hangs_gives_the_sandbox_back(
    agent: Agent, engine: StubEngine, tools: StubTools, broker: StubBroker
) -> None:
    engine.scripts = [Script((calls("hang"), done()))]
    run_id = await started(agent, tools=["hang"])
    await asyncio.wait_for(tools.hanging.wait(), 5)
    assert (await agent.http.post(f"/agents/runs/{run_id}/cancel")).json()["status"] == "cancelled"
    await broker.all_back()


async def test_a_message_into_a_run_reaches_the_model_before_its_next_turn(
    agent: Agent, engine: StubEngine, tools: StubTools
) -> None:
    engine.scripts = [Script((piece("first"),), hold=True, rest=(done(),)), says("second")]
    run_id = await started(agent)
    await asyncio.wait_for(engine.holding.wait(), 5)
    steered = await agent.http.post(f"/agents/runs/{run_id}/steer", json={"text": "In French, please."})
    assert steered.status_code == 202
    engine.go_on.set()
    events = await told(agent, run_id)
    assert events[-1][2]["output"] == "second"
    assert "run.steered" in [name for _, name, _ in events]
    assert engine.orders[-1]["messages"][-1] == {"role": "user", "content": "In French, please."}
    late = await agent.http.post(f"/agents/runs/{run_id}/steer", json={"text": "more"})
    assert (late.status_code, late.json()["error"]["code"]) == (409, "run_ended")


async def test_a_run_belongs_to_its_user(agent: Agent) -> None:
    response = await agent.http.post("/agents/run-agent", json={"instruction": "x", "background": True}, headers=ANNA)
    run_id = response.json()["run_id"]
    for path in ("", "/events"):
        assert (await agent.http.get(f"/agents/runs/{run_id}{path}", headers=BERT)).status_code == 404
    await told(agent, run_id, headers=ANNA)
    for act in ("cancel", "steer"):
        refused = await agent.http.post(f"/agents/runs/{run_id}/{act}", headers=BERT, json={"text": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_run")
    assert (await agent.http.get(f"/agents/runs/{run_id}", headers=OPERATOR)).json()["user"] == "anna"
    assert (await agent.http.get("/agents/runs", headers=BERT)).json() == {"runs": []}
    assert [r["run_id"] for r in (await agent.http.get("/agents/runs", headers=ANNA)).json()["runs"]] == [run_id]


@pytest.mark.parametrize(
    "headers",
    [
        VIEWER,
        {"X-Loopbox-User": "anna"},
        {"X-Loopbox-Role": "admin"},
        {"X-Loopbox-User": "anna", "X-Loopbox-Role": "root"},
        {"X-Loopbox-User": "../x", "X-Loopbox-Role": "user"},
    ],
)
async def test_a_viewer_or_somebody_unknown_runs_nothing(
    agent: Agent, engine: StubEngine, headers: Mapping[str, str]
) -> None:
    response = await agent.http.post("/agents/run-agent", json={"instruction": "x"}, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    assert engine.orders == []


def dial(agent: Agent, headers: Mapping[str, str] = ANNA) -> connect:
    address = str(agent.http.base_url).replace("http", "ws", 1).rstrip("/") + "/agents/ws"
    return connect(address, additional_headers=headers, proxy=None)


async def heard(socket: ClientConnection, last: str) -> list[dict[str, Any]]:  # Any: JSON
    messages: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while not messages or messages[-1].get("event", messages[-1]["type"]) != last:
            messages.append(json.loads(await socket.recv()))
    return messages


async def test_a_run_over_the_socket_tells_the_same_events(agent: Agent) -> None:
    async with dial(agent) as socket:
        await socket.send(json.dumps({"type": "run", "request": {"instruction": "x"}}))
        messages = await heard(socket, "run.completed")
    assert [m["id"] for m in messages] == [1, 2, 3, 4]
    assert messages[-1]["data"]["output"] == "Hello there"


async def test_a_socket_that_broke_off_goes_on_where_it_was(launch: Launch, engine: StubEngine) -> None:
    agent = await launch(resume_grace_s=30)
    engine.scripts = [Script((piece("one two "), piece("three four ")), hold=True), says("never")]
    async with dial(agent) as socket:
        await socket.send(json.dumps({"type": "run", "request": {"instruction": "x"}}))
        first = await heard(socket, "text.delta")
        run_id = first[0]["run_id"]
    async with dial(agent, BERT) as other:
        await other.send(json.dumps({"type": "resume", "run_id": run_id}))
        assert (await heard(other, "error"))[0]["error"]["code"] == "unknown_run"
    async with dial(agent) as socket:
        await socket.send(json.dumps({"type": "resume", "run_id": run_id, "last_event_id": 2}))
        assert (await heard(socket, "text.delta"))[-1]["id"] == 3
        await socket.send(json.dumps({"type": "steer", "run_id": run_id, "text": "Shorter."}))
        assert (await heard(socket, "run.steered"))[-1]["data"] == {"text": "Shorter."}
        await socket.send(json.dumps({"type": "cancel", "run_id": run_id}))
        assert (await heard(socket, "run.cancelled"))[-1]["data"]["output"] == "one two three four"
    await asyncio.wait_for(engine.left.wait(), 5)


@pytest.mark.parametrize(
    "message", ["", "{", "[]", '{"type":"dance"}', '{"type":"run","request":{"instruction":""}}', "[" * 5000]
)
async def test_a_message_that_is_none_is_refused_and_the_socket_lives(agent: Agent, message: str) -> None:
    async with dial(agent) as socket:
        await socket.send(message)
        assert (await heard(socket, "error"))[0]["error"]["code"] == "validation"
        await socket.send(json.dumps({"type": "run", "request": {"instruction": "x"}}))
        assert (await heard(socket, "run.completed"))[-1]["data"]["output"] == "Hello there"


async def test_what_a_run_told_is_read_again_after_the_agent_was_started_anew(
    launch: Launch, engine: StubEngine
) -> None:
    engine.scripts = [Script((calls("python", code="1"), done())), says(*"abcdef")]
    agent = await launch()
    run_id = await started(agent, tools=["python"])
    whole = await told(agent, run_id)
    state = agent.settings.state_dir
    await launch.stop()
    after = await launch(state_dir=state)
    for number in range(len(whole) + 1):
        assert await told(after, run_id, number) == whole[number:]
    shown = (await after.http.get(f"/agents/runs/{run_id}")).json()
    assert (shown["status"], shown["result"]) == ("completed", whole[-1][2])


async def test_a_conversation_goes_on_where_it_was(agent: Agent, engine: StubEngine) -> None:
    thread = (await agent.http.post("/agents/threads", json={"title": "t"}, headers=ANNA)).json()["thread_id"]
    for text in ("one", "two"):
        body = {"instruction": text, "thread_id": thread}
        answer = await agent.http.post("/agents/run-agent", json=body, headers=ANNA)
        assert (answer.status_code, answer.json()["thread_id"]) == (200, thread)
    assert [(m["role"], m["content"]) for m in engine.orders[-1]["messages"]] == [
        ("user", "one"),
        ("assistant", "Hello there"),
        ("user", "two"),
    ]
    other = await agent.http.post("/agents/run-agent", json=body, headers=BERT)
    assert (other.status_code, other.json()["error"]["code"]) == (404, "not_found")
    messages = (await agent.http.get(f"/agents/threads/{thread}/messages", headers=ANNA)).json()["messages"]
    assert len(messages) == 4
    assert (await agent.http.get(f"/agents/threads/{thread}/messages", headers=BERT)).status_code == 404


async def test_two_runs_do_not_write_into_one_conversation(agent: Agent, engine: StubEngine) -> None:
    thread = (await agent.http.post("/agents/threads", json={})).json()["thread_id"]
    engine.scripts = [Script((piece("a"),), hold=True)]
    first = await started(agent, thread_id=thread)
    await asyncio.wait_for(engine.holding.wait(), 5)
    second = await agent.run(thread_id=thread)
    assert (second.status_code, second.json()["error"]["code"]) == (409, "thread_busy")
    await agent.http.post(f"/agents/runs/{first}/cancel")
    [asked, said] = (await agent.http.get(f"/agents/threads/{thread}/messages")).json()["messages"]
    assert asked["message"]["parts"][0]["content"] == "Say hello."
    assert said["message"]["parts"][0]["content"] == "a [broken off here]"
    engine.scripts = [says("b")]
    assert (await agent.run(thread_id=thread)).status_code == 200


async def test_a_turn_cancelled_in_a_tool_leaves_a_conversation_that_goes_on(
    agent: Agent, engine: StubEngine, tools: StubTools
) -> None:
    thread = (await agent.http.post("/agents/threads", json={})).json()["thread_id"]
    engine.scripts = [Script((calls("hang"), done()))]
    run_id = await started(agent, thread_id=thread, tools=["hang"])
    await asyncio.wait_for(tools.hanging.wait(), 5)
    await agent.http.post(f"/agents/runs/{run_id}/cancel")
    engine.scripts = [says("fine")]
    assert (await agent.run(thread_id=thread)).json()["output"] == "fine"
    roles = [m["role"] for m in engine.orders[-1]["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]
    assert "nobody knows" in engine.orders[-1]["messages"][2]["content"]


async def test_a_conversation_that_fills_its_context_is_compressed_and_nothing_of_it_is_lost(
    launch: Launch, engine: StubEngine
) -> None:
    agent = await launch(num_ctx=512, max_output_tokens=64)
    thread = (await agent.http.post("/agents/threads", json={})).json()["thread_id"]
    engine.counts = True
    engine.scripts = [says("Noted, I will keep that in mind for the harbour report.")]
    compressed: list[dict[str, Any]] = []
    for number in range(16):
        asked = (
            f"Fact {number}: the boat number {number} lies at pier {number % 7} and carries cargo {number * 13}. " * 2
        )
        events = await agent.events(instruction=asked, thread_id=thread)
        assert events[-1][1] == "run.completed", events[-1]
        compressed += [body for _, name, body in events if name == "context.compressed"]
    assert compressed
    for made in compressed:
        assert made["tokens_after"] < 0.5 * made["tokens_before"]
    path = f"/agents/threads/{thread}/messages"
    active = (await agent.http.get(path, params={"limit": 200})).json()["messages"]
    assert active[0]["message"]["parts"][0]["part_kind"] == "compaction"
    assert len(active) < 16
    dropped = (await agent.http.get(path, params={"dropped": True, "query": "Fact 0:", "limit": 200})).json()[
        "messages"
    ]
    assert any("boat number 0" in json.dumps(message["message"]) for message in dropped)
    assert len(engine.orders[-1]["messages"]) < 16
