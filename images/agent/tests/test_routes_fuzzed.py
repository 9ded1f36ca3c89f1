"""Bad input to every route: schemathesis against the agent's OpenAPI document, over real TCP, with a stub engine.

What the document allows must be taken, what it does not allow refused with a documented status and an error body, and
nothing may end in a status that is not documented. The cases are the same in each run.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from images.agent.tests.conftest import Agent, Launch, StubEngine
from openapi_spec_validator import validate
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from loopbox_agent.app import build_app
from loopbox_agent.quarantine import Finding
from loopbox_agent.settings import Settings
from loopbox_agent.workspaces import NoArchiveError, save_tar

EXAMPLES = 12  # of each operation, beside those that schemathesis makes from the document
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
)
EXPECTED = {
    # Its own list lacks the status for a body that is too large to be looked at.
    "negative_data_rejection": "expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429]\n",
    # A run ends as its model has it: with no fit answer, or too late. Where a route does not document these, another
    # check tells of them.
    "not_a_server_error": 'expected-statuses = ["2xx", "4xx", 502, 503, 504]\n',
}
#: What they take no document can say: which tools there are, which secrets, what a tar archive is.
UNSAYABLE = ("/agents/run-agent", "/agents/mcp-servers", "/agents/threads/{thread_id}/workspace")
UNSAID = "checks.positive_data_acceptance.enabled = false"
RULES = (
    'hooks = "hooks.py"\n[checks]\nenabled = false\n'
    + "".join(f"[checks.{check}]\nenabled = true\n{EXPECTED.get(check, '')}" for check in CHECKS)
    + "".join(f'[[operations]]\ninclude-path = "{path}"\n{UNSAID}\n' for path in UNSAYABLE)
    # A document may be called "search": the address of the search takes what that of a document does.
    + '[[operations]]\ninclude-path = "/agents/knowledge/search"\nchecks.allow_header_conformance.enabled = false\n'
)
HOOKS = 'import schemathesis\nschemathesis.serializer.alias("application/x-tar", "application/octet-stream")\n'


@dataclass
class Known:
    """What is kept before the routes are asked: one to look at, one to delete."""

    threads: Sequence[str]
    memory: int
    held: str
    run: str

    def rules(self) -> str:
        """Return what schemathesis asks for in place of ids of its own making."""
        threads, servers = "/agents/threads/{thread_id}", "/agents/mcp-servers/{name}"
        return f"""
{RULES}
[parameters]
"path.thread_id" = "{self.threads[0]}"
"path.run_id" = "{self.run}"
"path.held_id" = "{self.held}"
"path.memory_id" = {self.memory}
"path.user" = "bert"
"path.name" = "known"
[[operations]]
include-method = "DELETE"
include-path = "{threads}"
parameters = {{ "path.thread_id" = "{self.threads[1]}" }}
[[operations]]
include-method = "DELETE"
include-path = "{servers}"
parameters = {{ "path.name" = "other" }}
"""


async def known_to(agent: Agent) -> Known:
    """Keep something of each kind."""
    threads = [(await agent.http.post("/agents/threads", json={})).json()["thread_id"] for _ in range(2)]
    memory = (await agent.http.post("/agents/memory", json={"text": "tea at four"})).json()["id"]
    for name in ("known", "other"):
        server = {"name": name, "url": "http://example.org/mcp"}
        assert (await agent.http.post("/agents/mcp-servers", json=server)).status_code == 201
        assert (await agent.http.put(f"/agents/knowledge/{name}", content=b"words")).status_code == 201
    put = await agent.http.put(f"/agents/threads/{threads[0]}/workspace", content=tar())
    assert put.status_code == 204
    run = (await agent.run()).json()["run_id"]
    finding = Finding(run_id=run, user="local", kind="output", score=80, findings=[], text="held")
    return Known(threads, memory, await agent.app.state.parts.store.quarantine.add(finding), run)


async def fuzz(agent: Agent, folder: Path, rules: str) -> str:
    """Return what schemathesis says. Fails when it finds anything."""
    (folder / "schemathesis.toml").write_text(rules)
    (folder / "hooks.py").write_text(HOOKS)
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        str(agent.http.base_url.join("/openapi.json")),
        "--phases=examples,coverage,fuzzing",
        f"--max-examples={EXAMPLES}",
        "--generation-deterministic",
        "--seed=1",
        "--request-timeout=20",
        "--continue-on-failure",
        "--no-color",
        cwd=folder,  # it keeps its database where it stands
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    return text


@pytest.mark.parametrize("known", [False, True], ids=["anything", "what there is"])
async def test_every_route_keeps_to_the_document_whatever_it_is_sent(agent: Agent, tmp_path: Path, known: bool) -> None:
    rules = (await known_to(agent)).rules() if known else RULES
    text = await fuzz(agent, tmp_path, rules)
    _, _, warned = text.partition("Missing test data")  # what was never more than 404
    assert ("{held_id}" in warned, "GET /agents/threads/{thread_id}/workspace" in warned) == (not known, not known), (
        text
    )


def tar(**headers: str) -> bytes:
    """Return an archive of one file; headers: of its pax record."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        member = tarfile.TarInfo("notes.txt")
        member.size, member.pax_headers = 5, headers
        archive.addfile(member, io.BytesIO(b"hello"))
    return held.getvalue()


def document() -> dict[str, Any]:  # Any: JSON
    return build_app(Settings()).openapi()


@dataclass(frozen=True)
class Operation:
    """One operation of the document."""

    method: str
    path: str
    body: str  #: the kind of its body, '' for none
    told: Mapping[str, Any]  #: what the document says of it. Any: JSON

    def at(self, value: str = "0123456789abcdef") -> str:
        """Return an address of it, with each parameter made of a value."""
        return re.sub(
            r"\{(run|thread|held)_id\}|\{\w+\}", lambda m: f"{m[1]}_{value}" if m[1] else value[:9], self.path
        )


def operations() -> Iterator[Operation]:
    for path, told in document()["paths"].items():
        for method, one in told.items():
            yield Operation(method.upper(), path, next(iter(one.get("requestBody", {}).get("content", {})), ""), one)


OPERATIONS = tuple(operations())
BODIES = tuple(one for one in OPERATIONS if one.body)
JSON_BODIES = tuple(one for one in BODIES if one.body == "application/json")


def refused(response: httpx2.Response, *statuses: int) -> dict[str, Any]:  # Any: JSON
    """Return the error of an answer that has one of these statuses, and the form of every error."""
    assert response.status_code in statuses, (response.request.url, response.status_code, response.text[:300])
    assert response.headers["Content-Type"] == "application/json"
    [(key, error)] = response.json().items()
    assert (key, set(error)) == ("error", {"code", "message", "details", "timestamp"})
    assert error["message"]
    assert datetime.fromisoformat(error["timestamp"]).tzinfo
    assert isinstance(error, dict)
    return error


def test_the_document_is_valid_and_says_of_each_route_what_it_does_and_how_it_refuses() -> None:
    validate(document())
    for one in OPERATIONS:
        assert one.told["summary"], one
        assert one.told["description"].endswith("."), one
        if one.path.startswith("/agents/"):
            least = {"403", "422", "503", *({"408", "413"} if one.body else ()), *({"404"} if "{" in one.path else ())}
            assert least <= set(one.told["responses"]), one
        for status, answer in one.told["responses"].items():
            if status >= "400":
                [schema] = [kind["schema"] for kind in answer["content"].values()]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}, (one, status)
        for parameter in one.told.get("parameters", ()):
            if parameter["in"] == "path":
                assert {"pattern", "maximum", "exclusiveMaximum"} & set(parameter["schema"]), (one, parameter)


async def test_a_body_that_is_too_large_is_refused_by_every_route_that_takes_one(launch: Launch) -> None:
    agent = await launch(max_body_bytes=100_000, max_workspace_bytes=1 << 20)
    thread = (await agent.http.post("/agents/threads")).json()["thread_id"]
    run = (await agent.run()).json()["run_id"]
    for one in BODIES:
        path = one.at().replace("thread_0123456789abcdef", thread).replace("run_0123456789abcdef", run)
        response = await agent.http.request(one.method, path, content=b" " * ((1 << 20) + 1))
        assert refused(response, 413)["code"] == "too_large", one


ODD_BODIES = {
    "deep": b'{"a":' * 800,
    "deep list": b"[" * 4000,
    "deep and whole": b"[" * 2000 + b"]" * 2000,
    "not UTF-8": b'{"instruction": "\xff\xfe", "text": "\xff", "title": "\xff", "reason": "\xff"}',
    "UTF-16": '{"instruction": "x"}'.encode("utf-16"),
    "lone surrogate": b'{"instruction": "\\ud800", "text": "\\ud800", "title": "\\udfff", "reason": "\\ud800"}',
    "lone surrogate as a name": b'{"\\ud800": 1}',
    "CESU-8": b'{"text": "\xed\xa0\x80"}',
    "unknown field": b'{"colour": "red"}',
    "field twice, unknown": b'{"colour": 1, "colour": 2}',
    "not an object": b'"text"',
    "number without end": b"1" * 4000,
    "cut": b'{"instruction": "x',
    "two": b"{}{}",
    "form": b"instruction=x&text=x&title=x&reason=x",
    "NaN": b'{"instruction": NaN, "text": NaN, "title": NaN, "reason": NaN}',
}


#: Nobody looks at what a body is said to be: it is JSON or it is refused.
KINDS: tuple[dict[str, Any], ...] = (  # Any: text or bytes
    {},
    {"Content-Type": "application/json"},
    {"Content-Type": "multipart/form-data"},
    {"Content-Type": b"text/plain; charset=\xff"},
)


async def test_a_body_that_is_none_of_ours_is_refused_by_every_route_that_takes_json(
    agent: Agent, engine: StubEngine
) -> None:
    known = await known_to(agent)
    asked = len(engine.orders)
    for one in JSON_BODIES:
        path = one.at()
        for noun, there in (("thread", known.threads[0]), ("run", known.run), ("held", known.held)):
            path = path.replace(f"{noun}_0123456789abcdef", there)
        for number, (name, body) in enumerate(ODD_BODIES.items()):
            kind = KINDS[number % len(KINDS)]
            response = await agent.http.request(one.method, path, content=body, headers=kind)
            assert refused(response, 422)["code"] == "validation", (one, name)
    assert len(engine.orders) == asked


async def test_nul_in_texts_is_kept_as_a_mark_and_breaks_nothing(agent: Agent) -> None:
    known = await known_to(agent)
    assert (await agent.http.post("/agents/threads", json={"title": "a\0b"})).json()["title"] == "a\ufffdb"
    assert (await agent.http.post("/agents/memory", json={"text": "nul \0 here", "tags": ["\0"]})).status_code == 201
    assert (await agent.run(instruction="a\0b", thread_id=known.threads[0], system="\0")).status_code == 200
    for query in ("\0", "a\0b", "\ud800", '"', "a OR", "*", "NEAR(", "%", "_", "\U0010ffff"):
        asked = {"query": query.encode("utf-8", "surrogatepass")}
        messages = f"/agents/threads/{known.threads[0]}/messages?dropped=true"
        for path in ("/agents/memory/search?", "/agents/knowledge/search?", messages):
            response = await agent.http.get(f"{path}&{urlencode(asked)}")
            assert response.status_code == 200, (path, query, response.text)


FIT_NAMES = ("-1", "1e3", "*", "%2e%2e")  # of documents, or of users
NO_IDS = (*FIT_NAMES, "%00", "a%00b", "%ff", "%ed%a0%80", "..%2fetc", "a" * 5000, "9" * 5000, "%0a", "%F0%9F")


async def test_an_address_with_something_that_can_be_no_id_is_the_address_of_nothing(agent: Agent) -> None:
    for one in OPERATIONS:
        for value in NO_IDS if "{" in one.path else ():
            path = re.sub(r"\{\w+\}", value, one.path)
            response = await agent.http.request(one.method, path, content=b"{}" if one.body else None)
            if response.status_code < 400:
                assert value in FIT_NAMES, (one, value)
                assert re.search(r"/(knowledge|users)/", path), (one, value)
            else:
                assert refused(response, 404)["code"] in ("not_found", "unknown_mcp_server"), (one, value)


async def test_a_wrong_method_is_told_which_there_are(agent: Agent) -> None:
    for path in document()["paths"]:
        there = {one.method for one in OPERATIONS if one.path == path}
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "HEAD", "PROPFIND"} - there:
            [one] = [one for one in OPERATIONS if one.path == path][:1]
            response = await agent.http.request(method, one.at())
            if path == "/agents/knowledge/search" and method in ("PUT", "DELETE"):
                continue  # a document may have that name
            assert there <= set(response.headers["Allow"].split(", ")), (path, method)
            if method == "HEAD":
                assert response.status_code == 405
            else:
                assert refused(response, 405)["code"] == "method_not_allowed"


async def test_a_tool_that_is_not_there_is_told_with_those_that_are(agent: Agent) -> None:
    error = refused(await agent.run(tools=["pythonn"]), 400)
    assert (error["code"], error["details"]["nearest"]) == ("unknown_tool", ["python"])
    assert refused(await agent.run(tool_choice={"name": "../python"}), 422)["code"] == "validation"


FORGED: tuple[dict[str, Any], ...] = (  # Any: text or bytes
    {"X-Loopbox-User": "anna"},
    {"X-Loopbox-Role": "admin"},
    {"X-Loopbox-User": "", "X-Loopbox-Role": "admin"},
    {"X-Loopbox-User": "a b", "X-Loopbox-Role": "admin"},
    {"X-Loopbox-User": "anna/../bert", "X-Loopbox-Role": "admin"},
    {"X-Loopbox-User": "a" * 65, "X-Loopbox-Role": "admin"},
    {"X-Loopbox-User": "anna\u00e9".encode("latin-1"), "X-Loopbox-Role": "admin"},
    {"X-Loopbox-User": "anna", "X-Loopbox-Role": "root"},
    {"X-Loopbox-User": "anna", "X-Loopbox-Role": "user, admin"},
    {"X-Loopbox-User": "anna", "X-Loopbox-Role": ""},
    {"X-Loopbox-User": "anna", "X-Loopbox-Role": "\u0131".encode()},
)


async def test_headers_that_the_gateway_would_not_send_are_refused_by_every_route(agent: Agent) -> None:
    for one in OPERATIONS:
        for headers in FORGED if one.path.startswith("/agents/") else ():
            params = {"query": "x"} if one.path.endswith("/search") else {}
            response = await agent.http.request(one.method, one.at(), params=params, headers=headers, content=b"{}")
            assert refused(response, 403)["code"] == "forbidden", (one, headers)
    for headers in FORGED:
        with pytest.raises(InvalidStatus) as refusal:
            async with dial(agent, headers):
                pass
        assert refusal.value.response.status_code == HTTPStatus.FORBIDDEN


async def test_a_user_that_is_named_twice_is_refused(agent: Agent) -> None:
    """Guards against a gateway that would add its header to the client's instead of replacing it."""
    twice = [("X-Loopbox-User", "anna"), ("X-Loopbox-User", "bert"), ("X-Loopbox-Role", "user")]
    assert refused(await agent.http.get("/agents/runs", headers=twice), 403)["code"] == "forbidden"
    roles = [("X-Loopbox-User", "anna"), ("X-Loopbox-Role", "viewer"), ("X-Loopbox-Role", "admin")]
    assert refused(await agent.http.get("/agents/runs", headers=roles), 403)["code"] == "forbidden"


async def test_a_last_event_that_was_never_told_is_the_beginning(agent: Agent) -> None:
    run = (await agent.run()).json()["run_id"]
    for last in ("x", "-1", "9" * 30, "1.5", "\u00b2".encode("latin-1"), "", "0x1", "1, 2"):
        headers: dict[str, Any] = {"Last-Event-ID": last}  # Any: text or bytes
        response = await agent.http.get(f"/agents/runs/{run}/events", headers=headers)
        assert (response.status_code, response.text[:6]) == (200, "id: 1\n"), last


def dial(agent: Agent, headers: Mapping[str, Any] | None = None) -> connect:  # Any: text or bytes
    address = str(agent.http.base_url).replace("http", "ws", 1).rstrip("/") + "/agents/ws"
    told = {k: value.decode("latin-1") if isinstance(value, bytes) else value for k, value in (headers or {}).items()}
    return connect(address, additional_headers=told, proxy=None)


ODD_FRAMES: dict[str, str | bytes] = {
    **{name: body.decode(errors="replace") for name, body in ODD_BODIES.items()},
    "binary": b'{"type": "cancel", "run_id": "x"}',
    "empty": "",
    "unknown type": '{"type": "shout"}',
    "no type": '{"run_id": "run_1"}',
    "deep request": '{"type": "run", "request": ' + '{"a":' * 1000 + "1" + "}" * 1001,
    "an id that is none": json.dumps({"type": "cancel", "run_id": "\0"}),
    "a run of nobody": json.dumps({"type": "resume", "run_id": "run_0123456789abcdef", "last_event_id": 10**30}),
    "an event before the first": json.dumps({"type": "resume", "run_id": "run_0123456789abcdef", "last_event_id": -1}),
}


async def test_a_frame_that_is_none_of_ours_is_refused_and_ends_no_socket(agent: Agent) -> None:
    async with dial(agent) as socket:
        for name, frame in ODD_FRAMES.items():
            await socket.send(frame)
            error = await next_of(socket)
            assert error["type"] == "error", name
            assert set(error["error"]) == {"code", "message", "details", "timestamp"}, name
        await socket.send(json.dumps({"type": "run", "request": {"instruction": "x"}}))
        while (event := await next_of(socket))["event"] != "run.completed":
            assert event["type"] == "event"


async def test_a_frame_that_is_too_large_ends_its_socket_alone(launch: Launch) -> None:
    agent = await launch(max_body_bytes=2048)
    async with dial(agent) as socket, dial(agent) as other:
        await socket.send("x" * 4096)
        with pytest.raises(ConnectionClosed) as closed:
            await next_of(socket)
        assert closed.value.rcvd
        assert closed.value.rcvd.code == 1009
        await other.send("{}")
        assert (await next_of(other))["type"] == "error"


async def next_of(socket: ClientConnection) -> dict[str, Any]:  # Any: JSON
    async with asyncio.timeout(10):
        told = json.loads(await socket.recv())
    assert isinstance(told, dict)
    return told


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.data())
def test_an_archive_that_was_tampered_with_is_taken_or_refused(data: st.DataObject) -> None:
    """Guards against what the library raises of itself for a header that makes no sense."""
    body = bytearray(tar(**data.draw(st.sampled_from([{}, {"size": "x"}, {"mtime": "nan"}, {"path": "a" * 300}]))))
    for place in data.draw(st.lists(st.integers(0, 1600), max_size=6)):
        body[min(place, len(body) - 1)] = data.draw(st.integers(0, 255))
    whole = bytes(body[: data.draw(st.integers(0, len(body)))])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "thread.tar"
        path.write_bytes(b"before")
        try:
            asyncio.run(save_tar(path, whole))
        except NoArchiveError:
            whole = b"before"
        assert (path.read_bytes(), len(list(path.parent.iterdir()))) == (whole, 1)
