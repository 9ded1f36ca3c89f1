"""loopctl's commands for the agent's API, against a server that answers as the agent's routes do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from run_loopctl import loopctl, start
from typer.testing import CliRunner

from loopd.cli import complete, run_follow
from loopd.cli.agent_client import HELD_PAGE
from loopd.cli.exits import ExitCode, UnreachableError
from loopd.cli.inputs import FileError, writing
from loopd.cli.main import app as commands
from loopd.cli.messages import sentences
from loopd.cli.run_follow import Place, RunLostError, Stream, follow
from loopd.cli.sse import Message

DEADLINE_S = 20.0
NOON = "2026-03-01T12:00:00Z"
RUN, THREAD = "run_00000000000000aa", "thread_00000000000000bb"
RUN_VIEW = {"run_id": RUN, "status": "running", "thread_id": None, "user": "ann", "duration_ms": 4100, "later": 1}
THREAD_VIEW = {"thread_id": THREAD, "title": "Paris", "created_at": NOON, "updated_at": NOON}
MEMORY = {"id": 7, "text": "likes tea", "tags": ["taste"], "source": "api", "created_at": NOON, "rank": 1.0}
DOCUMENT = {"name": "rules.md", "owner": "local", "size": 2048, "created_at": NOON}
SERVER = {"name": "wiki", "url": "http://wiki/mcp", "allow": ["*"], "deny": ["drop*"], "state": "ready", "error": ""}

Event = tuple[str, dict[str, Any]]  # Any: JSON
Answer = tuple[int, Any]  # Any: JSON, or bytes


def held(number: int, **fields: object) -> dict[str, object]:
    about = {"run_id": RUN, "user": "ann", "kind": "output", "score": 80, "findings": [{"rule": "exfiltration"}]}
    rest = {"text": "a\x1b]0;x\x07", "state": "waiting", "created_at": NOON, "decided_by": None, "reason": None}
    return {"id": f"held_{number:016x}", **about, **rest, **fields}


def spoken(*texts: str, end: str = "run.completed", **last: object) -> list[Event]:
    pieces = [("text.delta", {"text": text}) for text in texts]
    return [("run.started", {"run_id": RUN, "thread_id": None}), *pieces, (end, {"run_id": RUN, **last})]


@dataclass
class StandIn:
    """The gateway with the agent behind it: answers what it was told to, and keeps what it was asked."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)  #: by method and path; the last one stays
    run: list[Event] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)  #: by stream: events of it before its connection is cut
    clean: bool = False  #: streams that are cut end as if nothing were wrong
    hold: bool = False  #: streams say nothing after their last event, and stay open
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    port: int = 0

    def tell(self, asked: str, body: object, status: int = 200) -> None:
        self.answers.setdefault(asked, []).append((status, body))

    def refuse(self, asked: str, status: int, code: str) -> None:
        detail = {"code": code, "message": f"it is {code}", "details": {}, "timestamp": NOON}
        self.tell(asked, {"error": detail}, status)

    @property
    def body(self) -> Any:  # Any: JSON
        return json.loads(self.bodies[-1])

    async def handle(self, request: web.Request) -> web.StreamResponse:
        asked = f"{request.method} {request.path}"
        self.asked.append(f"{request.method} {request.raw_path}")
        self.bodies.append(await request.read())
        self.kinds.append(request.content_type)
        if told := self.answers.get(asked):
            status, body = told.pop(0) if len(told) > 1 or asked.startswith("GET /agents/runs/") else told[0]
            if not told:
                del self.answers[asked]
            if isinstance(body, bytes):
                return web.Response(status=status, body=body)
            return web.Response(status=204) if body is None else web.json_response(body, status=status)
        if asked == "POST /agents/run-agent" or request.path.endswith("/events"):
            return await self.stream(request, int(request.headers.get("Last-Event-ID", "0")))
        return web.json_response({"error": {"code": "not_found", "message": f"{asked}: no"}}, status=404)

    async def stream(self, request: web.Request, after: int) -> web.StreamResponse:
        many = self.breaks.pop(0) if self.breaks else len(self.run)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Run-Id": RUN})
        await response.prepare(request)
        for number, (name, data) in list(enumerate(self.run, 1))[after : after + many]:
            await response.write(f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode())
        if self.hold:
            await asyncio.Event().wait()
        if after + many < len(self.run) and not self.clean and request.transport:
            request.transport.close()  # what was written arrives; the chunked answer has no end
        return response


@pytest.fixture
async def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StandIn]:
    stand_in = StandIn()
    served = web.Application(client_max_size=1 << 24)
    served.router.add_route("*", "/{path:.*}", stand_in.handle)
    runner = web.AppRunner(served, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stand_in.port = runner.addresses[0][1]
    for name in [name for name in os.environ if name.startswith("LOOPBOX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOOPBOX_HOME", str(tmp_path))
    monkeypatch.setenv("LOOPBOX_PUBLIC_PORT", str(stand_in.port))
    monkeypatch.setenv("LOOPBOX_AUTH__MODE", "off")  # test_cli_doors.py is about tokens
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setattr(run_follow, "WAITS_S", (0.001,) * 5)
    yield stand_in
    await runner.cleanup()


# ask


async def test_ask_sends_what_a_run_may_have(agent: StandIn, tmp_path: Path) -> None:
    agent.run = spoken("Paris")
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    asked = ["--thread", THREAD, "--tool", "python", "--tool", "bash", "--host", "*.example.org", "--call", "python"]
    assert (await loopctl("ask", "q", *asked)).stdout == "Paris\n"
    assert agent.body == {
        "instruction": "q",
        "stream": True,
        "thread_id": THREAD,
        "tools": ["python", "bash"],
        "hosts": ["*.example.org"],
        "tool_choice": "python",
    }


async def test_ask_in_a_new_thread_says_its_id_beside_the_answer(agent: StandIn) -> None:
    agent.tell("POST /agents/threads", THREAD_VIEW, 201)
    agent.run = spoken("Par", "is")
    result = await loopctl("ask", "q", "--thread", "new")
    assert (result.stdout, result.stderr) == ("Paris\n", f"thread {THREAD}\n")
    assert agent.body["thread_id"] == THREAD


async def test_ask_under_a_schema_writes_json_alone(agent: StandIn, tmp_path: Path) -> None:
    """What the model said before it was repaired is none of the answer."""
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"type": "integer"}}}')
    agent.run = spoken("oh: ", '{"a": 1}', output='{"a": 1}', structured={"a": 1})
    assert (await loopctl("ask", "q", "--schema", str(schema))).stdout == '{"a": 1}\n'
    assert agent.body["output_schema"] == json.loads(schema.read_text())
    agent.run = spoken("[]", output="[]", structured=None)
    assert (await loopctl("ask", "q", "--schema", str(schema))).stdout == "[]\n"
    agent.run = spoken("words", output="words")
    result = await loopctl("ask", "q", "--schema", str(schema), code=ExitCode.FAILED)
    assert result.stdout == ""
    assert "is no JSON" in result.stderr


@pytest.mark.parametrize(("text", "code"), [(None, 1), ("{", 2), ("[]", 2), ("[" * 100_000, 2), ("1" * 300_000, 2)])
async def test_a_schema_that_is_none_is_refused_here(
    agent: StandIn, tmp_path: Path, text: str | None, code: int
) -> None:
    schema = tmp_path / "schema.json"
    if text is not None:
        schema.write_text(text)
    await loopctl("ask", "q", "--schema", str(schema), code=code)
    assert agent.asked == []


async def test_ask_in_the_background_writes_the_id_and_leaves(agent: StandIn) -> None:
    agent.tell("POST /agents/run-agent", RUN_VIEW, 202)
    result = await loopctl("ask", "q", "--background")
    assert result.stdout == f"{RUN}\n"
    assert f"loopctl runs watch {RUN}" in result.stderr
    assert agent.body == {"instruction": "q", "background": True}
    assert json.loads((await loopctl("ask", "q", "--background", "--json")).stdout)["run_id"] == RUN


@pytest.mark.parametrize("many", range(1, 4))
async def test_an_answer_goes_on_where_its_connection_broke(agent: StandIn, many: int) -> None:
    agent.run, agent.breaks = spoken("Pa", "r", "is"), [many] * 4
    result = await loopctl("ask", "q")
    assert result.stdout == "Paris\n"
    assert "going on after event " in result.stderr
    assert agent.asked[1] == f"GET /agents/runs/{RUN}/events"


async def test_an_answer_waits_for_an_agent_that_comes_back(agent: StandIn) -> None:
    agent.run, agent.breaks = spoken("Par", "is"), [2]
    for status in (503, 502, 429):
        agent.refuse(f"GET /agents/runs/{RUN}/events", status, "away")
    result = await loopctl("ask", "q")
    assert result.stdout == "Paris\n"
    assert result.stderr.count("it is away") == 3
    assert result.stderr.count("going on") == 4


async def test_a_refusal_of_the_rest_of_an_answer_is_told(agent: StandIn) -> None:
    agent.run, agent.breaks = spoken("Par", "is"), [2]
    agent.refuse(f"GET /agents/runs/{RUN}/events", 404, "unknown_run")
    result = await loopctl("ask", "q", code=ExitCode.NOT_FOUND)
    assert result.stdout in ("Par", "")  # what came just before the break may be lost with it
    assert "it is unknown_run [unknown_run]" in result.stderr


async def test_an_answer_is_given_up_after_some_tries(agent: StandIn) -> None:
    agent.run, agent.breaks = spoken("Par", "is"), [2]
    for _ in range(5):
        agent.refuse(f"GET /agents/runs/{RUN}/events", 503, "away")
    result = await loopctl("ask", "q", code=ExitCode.UNREACHABLE)
    assert f"{RUN} was lost after 5 tries" in result.stderr
    assert f"`loopctl runs watch {RUN}`" in result.stderr


async def test_a_run_that_the_agent_did_not_end_is_not_waited_for(agent: StandIn) -> None:
    agent.run, agent.clean = spoken("Par"), True
    agent.breaks = [2, 0]
    result = await loopctl("ask", "q", code=ExitCode.UNREACHABLE)
    assert "the agent was stopped while it ran" in result.stderr
    assert result.stderr.count("going on") == 1


@pytest.mark.parametrize(("end", "code"), [("run.held", "run_held"), ("run.cancelled", "run_cancelled")])
async def test_half_an_answer_does_not_look_like_a_whole_one(agent: StandIn, end: str, code: str) -> None:
    agent.run = spoken("Par", end=end)
    result = await loopctl("ask", "q", code=ExitCode.FAILED)
    assert result.stdout == "Par\n"
    assert f"[{code}]" in result.stderr


@pytest.mark.parametrize(("cancelled", "words"), [(True, "nothing of it runs on"), (False, "could not be cancelled")])
async def test_ctrl_c_cancels_the_run_on_the_server(agent: StandIn, cancelled: bool, words: str) -> None:
    agent.run, agent.hold = [*spoken("Par")[:2], *spoken()], True
    agent.breaks = [2]
    if cancelled:
        agent.tell(f"POST /agents/runs/{RUN}/cancel", {"run_id": RUN, "status": "cancelled", "output": "Par"})
    process = await start("ask", "q")
    async with asyncio.timeout(DEADLINE_S):
        assert process.stdout
        assert await process.stdout.read(3) == b"Par"
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert process.returncode == ExitCode.INTERRUPTED
    assert agent.asked[-1] == f"POST /agents/runs/{RUN}/cancel"
    assert words in err.decode()
    assert "Traceback" not in err.decode()


WHOLE = [Message(name, json.dumps(data), str(n)) for n, (name, data) in enumerate(spoken(*"abcdefgh"), 1)]


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=20))
def test_whatever_breaks_each_event_comes_once_and_in_order(cuts: list[tuple[int, bool]]) -> None:
    """Or the run is lost aloud; it is never cut short in silence."""
    left = iter(cuts)

    def stream(run_id: str, after: int) -> Stream:
        many, aloud = next(left, (len(WHOLE), True))
        yield None
        yield from WHOLE[after : after + many]
        if aloud and after + many < len(WHOLE):
            raise UnreachableError("cut")

    got: list[Message | None] = []
    place = Place(RUN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_follow, "WAITS_S", (0.0,) * 3)
        try:
            got.extend(follow(lambda: stream(RUN, 0), stream, place, lambda _: None))
        except RunLostError:
            assert len(got) < len(WHOLE)
        else:
            assert got == WHOLE
    assert got == WHOLE[: len(got)]
    assert place.last == len(got)


# runs


async def test_runs_are_listed(agent: StandIn) -> None:
    ended = {**RUN_VIEW, "run_id": "run_2", "status": "completed", "thread_id": THREAD, "duration_ms": 250_000}
    agent.tell("GET /agents/runs", {"runs": [RUN_VIEW, ended]})
    lines = (await loopctl("runs", "list", "--live")).stdout.splitlines()
    assert agent.asked == ["GET /agents/runs?live=true&limit=50"]
    assert lines[1].split() == [RUN, "●", "running", "ann", "-", "4.1", "s"]
    assert "✔ completed" in lines[2]
    view = json.loads((await loopctl("runs", "list", "--json", "-n", "3")).stdout)["runs"][0]
    assert (view["run_id"], "later" in view) == (RUN, False)
    assert agent.asked[-1] == "GET /agents/runs?live=false&limit=3"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": "completed", "result": {"output": "Paris"}}, "Paris"),
        ({"status": "completed", "result": {"output": "{}", "structured": {"a": "ü"}}}, '{"a": "ü"}'),
        ({"status": "failed", "error": {"error": {"code": "no_engine", "message": "none"}}}, "none [no_engine]"),
        ({"status": "failed", "error": "odd"}, '"odd"'),
        ({"status": "completed", "result": {"odd": 1}}, '{"odd": 1}'),
    ],
)
async def test_a_run_shows_how_it_ended(agent: StandIn, fields: dict[str, object], words: str) -> None:
    agent.tell(f"GET /agents/runs/{RUN}", {**RUN_VIEW, **fields})
    assert (await loopctl("runs", "show", RUN)).stdout.splitlines()[-1] == words


async def test_a_run_is_watched_from_its_beginning(agent: StandIn) -> None:
    agent.run = [*spoken("Par")[:2], ("tool.started", {"name": "bash"}), ("run.steered", {"text": "hurry"})]
    agent.run += [("text.delta", {"text": "is"}), ("run.completed", {"run_id": RUN, "output": "Paris"})]
    agent.breaks = [3]
    result = await loopctl("runs", "watch", RUN)
    assert result.stdout == "Paris\n"
    assert "[tool: bash]" in result.stderr
    assert "[told meanwhile: hurry]" in result.stderr
    lines = [json.loads(line) for line in (await loopctl("runs", "watch", RUN, "--json")).stdout.splitlines()]
    assert [(line["id"], line["event"]) for line in lines] == [(str(n), e) for n, (e, _) in enumerate(agent.run, 1)]
    agent.run = spoken(end="run.failed", error={"code": "no_engine", "message": "none"})
    assert "none [no_engine]" in (await loopctl("runs", "watch", RUN, code=ExitCode.FAILED)).stderr


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"run_id": RUN, "status": "cancelled", "output": ""}, "was cancelled"),
        ({"run_id": RUN, "status": "completed", "output": ""}, "had ended before: completed"),
        ({"error": {"code": "no_engine", "message": "none"}}, "had ended before: none"),
    ],
)
async def test_a_run_is_cancelled_or_had_ended(agent: StandIn, body: object, words: str) -> None:
    agent.tell(f"POST /agents/runs/{RUN}/cancel", body)
    assert words in (await loopctl("runs", "cancel", RUN)).stdout


async def test_a_word_into_a_run(agent: StandIn) -> None:
    agent.tell(f"POST /agents/runs/{RUN}/steer", RUN_VIEW, 202)
    await loopctl("runs", "steer", RUN, "-", stdin=b"in English")
    assert agent.body == {"text": "in English"}
    agent.answers.clear()
    agent.refuse(f"POST /agents/runs/{RUN}/steer", 409, "run_ended")
    assert "[run_ended]" in (await loopctl("runs", "steer", RUN, "x", code=ExitCode.CONFLICT)).stderr


# threads


async def test_threads_are_listed_and_read(agent: StandIn) -> None:
    agent.tell("GET /agents/threads", {"threads": [THREAD_VIEW]})
    assert "Paris" in (await loopctl("threads", "list", "--before", THREAD)).stdout
    assert agent.asked == [f"GET /agents/threads?before={THREAD}&limit=50"]
    agent.tell(f"GET /agents/threads/{THREAD}", THREAD_VIEW)
    parts = [{"part_kind": "user-prompt", "content": "Capital?"}, {"part_kind": "tool-call", "tool_name": "py"}]
    message = {"seq": 3, "run_id": RUN, "at": NOON, "message": {"kind": "request", "parts": parts}}
    agent.tell(f"GET /agents/threads/{THREAD}/messages", {"messages": [message]})
    shown = (await loopctl("threads", "show", THREAD)).stdout
    assert "   3  user: Capital?" in shown
    assert '   3  ?: {"part_kind": "tool-call", "tool_name": "py"}' in shown
    assert json.loads((await loopctl("threads", "show", THREAD, "--json")).stdout)["messages"][0]["seq"] == 3
    await loopctl("threads", "show", THREAD, "--query", "a b")
    assert agent.asked[-1] == f"GET /agents/threads/{THREAD}/messages?dropped=true&query=a+b&limit=50"


async def test_a_thread_is_begun_and_renamed(agent: StandIn) -> None:
    agent.tell("POST /agents/threads", THREAD_VIEW, 201)
    assert (await loopctl("threads", "new", "Paris")).stdout == f"{THREAD}\n"
    assert agent.body == {"title": "Paris"}
    await loopctl("threads", "new")
    assert agent.body == {}
    agent.tell(f"PATCH /agents/threads/{THREAD}", THREAD_VIEW)
    await loopctl("threads", "rename", THREAD, "Paris")
    assert agent.body == {"title": "Paris"}


@pytest.mark.parametrize(
    "arguments",
    [["threads", "delete", THREAD], ["knowledge", "delete", "rules.md", "--shared"], ["people", "erase", "ann"]],
)
async def test_what_cannot_be_undone_asks_first(agent: StandIn, arguments: list[str]) -> None:
    result = await loopctl(*arguments, code=ExitCode.USAGE)
    assert "repeat with --yes" in result.stderr
    assert agent.asked == []
    for asked in (f"threads/{THREAD}", "knowledge/rules.md"):
        agent.tell(f"DELETE /agents/{asked}", None)
    agent.tell("DELETE /agents/users/ann/data", {"runs": 2, "threads": 1})
    await loopctl(*arguments, "--yes")
    assert len(agent.asked) == 1
    json.loads((await loopctl(*arguments, "--yes", "--json")).stdout)


@pytest.mark.parametrize(("typed", "code"), [(b"ann\n", 0), (b"yes\n", 0), (b"y\n", 2), (b"", 2)])
async def test_a_person_types_the_name_of_whom_to_erase(
    agent: StandIn, monkeypatch: pytest.MonkeyPatch, typed: bytes, code: int
) -> None:
    monkeypatch.setattr("typer.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    agent.tell("DELETE /agents/users/ann/data", {})
    await loopctl("people", "erase", "ann", stdin=typed, code=code)
    assert len(agent.asked) == (code == 0)


async def test_files_of_a_thread_come_out_and_go_in(agent: StandIn, tmp_path: Path) -> None:
    body = os.urandom(3 << 20)
    agent.tell(f"GET /agents/threads/{THREAD}/workspace", body)
    agent.tell(f"PUT /agents/threads/{THREAD}/workspace", None)
    file = tmp_path / "out" / "files.tar"
    file.parent.mkdir()
    assert "3.0 MiB are in" in (await loopctl("threads", "export", THREAD, str(file))).stdout
    assert file.read_bytes() == body
    assert file.stat().st_mode & 0o777 == 0o600
    await loopctl("threads", "import", THREAD, str(file))
    assert (agent.bodies[-1] == body, agent.kinds[-1]) == (True, "application/x-tar")
    told = len(agent.asked)
    assert "was left as it is" in (await loopctl("threads", "export", THREAD, str(file), code=1)).stderr
    assert len(agent.asked) == told
    agent.answers.clear()
    agent.refuse(f"GET /agents/threads/{THREAD}/workspace", 404, "not_found")
    await loopctl("threads", "export", THREAD, str(file), "--force", code=ExitCode.NOT_FOUND)
    assert file.read_bytes() == body
    assert list(file.parent.iterdir()) == [file]
    await loopctl("threads", "import", THREAD, str(tmp_path / "none.tar"), code=1)
    agent.refuse(f"PUT /agents/threads/{THREAD}/workspace", 413, "too_large")
    assert "[too_large]" in (await loopctl("threads", "import", THREAD, str(file), code=1)).stderr


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be written"), writing(tmp_path / "no" / "file", force=False):
        pass
    with pytest.raises(FileError, match="No space"), writing(tmp_path / "file", force=False):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["parts", "part_kind", "content", "tool_name", "args"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_a_message_of_any_form_is_shown(message: Any) -> None:  # Any: JSON
    assert all(said for said in sentences(message))


# memory, knowledge


async def test_memory(agent: StandIn) -> None:
    agent.tell("GET /agents/memory", {"memories": [MEMORY]})
    agent.tell("GET /agents/memory/search", {"memories": []})
    agent.tell("POST /agents/memory", MEMORY, 201)
    agent.tell("DELETE /agents/memory/7", None)
    assert "likes tea" in (await loopctl("memory", "list")).stdout
    assert "nothing that is remembered fits" in (await loopctl("memory", "search", "tea & milk")).stdout
    assert agent.asked[-1] == "GET /agents/memory/search?query=tea+%26+milk&limit=5"
    assert "remembered as 7" in (await loopctl("memory", "add", "likes tea", "--tag", "a", "--tag", "b")).stdout
    assert agent.body == {"text": "likes tea", "tags": ["a", "b"]}
    assert json.loads((await loopctl("memory", "forget", "7", "--json")).stdout) == {"removed": "7"}
    await loopctl("memory", "forget", "-1", code=ExitCode.USAGE)


async def test_knowledge(agent: StandIn, tmp_path: Path) -> None:
    agent.tell("GET /agents/knowledge", {"documents": [DOCUMENT]})
    passage = {"document": "rules.md", "owner": "*", "position": 0, "text": "one\ntwo", "score": 0.5}
    agent.tell("GET /agents/knowledge/search", {"passages": [passage]})
    for name in ("rules.md", "my rules"):
        agent.tell(f"PUT /agents/knowledge/{name}", {**DOCUMENT, "name": name}, 201)
    file = tmp_path / "rules.md"
    file.write_text("Be brief. ü")
    assert "2.0 KiB" in (await loopctl("knowledge", "list", "--shared")).stdout
    assert agent.asked[-1] == "GET /agents/knowledge?shared=true"
    assert "rules.md, part 1 (score 0.50)\n    one\n    two\n" in (await loopctl("knowledge", "search", "brief")).stdout
    assert "searched by local" in (await loopctl("knowledge", "add", str(file))).stdout
    assert (agent.bodies[-1].decode(), agent.kinds[-1]) == ("Be brief. ü", "text/plain")
    await loopctl("knowledge", "add", "-", "--name", "my rules", "--shared", stdin=b"text")
    assert agent.asked[-1] == "PUT /agents/knowledge/my%20rules?shared=true"


@pytest.mark.parametrize(
    ("arguments", "content", "code"),
    [
        (["-"], b"x", 2),
        (["-", "--name", "a/b"], b"x", 2),
        (["-", "--name", ".."], b"x", 2),
        (["-", "--name", "x"], b"\xff\xfe", 2),
        (["-", "--name", "x"], b" \n", 2),
        (["/does/not/exist"], b"", 1),
        (["/"], b"", 2),
    ],
)
async def test_a_document_that_cannot_be_one_is_refused_here(
    agent: StandIn, arguments: list[str], content: bytes, code: int
) -> None:
    await loopctl("knowledge", "add", *arguments, stdin=content, code=code)
    assert agent.asked == []


# review, people


async def test_a_run_is_rated_and_consent_shown_and_decided(agent: StandIn) -> None:
    run = f"run_{1:016x}"
    kept = {"run_id": run, "outcome": "completed", "rating": "bad", "comment": "", "better": "Four."}
    agent.tell(f"POST /agents/runs/{run}/feedback", kept)
    assert "what is better is kept" in (await loopctl("feedback", run, "bad", "--better", "Four.")).stdout
    assert agent.body == {"rating": "bad", "better": "Four."}
    await loopctl("feedback", run, "great", code=2)
    agent.tell("GET /agents/consent", {"agree": True, "learn": "everyone"})
    assert "are kept" in (await loopctl("consent")).stdout
    agent.tell("PUT /agents/consent", {"agree": False, "learn": "asked", "deleted": 2})
    assert "2 runs of before deleted" in (await loopctl("consent", "no")).stdout
    assert agent.body == {"agree": False}
    agent.answers["PUT /agents/consent"] = [(200, {"agree": False, "learn": "off"})]
    assert "agent.learn is off" in (await loopctl("consent", "yes")).stdout


async def test_what_was_held_back_is_listed_read_and_decided(agent: StandIn) -> None:
    agent.tell("GET /agents/quarantine", {"held": [held(1)]})
    listed = (await loopctl("quarantine", "list", "--state", "rejected")).stdout
    assert agent.asked == ["GET /agents/quarantine?state=rejected&limit=20"]
    assert "\x1b" not in listed
    shown = (await loopctl("quarantine", "show", f"held_{1:016x}")).stdout
    assert "exfiltration" in shown
    assert "a\\u001b]0;x\\u0007\n" in shown
    agent.tell(f"POST /agents/quarantine/held_{1:016x}/release", held(1, state="released"))
    assert "is released: ann reads it" in (await loopctl("quarantine", "release", f"held_{1:016x}")).stdout
    agent.tell(f"POST /agents/quarantine/held_{1:016x}/reject", held(1, state="rejected"))
    await loopctl("quarantine", "reject", f"held_{1:016x}", "--reason", "no")
    assert agent.body == {"reason": "no"}


async def test_what_was_held_back_is_found_on_any_page(agent: StandIn) -> None:
    agent.answers["GET /agents/quarantine"] = [
        (200, {"held": [held(n) for n in range(HELD_PAGE)]}),
        (200, {"held": []}),
        (200, {"held": [held(77, state="released", decided_by="olga", reason="fine")]}),
        (200, {"held": []}),
    ]
    assert "released by olga: fine" in (await loopctl("quarantine", "show", f"held_{77:016x}")).stdout
    assert [asked.split("?")[1] for asked in agent.asked] == [
        "state=waiting&limit=20",
        f"state=waiting&before=held_{HELD_PAGE - 1:016x}&limit=20",
        "state=released&limit=20",
    ]
    assert "no" in (await loopctl("quarantine", "show", "held_none", code=ExitCode.NOT_FOUND)).stderr


async def test_a_persons_data(agent: StandIn, tmp_path: Path) -> None:
    body = b'{"table": "runs", "row": {}}\n' * 3
    agent.tell("GET /agents/users/ann/export", body)
    agent.tell("DELETE /agents/users/ann/data", {"runs": 2, "memories": 1})
    assert (await loopctl("people", "export", "ann")).stdout_bytes == body
    await loopctl("people", "export", "ann", str(tmp_path / "ann.jsonl"))
    assert (tmp_path / "ann.jsonl").read_bytes() == body
    assert "3 rows of ann are erased" in (await loopctl("people", "erase", "ann", "--yes")).stdout
    agent.answers.clear()
    agent.tell("DELETE /agents/users/ann/data", ["odd"])
    assert "most likely erased" in (await loopctl("people", "erase", "ann", "--yes", code=1)).stderr


# tools, MCP servers


async def test_tools_are_listed_with_what_is_not_offered(agent: StandIn) -> None:
    python = {"name": "python", "description": "Run.\nMore.", "source": "sandbox", "effect": "execute"}
    away = {"name": "web", "source": "builtin", "available": False, "reason": "no endpoint is set"}
    agent.tell(
        "GET /agents/tools",
        {
            "tools": [
                {**python, "level": "execute", "capabilities": ["code"], "available": True, "reason": None},
                away,
            ],
            "conflicts": [{"name": "python", "winner": "sandbox", "loser": "wiki", "offered_as": "wiki__python"}],
            "refused": [{"source": "wiki", "name": "bad", "reason": "its schema is no object"}],
            "unavailable": [{"source": "docs", "reason": "connection refused"}],
        },
    )
    shown = (await loopctl("tools")).stdout
    for words in ("✔ ready", "Run.", "no endpoint is set", "wiki__python", "its schema is no object", "docs cannot be"):
        assert words in shown
    assert "More." not in shown
    assert len(json.loads((await loopctl("tools", "--json")).stdout)["tools"]) == 2


async def test_mcp_servers(agent: StandIn) -> None:
    agent.tell("GET /agents/mcp-servers", {"servers": [SERVER]})
    agent.tell("POST /agents/mcp-servers", SERVER, 201)
    agent.tell("DELETE /agents/mcp-servers/wiki", None)
    assert "✔ ready" in (await loopctl("mcp", "list")).stdout
    await loopctl("mcp", "add", "wiki", "http://wiki/mcp", "--header", "Authorization=wiki.token", "--deny", "drop*")
    assert agent.body == {
        "name": "wiki",
        "url": "http://wiki/mcp",
        "headers": {"Authorization": "wiki.token"},
        "deny": ["drop*"],
    }
    await loopctl("mcp", "remove", "wiki")
    told = {"state": "ready", "error": "", "tools": ["find"], "refused": [{"name": "bad", "reason": "no schema"}]}
    agent.answers["POST /agents/mcp-servers/wiki/test"] = [(200, told), (200, {"state": "down", "error": "refused"})]
    assert "offers find\n" in (await loopctl("mcp", "test", "wiki")).stdout
    assert "refused" in (await loopctl("mcp", "test", "wiki", code=ExitCode.FAILED)).stdout
    asked = len(agent.asked)
    for arguments in (["wiki", "http://w", "--header", "Authorization"], ["Wiki", "http://w"], ["../x", "http://w"]):
        await loopctl("mcp", "add", *arguments, code=ExitCode.USAGE)
    assert len(agent.asked) == asked


# all of them

EMPTY: dict[str, tuple[list[str], object]] = {
    "runs": (["runs", "list"], {"runs": []}),
    "threads": (["threads", "list"], {"threads": []}),
    "memory": (["memory", "list"], {"memories": []}),
    "knowledge": (["knowledge", "list"], {"documents": []}),
    "quarantine": (["quarantine", "list"], {"held": []}),
    "tools": (["tools"], {"tools": []}),
    "mcp-servers": (["mcp", "list"], {"servers": []}),
}


@pytest.mark.parametrize("name", EMPTY)
async def test_nothing_has_words_of_its_own(agent: StandIn, name: str) -> None:
    arguments, body = EMPTY[name]
    agent.tell(f"GET /agents/{name}", body)
    assert len((await loopctl(*arguments)).stdout.splitlines()) == 1
    assert json.loads((await loopctl(*arguments, "--json")).stdout).items() >= dict(body).items()  # type: ignore[call-overload]


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize(("status", "code"), [(401, 6), (403, 6), (404, 4), (409, 5), (422, 1), (503, 1)])
async def test_refusals_are_told_in_the_agents_words(agent: StandIn, name: str, status: int, code: int) -> None:
    agent.refuse(f"GET /agents/{name}", status, "odd")
    assert "error: it is odd [odd]\n" in (await loopctl(*EMPTY[name][0], code=code)).stderr


@pytest.mark.parametrize("name", EMPTY)
async def test_an_answer_that_is_none_of_the_agents_is_said(agent: StandIn, name: str) -> None:
    agent.tell(f"GET /agents/{name}", b"<html>")
    assert "is it the agent that listens there" in (await loopctl(*EMPTY[name][0], code=1)).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs", "show", "../../x"],
        ["runs", "cancel", ""],
        ["threads", "delete", "", "--yes"],
        ["threads", "show", "thread_1"],
        ["ask", "q", "--thread", "old"],
        ["quarantine", "release", "a/b"],
        ["people", "erase", "a/b", "--yes"],
        ["quarantine", "list", "--state", "odd"],
        ["runs", "steer", RUN, " "],
    ],
)
async def test_an_id_cannot_leave_its_place_in_the_address(agent: StandIn, arguments: list[str]) -> None:
    await loopctl(*arguments, code=ExitCode.USAGE)
    assert agent.asked == []


# completion


async def offered(line: str) -> list[str]:
    """Return what bash is offered at the end of a command line. Nothing else may be written."""
    asked = {"_LOOPCTL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    result = await asyncio.to_thread(CliRunner().invoke, commands, [], prog_name="loopctl", env=asked)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.split()


async def test_a_shell_is_offered_what_there_is(agent: StandIn) -> None:
    other = {**RUN_VIEW, "run_id": "run_00000000000000ab", "status": "completed"}
    agent.tell("GET /agents/runs", {"runs": [RUN_VIEW]})
    agent.tell("GET /agents/runs", {"runs": [other, RUN_VIEW]})
    agent.tell("GET /agents/threads", {"threads": [THREAD_VIEW]})
    agent.tell("GET /agents/quarantine", {"held": [held(1)]})
    agent.tell("GET /agents/memory", {"memories": [MEMORY]})
    agent.tell("GET /agents/mcp-servers", {"servers": [SERVER]})
    agent.tell("GET /agents/knowledge", {"documents": [DOCUMENT]})
    assert await offered("loopctl runs show ") == [RUN, other["run_id"]]
    assert await offered("loopctl threads show thread_") == [THREAD]
    assert await offered("loopctl threads show x") == []
    assert await offered("loopctl ask q --thread ") == [THREAD]
    assert await offered("loopctl quarantine release held") == ["held_0000000000000001"]
    assert await offered("loopctl memory forget ") == ["7"]
    assert await offered("loopctl mcp test w") == ["wiki"]
    assert await offered("loopctl knowledge delete ") == ["rules.md"]


async def test_nothing_that_a_shell_would_carry_out_is_offered(agent: StandIn) -> None:
    """Guards against a name or a title, which users and models write, that runs when somebody presses Tab."""
    evil = "$(touch /tmp/x)`id`;|&\"'\\\x1b]:"
    named = [evil, f"a{evil}", "-rf", "two words", "ok", "new\nline", "o"]
    agent.tell("GET /agents/knowledge", {"documents": [{**DOCUMENT, "name": name} for name in named]})
    assert await asyncio.to_thread(complete.documents, "") == [("ok", ""), ("o", "")]
    agent.tell("GET /agents/threads", {"threads": [{**THREAD_VIEW, "title": f"{evil} Grüße\u202e"}]})
    assert await asyncio.to_thread(complete.threads, "") == [(THREAD, "touch tmp x id Grüße")]


async def test_a_shell_is_told_of_no_failure(agent: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.refuse("GET /agents/runs", 503, "away")
    assert await offered("loopctl runs show ") == []
    agent.tell("GET /agents/threads", b"{")
    assert await offered("loopctl threads show ") == []
    assert await offered("loopctl releases promote ") == []  # no loopd
    monkeypatch.setenv("LOOPBOX_PUBLIC_PORT", "none")
    assert await offered("loopctl memory forget ") == []


async def test_a_shell_does_not_wait_for_an_answer_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, gave_up = threading.Event(), threading.Event()

    def hang() -> None:
        answer.wait()
        gave_up.set()
        raise UnreachableError("too late")

    monkeypatch.setattr(complete, "WAIT_S", 0.05)
    monkeypatch.setattr(complete, "open_agent", hang)
    assert await offered("loopctl runs show ") == []
    answer.set()
    assert await asyncio.to_thread(gave_up.wait, 5)
