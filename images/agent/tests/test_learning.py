"""What is kept to learn from, as a user's runs leave it, and what people say of it."""

from __future__ import annotations

import asyncio
from typing import Any

from images.agent.tests.conftest import Agent, Launch, Script, StubEngine, calls, done, piece, says

ANNA = {"X-Loopbox-User": "anna", "X-Loopbox-Role": "user"}
BERT = {"X-Loopbox-User": "bert", "X-Loopbox-Role": "user"}
OLGA = {"X-Loopbox-User": "olga", "X-Loopbox-Role": "operator"}


async def kept(agent: Agent, many: int) -> list[Any]:  # Any: JSON
    """Return what was kept, once it is so many: a run is answered before that is written."""
    async with asyncio.timeout(5):
        while True:
            answer = await agent.http.get("/agents/interactions", headers=OLGA)
            assert answer.status_code == 200, answer.text
            if len(found := answer.json()["interactions"]) >= many:
                return list(found)
            await asyncio.sleep(0.01)


async def ask(agent: Agent, instruction: str, **body: object) -> str:
    answer = await agent.http.post("/agents/run-agent", json={"instruction": instruction, **body}, headers=ANNA)
    return str(answer.json()["run_id"]) if answer.status_code == 200 else ""


async def test_a_run_with_a_tool_is_kept_masked_with_what_was_offered(agent: Agent, engine: StubEngine) -> None:
    engine.scripts = [Script((calls("python", code="1"), done())), says("The result is 1. Mail a@example.com")]
    run_id = await ask(agent, "Count. I am anna.smith@example.org", tools=["python"])
    [one] = await kept(agent, 1)
    assert (one["run_id"], one["user"], one["outcome"], one["rating"]) == (run_id, "anna", "completed", None)
    assert [message["kind"] for message in one["messages"]] == ["request", "response", "request", "response"]
    assert [tool["name"] for tool in one["tools"]] == ["python"]
    assert one["tools"][0]["parameters"]["type"] == "object"
    assert "example" not in str(one["messages"])
    assert (await agent.http.get("/agents/interactions", headers=ANNA)).status_code == 403


async def test_what_failed_is_kept_by_what_it_failed_of(agent: Agent, engine: StubEngine) -> None:
    engine.scripts = [Script((calls("nowhere"), done()))]
    await ask(agent, "Count.", tools=["python"])
    [one] = await kept(agent, 1)
    assert one["outcome"] == "model_output_invalid"


async def test_feedback_is_of_the_one_who_asked(agent: Agent, engine: StubEngine) -> None:
    engine.scripts = [says("Five.")]
    run_id = await ask(agent, "Two and two?")
    await kept(agent, 1)
    said = {"rating": "bad", "comment": "wrong", "better": "Four. Call +49 151 23456789."}
    path = f"/agents/runs/{run_id}/feedback"
    assert (await agent.http.post(path, json=said, headers=BERT)).status_code == 404
    answer = await agent.http.post(path, json=said, headers=ANNA)
    assert (answer.status_code, answer.json()["rating"]) == (200, "bad")
    [one] = await kept(agent, 1)
    assert one["better"].startswith("Four.")
    assert "23456789" not in one["better"]
    for wrong in ({}, {"rating": "great"}, {**said, "more": 1}, {**said, "comment": "x" * 5000}):
        assert (await agent.http.post(path, json=wrong, headers=ANNA)).status_code == 422


async def test_who_says_no_is_forgotten_and_not_kept_any_more(agent: Agent, engine: StubEngine) -> None:
    engine.scripts = [says("Yes.")]
    await ask(agent, "One?")
    await kept(agent, 1)
    assert (await agent.http.get("/agents/consent", headers=ANNA)).json()["agree"] is True
    answer = await agent.http.put("/agents/consent", json={"agree": False}, headers=ANNA)
    assert answer.json() == {"agree": False, "learn": "everyone", "deleted": 1}
    run_id = await ask(agent, "Two?")
    other = await agent.http.post("/agents/run-agent", json={"instruction": "Three?"}, headers=BERT)
    assert [one["run_id"] for one in await kept(agent, 1)] == [other.json()["run_id"]]
    assert (await agent.http.post(f"/agents/runs/{run_id}/feedback", json={"rating": "good"}, headers=ANNA)).is_error


async def test_nothing_is_kept_where_the_operator_says_so(launch: Launch, engine: StubEngine) -> None:
    agent = await launch(learn="off")
    engine.scripts = [says("Yes.")]
    await ask(agent, "One?")
    assert (await agent.http.get("/agents/interactions", headers=OLGA)).json() == {"interactions": []}
    assert (await agent.http.get("/agents/consent", headers=ANNA)).json()["agree"] is False


async def test_a_cut_off_run_is_kept_as_such(agent: Agent, engine: StubEngine) -> None:
    engine.scripts = [Script((calls("python", code="1"), done())), Script((piece("so"),), hold=True)]
    body = {"instruction": "Go.", "background": True, "tools": ["python"]}
    run_id = (await agent.http.post("/agents/run-agent", json=body, headers=ANNA)).json()["run_id"]
    await asyncio.wait_for(engine.holding.wait(), 5)
    await agent.http.post(f"/agents/runs/{run_id}/cancel", headers=ANNA)
    assert [one["outcome"] for one in await kept(agent, 1)] == ["cancelled"]
