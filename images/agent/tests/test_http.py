"""The service's manners: error bodies, limits, correlation ids, health."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images.agent.tests.conftest import Agent, Launch, Script, StubBroker, StubEngine, piece
from pydantic import ValidationError

from loopbox_agent.run_records import RunRequest

PATH = "/agents/run-agent"
JSON = {"Content-Type": "application/json"}


def code_of(response: httpx2.Response) -> str:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details", "timestamp"}
    assert body["error"]["message"]
    assert isinstance(body["error"]["details"], dict)
    assert datetime.fromisoformat(body["error"]["timestamp"]).tzinfo
    assert response.headers["X-Correlation-Id"]
    code: str = body["error"]["code"]
    return code


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "instruction"),
        ({"instruction": ""}, "instruction"),
        ({"instruction": "x" * 32_001}, "instruction"),
        ({"instruction": "x", "colour": "red"}, "colour"),
        ({"instruction": "x", "temperature": 9}, "temperature"),
        ({"instruction": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"instruction": "x", "tool_choice": {"name": "python", "more": 1}}, "tool_choice"),
        ({"instruction": "x", "tools": ["a b"]}, "tools"),
        ([], "body"),
    ],
)
async def test_a_request_that_breaks_the_schema_is_told_where(agent: Agent, body: object, field: str) -> None:
    response = await agent.http.post(PATH, json=body)
    assert (response.status_code, code_of(response)) == (422, "validation")
    assert field in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"instruction": "\\ud800"}',
        b'{"\\ud800": 1, "instruction": "x"}',
        b"NaN",
    ],
    ids=["empty", "cut", "not-utf8", "deep", "lone-surrogate", "surrogate-name", "nan"],
)
async def test_a_body_that_is_no_json_of_ours_is_refused_and_told_so(agent: Agent, content: bytes) -> None:
    """Guards against a 500, or an error body that itself cannot be sent."""
    response = await agent.http.post(PATH, content=content, headers=JSON)
    assert (response.status_code, code_of(response)) == (422, "validation")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "not_found"), ("GET", PATH, 405, "method_not_allowed"), ("POST", "/health", 405, None)],
)
async def test_a_wrong_address_is_answered_in_the_same_form(
    agent: Agent, method: str, path: str, status: int, code: str | None
) -> None:
    response = await agent.http.request(method, path)
    assert response.status_code == status
    assert code_of(response) == (code or "method_not_allowed")


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
async def test_a_giant_request_is_refused(launch: Launch, engine: StubEngine, *, declared: bool) -> None:
    agent = await launch(max_body_bytes=2048)

    async def chunks() -> object:
        for _ in range(40):
            yield b"x" * 100

    content = b"x" * 4000 if declared else chunks()
    response = await agent.http.post(PATH, content=content, headers=JSON)  # type: ignore[arg-type]  # either form
    assert (response.status_code, code_of(response), engine.orders) == (413, "too_large", [])


async def test_a_client_that_does_not_send_its_body_is_let_go(launch: Launch) -> None:
    agent = await launch(body_timeout_s=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", agent.http.base_url.port)
    writer.write(f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{{".encode())
    async with asyncio.timeout(5):
        status = await reader.readline()
    writer.close()
    assert b" 408 " in status


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["instruction", "stream", "tools", "tool_choice", "system", "seed", "temperature", "zz"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=6,
        ),
    )
)
def test_any_body_is_a_request_or_a_validation_error(body: dict[str, object]) -> None:
    try:
        asked = RunRequest.model_validate_json(json.dumps(body))
    except ValidationError:
        return
    assert 1 <= len(asked.instruction) <= 32_000


async def test_one_run_too_many_is_told_when_to_come_back(launch: Launch, engine: StubEngine) -> None:
    agent = await launch(max_concurrent_runs=1)
    engine.scripts = [Script((piece("a"),), hold=True)]
    first = asyncio.create_task(agent.run())
    await asyncio.wait_for(engine.holding.wait(), 5)
    try:
        response = await agent.run()
        assert (response.status_code, code_of(response)) == (429, "too_many_runs")
        assert response.headers["Retry-After"] == "1"
        assert (await agent.http.get("/health")).status_code == 200
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


@pytest.mark.parametrize("given_id", ["abc-123_DEF.4", "x" * 8])
async def test_a_correlation_id_is_kept_and_handed_on(agent: Agent, engine: StubEngine, given_id: str) -> None:
    response = await agent.http.post(PATH, json={"instruction": "x"}, headers={"X-Correlation-Id": given_id})
    assert response.headers["X-Correlation-Id"] == response.json()["correlation_id"] == given_id
    assert engine.headers[0]["X-Correlation-Id"] == given_id


@pytest.mark.parametrize("given_id", ["", "x" * 200, "a b\tc;d-e", "<script>alert(1)</script>"])
async def test_a_correlation_id_that_could_forge_log_lines_is_replaced(agent: Agent, given_id: str) -> None:
    response = await agent.http.get("/health", headers={"X-Correlation-Id": given_id})
    assert response.headers["X-Correlation-Id"] not in {"", given_id}


async def test_ready_says_whether_a_request_would_be_answered(launch: Launch, engine: StubEngine) -> None:
    engine.models = ("another:latest",)
    agent = await launch()
    response = await agent.http.get("/health/ready")
    assert (response.status_code, code_of(response)) == (503, "engine_unavailable")
    assert "agent" in response.json()["error"]["message"]
    assert (await agent.http.get("/health")).status_code == 200
    engine.models = ("agent:latest",)
    agent = await launch()
    assert (await agent.http.get("/health/ready")).status_code == 200


async def test_ready_asks_the_engine_once_for_many_askers(agent: Agent, engine: StubEngine) -> None:
    """Guards against health checks that become a load."""
    answers = await asyncio.gather(*(agent.http.get("/health/ready") for _ in range(20)))
    assert {a.status_code for a in answers} == {200}
    assert engine.probes == 1


async def test_no_gateway_is_told_with_what_to_do(launch: Launch) -> None:
    agent = await launch(engine_url="http://127.0.0.1:1")
    response = await agent.run()
    assert (response.status_code, code_of(response)) == (503, "engine_unavailable")
    assert "loopctl status" in response.json()["error"]["message"]
    assert response.headers["Retry-After"]
    assert (await agent.http.get("/health/ready")).status_code == 503


async def test_detailed_health_tells_of_each_part(agent: Agent, broker: StubBroker) -> None:
    body = (await agent.http.get("/health/detailed")).json()
    assert (body["status"], body["engine"]["ready"], body["broker"]["ready"], body["running_runs"]) == (
        "ok",
        True,
        True,
        0,
    )
    assert body["uptime_s"] >= 0
    assert body["version"]


async def test_metrics_count_what_happened(agent: Agent, engine: StubEngine) -> None:
    await agent.run()
    await agent.run(tool_choice={"name": "python", "arguments": {"code": "1"}})
    text = (await agent.http.get("/metrics")).text
    for line in (
        "loopbox_agent_prompt_tokens_total 7.0",
        "loopbox_agent_generation_tokens_total 3.0",
        'loopbox_agent_run_seconds_count{outcome="completed"} 2.0',
        'loopbox_agent_tool_calls_total{outcome="ok",tool="python"} 1.0',
        "loopbox_agent_running_runs 0.0",
        "loopbox_agent_first_token_seconds_count 1.0",
    ):
        assert line in text
