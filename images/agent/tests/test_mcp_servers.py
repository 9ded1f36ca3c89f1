"""Users' MCP servers: the SDK's own server over real HTTP, well behaved and not; no run may be hurt by one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from images.agent.tests.conftest import answering, serving
from mcp.server.lowlevel.server import Server
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import CallToolResult, ImageContent, ListToolsResult, TextContent, Tool
from pydantic import JsonValue, ValidationError

from loopbox_agent.mcp_connection import Pace, allowed
from loopbox_agent.mcp_servers import MAX_ANSWER, McpServers, ServerRefusedError, UnknownServerError
from loopbox_agent.server_store import MAX_SERVERS, McpServer, MemoryServerStore
from loopbox_agent.tool_registry import Source, merge
from loopbox_agent.tool_spec import ToolSpec

PACE = Pace(connect_s=3, settle_s=0.01, first_retry_s=0.02, last_retry_s=0.1)
EMPTY: dict[str, Any] = {"type": "object", "properties": {}}  # Any: JSON Schema


def listed(name: str, **more: Any) -> Tool:  # Any: fields of the SDK's record
    return Tool(name=name, **{"description": f"Does {name}.", "input_schema": EMPTY, **more})


@dataclass
class Stranger:
    """An MCP server that does as each test says."""

    url: str = ""
    tools: list[Tool] = field(default_factory=lambda: [listed("say"), listed("hang"), listed("huge")])
    called: list[tuple[str, Mapping[str, object]]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)  #: a hung call was cancelled
    asked_for_tools: int = 0
    list_hangs: bool = False
    sessions: list[Any] = field(default_factory=list)  #: Any: the SDK's server sessions

    async def list_tools(self, ctx: Any, _params: object) -> ListToolsResult:  # Any: the SDK's context
        self.asked_for_tools += 1
        if self.list_hangs:
            await asyncio.Event().wait()
        self.sessions.append(ctx.session)
        return ListToolsResult(tools=self.tools)

    async def call_tool(self, ctx: Any, params: Any) -> CallToolResult:  # Any: the SDK's records
        self.called.append((params.name, params.arguments or {}))
        self.headers.append(dict(ctx.request.headers))
        if params.name == "hang":
            self.hanging.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.set()
        if params.name == "huge":
            return CallToolResult(content=[TextContent(text="x" * (MAX_ANSWER + 1))])
        if params.name == "picture":
            return CallToolResult(content=[ImageContent(data="QUJD", mime_type="image/png")])
        if params.name == "lie":  # not what its output schema says, which nobody here believes
            return CallToolResult(content=[TextContent(text="lie")], structured_content={"wrong": 1})
        if params.name == "raise":
            raise RuntimeError("boom")
        return CallToolResult(content=[TextContent(text=f"{params.name} {json.dumps(params.arguments)}")])


@contextlib.asynccontextmanager
async def running(stranger: Stranger, *, stateless: bool = False, as_json: bool = False) -> AsyncIterator[None]:
    server: Server[object] = Server("stranger", on_list_tools=stranger.list_tools, on_call_tool=stranger.call_tool)
    app = server.streamable_http_app(
        json_response=as_json,
        stateless_http=stateless,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = int(stranger.url.rpartition(":")[2].removesuffix("/mcp")) if stranger.url else 0
        listening.bind(("127.0.0.1", port))
        stranger.url = f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
        async with serving(app, listening):
            yield


@pytest.fixture(params=["stateful", "stateless", "json"])
async def stranger(request: pytest.FixtureRequest) -> AsyncIterator[Stranger]:
    made = Stranger()
    how = str(request.param)
    async with running(made, stateless=how != "stateful", as_json=how == "json"):
        yield made


@contextlib.asynccontextmanager
async def hosting(*added: McpServer, user: str = "ada", **more: Any) -> AsyncIterator[McpServers]:  # Any: settings
    servers = McpServers(MemoryServerStore(), **{"direct": True, "pace": PACE, **more})
    try:
        for server in added:
            await servers.add(user, server)
        yield servers
    finally:
        await servers.close()


def at(url: str, name: str = "docs", **more: Any) -> McpServer:  # Any: settings
    return McpServer.model_validate({"name": name, "url": url, "timeout_s": 5, **more})


def tool(name: str, source: str = "docs") -> ToolSpec:
    return ToolSpec(name, "", EMPTY, source=source, kind="server")


def tools_of(source: Source) -> list[str]:
    return [spec.name for spec in source.tools]


# Well behaved


async def test_its_tools_become_a_source_and_answer(stranger: Stranger) -> None:
    async with hosting(at(stranger.url)) as servers:
        (source,) = await servers.sources("ada", within_s=5)
        assert tools_of(source) == ["say", "hang", "huge"]
        assert {spec.level for spec in source.tools} == {"network"}
        outcome = await servers.call("ada", source.tools[0], {"a": 1})
        assert (outcome.text, outcome.is_error) == ('say {"a": 1}', False)
        (health,) = servers.health("ada")
        assert (health.state, health.calls, health.failures, health.tools) == ("ready", 1, 0, 3)
        assert servers.health("eve") == ()


async def test_one_connection_serves_all_runs_at_once(stranger: Stranger) -> None:
    async with hosting(at(stranger.url)) as servers:
        outcomes = await asyncio.gather(*(servers.call("ada", tool("say"), {"n": n}) for n in range(30)))
        assert [outcome.text for outcome in outcomes] == [f'say {{"n": {n}}}' for n in range(30)]
        assert stranger.asked_for_tools <= 31  # once by us; the SDK's server asks itself at each call


async def test_other_kinds_of_content_are_named_and_lies_are_harmless(stranger: Stranger) -> None:
    schema = {"type": "object", "properties": {"right": {"type": "string"}}, "required": ["right"]}
    stranger.tools = [listed("picture"), listed("lie", output_schema=schema)]
    async with hosting(at(stranger.url)) as servers:
        assert (await servers.call("ada", tool("picture"), {})).text == "[image, 3 bytes, not shown]"
        assert (await servers.call("ada", tool("lie"), {})).text == "lie"


# Misbehaved


async def test_a_hung_call_ends_at_its_time_and_others_go_on(stranger: Stranger) -> None:
    async with hosting(at(stranger.url, timeout_s=1)) as servers:
        await servers.sources("ada", within_s=5)
        hung = asyncio.create_task(servers.call("ada", tool("hang"), {}))
        await asyncio.wait_for(stranger.hanging.wait(), 5)
        begun = time.monotonic()
        assert (await servers.call("ada", tool("say"), {})).text == "say {}"
        assert time.monotonic() - begun < 0.9
        outcome = await hung
        assert outcome.is_error
        assert "within 1 s" in outcome.text
        assert (await servers.call("ada", tool("say"), {})).text == "say {}"


async def test_a_cancelled_call_is_left_at_once(stranger: Stranger) -> None:
    async with hosting(at(stranger.url)) as servers:
        hung = asyncio.create_task(servers.call("ada", tool("hang"), {}))
        await asyncio.wait_for(stranger.hanging.wait(), 5)
        begun = time.monotonic()
        hung.cancel()
        await asyncio.wait({hung})
        assert hung.cancelled()
        assert time.monotonic() - begun < 0.5
        assert (await servers.call("ada", tool("say"), {})).text == "say {}"


async def test_too_long_an_answer_ends_that_call_alone(stranger: Stranger) -> None:
    async with hosting(at(stranger.url)) as servers:
        huge, small = await asyncio.gather(servers.call("ada", tool("huge"), {}), servers.call("ada", tool("say"), {}))
        assert huge.is_error
        assert len(huge.text) < 1000
        assert small.text == "say {}"
        assert (await servers.call("ada", tool("say"), {})).text == "say {}"


async def test_an_error_inside_the_server_is_an_answer(stranger: Stranger) -> None:
    async with hosting(at(stranger.url)) as servers:
        outcome = await servers.call("ada", tool("raise"), {})
        assert outcome.is_error


async def test_a_server_that_dies_in_a_call_and_comes_back() -> None:
    stranger = Stranger()
    async with hosting() as servers:
        async with running(stranger):
            await servers.add("ada", at(stranger.url))
            hung = asyncio.create_task(servers.call("ada", tool("hang"), {}))
            await asyncio.wait_for(stranger.hanging.wait(), 5)
        outcome = await asyncio.wait_for(hung, 6)
        assert outcome.is_error
        gone = await servers.call("ada", tool("say"), {})
        assert gone.is_error
        assert "nothing was sent" in gone.text
        (source,) = await servers.sources("ada", within_s=1)
        assert source.unavailable
        assert source.tools == ()
        async with running(stranger):
            async with asyncio.timeout(5):
                while (await servers.call("ada", tool("say"), {})).is_error:
                    await asyncio.sleep(0.02)
            (source,) = await servers.sources("ada", within_s=5)
            assert tools_of(source) == ["say", "hang", "huge"]


async def test_a_server_restarted_between_calls_is_not_noticed_by_a_run() -> None:
    """Its sessions are gone: it says so to the next call, which it did not look at."""
    stranger = Stranger()
    async with hosting() as servers:
        async with running(stranger):
            await servers.add("ada", at(stranger.url))
            assert (await servers.call("ada", tool("say"), {})).text == "say {}"
        async with running(stranger):
            outcome = await servers.call("ada", tool("say"), {})
            if outcome.is_error:  # the old connection was found dead first
                outcome = await servers.call("ada", tool("say"), {})
            assert outcome.text == "say {}"


async def test_a_server_that_never_lists_holds_no_run_up() -> None:
    stranger = Stranger(list_hangs=True)
    async with running(stranger), hosting(at(stranger.url), pace=Pace(connect_s=0.5)) as servers:
        begun = time.monotonic()
        (source,) = await servers.sources("ada", within_s=0.2)
        assert time.monotonic() - begun < 0.45
        assert source.unavailable
        outcome = await servers.call("ada", tool("say"), {})
        assert "no answer within 0.5 s" in outcome.text
        begun = time.monotonic()
        await servers.sources("ada", within_s=2)  # known to be down: not waited for again
        assert time.monotonic() - begun < 0.2


async def test_a_list_that_changes_is_noticed() -> None:
    stranger = Stranger()
    async with running(stranger), hosting(at(stranger.url), pace=Pace(relist_s=0.05, settle_s=0.01)) as servers:
        assert tools_of((await servers.sources("ada", within_s=5))[0]) == ["say", "hang", "huge"]
        stranger.tools = [listed("new")]
        async with asyncio.timeout(5):
            while tools_of((await servers.sources("ada"))[0]) != ["new"]:
                await asyncio.sleep(0.01)


@dataclass
class Older:
    """A server of the older protocol, by hand: JSON answers, and notes to the client on its GET stream."""

    names: list[str] = field(default_factory=lambda: ["one"])
    change: asyncio.Event = field(default_factory=asyncio.Event)
    streaming: asyncio.Event = field(default_factory=asyncio.Event)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)  #: told of a cancel

    async def post(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["method"] == "notifications/cancelled":
            self.cancelled.set()
            await asyncio.Event().wait()  # takes it, and never says so
        if "id" not in asked:
            return web.Response(status=202)
        if asked["method"] == "tools/call" and asked["params"]["name"] == "hang":
            self.hanging.set()
            await asyncio.Event().wait()
        answers: dict[str, object] = {
            "initialize": {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {"listChanged": True}},
                "serverInfo": {"name": "old", "version": "1"},
            },
            "tools/list": {"tools": [{"name": name, "inputSchema": EMPTY} for name in self.names]},
            "tools/call": {"content": [{"type": "text", "text": "old answer"}]},
        }
        if asked["method"] not in answers:
            error = {"code": -32601, "message": "no such method"}
            return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "error": error})
        body = {"jsonrpc": "2.0", "id": asked["id"], "result": answers[asked["method"]]}
        return web.json_response(body, headers={"Mcp-Session-Id": "s1"})

    async def get(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.streaming.set()
        await self.change.wait()
        told = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
        for _ in range(200):  # a storm
            await response.write(f"event: message\ndata: {json.dumps(told)}\n\n".encode())
        await asyncio.Event().wait()
        return response

    async def delete(self, _: web.Request) -> web.Response:
        return web.Response(status=204)


@pytest.fixture
async def older() -> AsyncIterator[tuple[Older, str]]:
    made = Older()
    routes = (web.post("/mcp", made.post), web.get("/mcp", made.get), web.delete("/mcp", made.delete))
    async with answering(*routes) as url:
        yield made, f"{url}/mcp"


async def test_a_change_that_is_told_is_noticed_at_once(older: tuple[Older, str]) -> None:
    server, url = older
    async with hosting(at(url)) as servers:
        assert tools_of((await servers.sources("ada", within_s=5))[0]) == ["one"]
        assert servers.health("ada")[0].protocol == "2025-11-25"
        await asyncio.wait_for(server.streaming.wait(), 5)
        server.names = ["one", "two"]
        server.change.set()
        async with asyncio.timeout(5):
            while tools_of((await servers.sources("ada"))[0]) != ["one", "two"]:
                await asyncio.sleep(0.01)


async def test_a_cancel_that_the_server_never_takes_holds_up_nobody_for_long(
    older: tuple[Older, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK sends nothing else to a server until it has taken a notification."""
    monkeypatch.setattr("loopbox_agent.mcp_http.NOTE_S", 0.3)
    server, url = older
    async with hosting(at(url)) as servers:
        hung = asyncio.create_task(servers.call("ada", tool("hang"), {}))
        await asyncio.wait_for(server.hanging.wait(), 5)
        begun = time.monotonic()
        hung.cancel()
        await asyncio.wait({hung})
        assert time.monotonic() - begun < 0.2
        await asyncio.wait_for(server.cancelled.wait(), 5)
        assert (await servers.call("ada", tool("one"), {})).text == "old answer"
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(text="<html>hello", content_type="text/html"),
        lambda: web.Response(body=b"\xff" * 1000, content_type="application/json"),
        lambda: web.Response(body=b"[" * 100_000, content_type="application/json"),
        lambda: web.json_response({"jsonrpc": "2.0", "id": 99, "result": {}}),
        lambda: web.Response(body=b"x" * (MAX_ANSWER + 1), content_type="application/json"),
        lambda: web.Response(body=b"", content_type="application/json", headers={"Content-Encoding": "gzip"}),
        lambda: web.Response(status=500),
        lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}),
    ],
)
async def test_rubbish_is_told_as_a_reason(answer: Callable[[], web.Response]) -> None:
    async def post(_: web.Request) -> web.Response:
        return answer()

    async with answering(web.post("/mcp", post)) as url, hosting(pace=Pace(connect_s=1)) as servers:
        found = await servers.discover(at(f"{url}/mcp"), within_s=3)
        assert found.health.state == "down"
        assert found.health.reason
        assert found.listing.tools == ()


async def test_bad_tools_are_refused_one_by_one_and_good_ones_stay() -> None:
    deep: dict[str, Any] = {}  # Any: JSON Schema
    for _ in range(60):
        deep = {"type": "object", "properties": {"a": deep}}
    stranger = Stranger(
        tools=[
            listed("good"),
            listed("deep", input_schema={"type": "object", "properties": {"a": deep}}),
            listed("far", input_schema={"type": "object", "properties": {"a": {"$ref": "http://x/y"}}}),
            listed("wide", description="w" * 100_000),
            listed("go\u202eod"),
            listed("good"),
        ]
    )
    async with running(stranger), hosting() as servers:
        found = await servers.discover(at(stranger.url), within_s=5)
        assert [spec.name for spec in found.listing.tools] == ["good", "wide", "go_od", "good"]
        assert {one.name for one in found.listing.refused} == {"deep", "far"}
        source = Source("docs", "server", found.listing.tools)
        assert list(merge([source]).tools) == ["good", "wide", "go_od", "docs__good"]


# Filters, budget, records


async def test_filters_and_the_share_of_context() -> None:
    stranger = Stranger(
        tools=[listed(f"file.{n}") for n in ("read", "write", "delete")] + [listed("mail", description="m" * 200)]
    )
    async with running(stranger), hosting() as servers:
        server = at(stranger.url, allow=["file.*"], deny=["*delete"])
        found = await servers.discover(server, within_s=5)
        assert [spec.source_name for spec in found.listing.tools] == ["file.read", "file.write"]
        tight = await servers.discover(at(stranger.url, context_bytes=256), within_s=5)
        assert 0 < len(tight.listing.tools) < 4
        assert "would pass the server's 256" in tight.listing.refused[0].reason


@pytest.mark.parametrize(
    ("allow", "deny", "name", "expected"),
    [(["*"], [], "a", True), (["a*"], ["ab"], "ab", False), ([], [], "a", False), (["A"], [], "a", False)],
)
def test_deny_is_stronger_and_case_counts(allow: list[str], deny: list[str], name: str, expected: bool) -> None:
    assert allowed(name, at("http://x/", allow=allow, deny=deny)) is expected


async def test_a_secret_goes_into_the_header_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("Bearer s3cret\n")
    stranger = Stranger()
    async with running(stranger), hosting(secrets_dir=tmp_path) as servers:
        server = at(stranger.url, headers={"Authorization": "token"})
        await servers.add("ada", server)
        await servers.call("ada", tool("say"), {})
        assert stranger.headers[0]["authorization"] == "Bearer s3cret"
        assert "s3cret" not in repr(await servers.list("ada")) + repr(servers.health("ada"))
        for content in ("", "two\nlines", "x" * 9000, "é"):
            (tmp_path / "token").write_text(content)
            with pytest.raises(ServerRefusedError):
                await servers.add("ada", server)
        with pytest.raises(ServerRefusedError, match="can't be read"):
            await servers.add("ada", at(stranger.url, headers={"X-Key": "missing"}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a__b"},
        {"name": "sandbox"},
        {"name": "UPPER"},
        {"url": "file:///etc/passwd"},
        {"url": "http://user:pass@host/"},
        {"headers": {"Host": "x"}},
        {"headers": {"Mcp-Session-Id": "x"}},
        {"headers": {"X-Key": "../../etc/passwd"}},
        {"headers": {"X\r\nY": "x"}},
        {"timeout_s": 0},
        {"other": 1},
    ],
)
def test_a_record_that_could_harm_is_refused(wrong: dict[str, JsonValue]) -> None:
    with pytest.raises(ValidationError):
        McpServer.model_validate({"name": "docs", "url": "https://host/mcp", **wrong})


async def test_servers_are_added_replaced_removed_and_each_users_own() -> None:
    async with hosting() as servers:
        for n in range(MAX_SERVERS):
            await servers.add("ada", at("http://127.0.0.1:1/", f"s{n}"))
        with pytest.raises(ServerRefusedError, match="remove one"):
            await servers.add("ada", at("http://127.0.0.1:1/", "more"))
        await servers.add("ada", at("http://127.0.0.1:2/", "s3"))
        assert [one.name for one in await servers.list("ada")] == [f"s{n}" for n in range(MAX_SERVERS)]
        assert await servers.list("eve") == ()
        await servers.remove("ada", "s3")
        with pytest.raises(UnknownServerError):
            await servers.remove("ada", "s3")
        outcome = await servers.call("eve", tool("say", "s1"), {})
        assert "nothing was sent" in outcome.text


async def test_without_a_way_out_nothing_is_tried() -> None:
    async with hosting(at("http://127.0.0.1:1/"), direct=False) as servers:
        (source,) = await servers.sources("ada")
        assert "no way out" in source.unavailable
        assert (await servers.call("ada", tool("say"), {})).is_error
        assert (await servers.discover(at("http://127.0.0.1:1/"))).health.state == "down"


async def test_closing_ends_what_runs_and_leaves_nothing_behind(stranger: Stranger) -> None:
    async with hosting(at(stranger.url)) as servers:
        hung = asyncio.create_task(servers.call("ada", tool("hang"), {}))
        await asyncio.wait_for(stranger.hanging.wait(), 5)
        await servers.remove("ada", "docs")
        with contextlib.suppress(asyncio.CancelledError):
            assert (await asyncio.wait_for(hung, 2)).is_error
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("mcp-")]
