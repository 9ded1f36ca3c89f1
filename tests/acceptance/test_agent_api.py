"""What a user does with the agent's API: through the gateway, with a token, on the appliance of `make up`."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from appliance import Appliance

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

STORY = "Tell me a long story about the sea."


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a run, as a client reads it."""

    number: int
    name: str
    body: dict[str, Any]  #: Any: JSON


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody with a token, or with none."""

    port: int
    token: str = ""

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:  # Any: JSON, None without a body
        """Return status and parsed body."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            data = body if isinstance(body, str) else json.dumps(body) if body is not None else None
            connection.request(method, path, data, self._headers())
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else None

    def made(self, method: str, path: str, body: object = None) -> Any:  # Any: JSON
        """Return the body of an answer that must be good."""
        status, answer = self.ask(method, path, body)
        assert status in (200, 201, 202), (method, path, status, answer)
        return answer

    def run(self, instruction: str, **more: object) -> Any:  # Any: JSON
        """Run an instruction and return its result."""
        return self.made("POST", "/agents/run-agent", {"instruction": instruction, **more})

    def follow(self, run: str, after: int = 0) -> Generator[Event]:
        """Yield a run's events, after the one of a number."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            headers = self._headers() | ({"Last-Event-ID": str(after)} if after else {})
            connection.request("GET", f"/agents/runs/{run}/events", headers=headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            fields: dict[str, str] = {}
            for line in response:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if not name and "id" in fields:
                    yield Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
                    fields = {}
                elif name:
                    fields[name] = value

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def python(code: str) -> dict[str, Any]:
    """Return what makes a run call python with this code, whatever the model would want."""
    return {"name": "python", "arguments": {"code": code}}


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
    """Poll until the condition holds; fail saying what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


def issue(appliance: Appliance, user: str, *more: str) -> tuple[Client, str]:
    """Return a client with a token of its own, and the token's id."""
    said = json.loads(appliance.loopctl("token", "issue", "--user", user, "--json", *more).stdout)
    return Client(appliance.public_port, said["token"]), said["jti"]


@pytest.fixture(scope="module")
def kim(appliance: Appliance) -> Client:
    """A user who does all of this."""
    return issue(appliance, "kim")[0]


# --- who is let in


def test_without_a_token_nobody_runs_the_agent(appliance: Appliance) -> None:
    for path in ("/agents/run-agent", "/agents/threads"):
        status, body = Client(appliance.public_port).ask("POST", path, {"instruction": "x"})
        assert (status, body["error"]["code"]) == (401, "unauthenticated"), body


def test_a_viewer_looks_and_runs_nothing(appliance: Appliance) -> None:
    viewer, _ = issue(appliance, "vera", "--role", "viewer")
    assert viewer.ask("GET", "/agents/runs") == (200, {"runs": []})
    status, body = viewer.ask("POST", "/agents/run-agent", {"instruction": "x"})
    assert (status, body["error"]["code"]) == (403, "forbidden"), body
    assert viewer.ask("GET", "/agents/runs") == (200, {"runs": []})


def test_a_revoked_token_is_shut_out_and_the_users_other_one_is_not(appliance: Appliance) -> None:
    (one, jti), (other, _) = issue(appliance, "rob", "--name", "stolen"), issue(appliance, "rob")
    asked = [("GET", "/v1/models"), ("GET", "/agents/threads"), ("POST", "/agents/threads")]
    assert [one.ask(*what)[0] for what in asked] == [200, 200, 201]
    appliance.loopctl("token", "revoke", jti)
    assert [one.ask(*what)[0] for what in asked] == [401] * 3
    assert [other.ask(*what)[0] for what in asked] == [200, 200, 201]


# --- conversations


def test_a_conversation_goes_on_over_two_requests(kim: Client) -> None:
    thread = kim.made("POST", "/agents/threads", {"title": "sea"})["thread_id"]
    first = kim.run("My name is Ada and I live by the sea.", thread_id=thread, max_output_tokens=16, temperature=0)
    question = "What is my name?"
    second = kim.run(question, thread_id=thread, max_output_tokens=16, temperature=0)
    alone = kim.run(question, max_output_tokens=16, temperature=0)
    said = first["usage"]["output_tokens"]
    assert second["usage"]["input_tokens"] > alone["usage"]["input_tokens"] + said, "it was told what came before"
    messages = kim.made("GET", f"/agents/threads/{thread}/messages")["messages"]
    assert [m["message"]["kind"] for m in messages] == ["request", "response"] * 2
    assert [m["run_id"] for m in messages] == [first["run_id"]] * 2 + [second["run_id"]] * 2
    assert question in json.dumps(messages[2]["message"])
    assert thread in {t["thread_id"] for t in kim.made("GET", "/agents/threads")["threads"]}


def test_nobody_else_reads_a_conversation_or_goes_on_with_it(appliance: Appliance, kim: Client) -> None:
    thread = kim.made("POST", "/agents/threads", {})["thread_id"]
    other, _ = issue(appliance, "eve")
    assert other.ask("GET", f"/agents/threads/{thread}/messages")[0] == 404
    assert other.ask("POST", "/agents/run-agent", {"instruction": "x", "thread_id": thread})[0] == 404


def test_a_conversations_files_are_there_in_its_next_run_and_in_no_other(kim: Client) -> None:
    thread = kim.made("POST", "/agents/threads", {})["thread_id"]
    write = "open('/workspace/kept.txt', 'w').write('forty-two')"
    read = "import os; print(open('kept.txt').read() if os.path.exists('kept.txt') else 'nothing')"
    kim.run("Write.", thread_id=thread, tool_choice=python(write))
    again = kim.run("Read.", thread_id=thread, tool_choice=python(read))
    assert again["tool_calls"][0]["result"]["stdout"] == "forty-two\n"
    elsewhere = kim.run("Read.", tool_choice=python(read))
    assert elsewhere["tool_calls"][0]["result"]["stdout"] == "nothing\n"


# --- runs in the background


def test_a_background_run_is_followed_and_taken_up_again_after_its_last_event(kim: Client) -> None:
    run = kim.run(STORY, background=True, max_output_tokens=48)["run_id"]
    began: list[Event] = []
    with closing(kim.follow(run)) as events:
        for event in events:
            began.append(event)
            if len(began) == 4:
                break  # the connection is lost
    rest = list(kim.follow(run, after=began[-1].number))
    assert rest, "the run had ended before the connection was lost"
    told = [*began, *rest]
    assert [event.number for event in told] == list(range(1, len(told) + 1)), "no event is missing or comes twice"
    assert (told[0].name, told[-1].name) == ("run.started", "run.completed")
    text = "".join(event.body["text"] for event in told if event.name == "text.delta")
    assert text == told[-1].body["output"] != ""
    shown = kim.made("GET", f"/agents/runs/{run}")
    assert (shown["status"], shown["user"], shown["result"]["output"]) == ("completed", "kim", text)


def test_a_run_is_cancelled_while_the_model_writes(kim: Client) -> None:
    run = kim.run(STORY, background=True, max_output_tokens=1500)["run_id"]
    with closing(kim.follow(run)) as events:
        assert any(event.name == "text.delta" for event in events)
    began = time.monotonic()
    body = kim.made("POST", f"/agents/runs/{run}/cancel")
    assert (body["status"], body["run_id"]) == ("cancelled", run)
    assert body["output"], "what it had written is kept"
    assert time.monotonic() - began < 10


def test_a_run_is_cancelled_while_its_tool_works_and_its_sandbox_is_gone(appliance: Appliance, kim: Client) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"
    run = kim.run("Wait.", background=True, tool_choice=python(stubborn))["run_id"]
    with closing(kim.follow(run)) as events:
        assert any(event.name == "tool.started" for event in events)
    began = time.monotonic()
    assert kim.made("POST", f"/agents/runs/{run}/cancel")["status"] == "cancelled"
    assert time.monotonic() - began < 10
    wait_for("its sandbox to be given back", lambda: appliance.status()["sandboxes"]["leased"] == 0, 20)


# --- what is kept


def test_what_is_remembered_and_read_is_found_and_outlives_the_agent(appliance: Appliance, kim: Client) -> None:
    fact, text = "The harbour is closed on Mondays.", "Tides\n\nThe neap tide comes a week after the spring tide."
    kim.made("POST", "/agents/memory", {"text": fact, "tags": ["harbour"]})
    kim.made("PUT", "/agents/knowledge/tides.txt", text)
    before = appliance.containers()[f"{appliance.instance}-agent"]
    subprocess.run(["docker", "kill", before], check=True, capture_output=True)
    wait_for("another agent", lambda: kim.ask("GET", "/agents/memory")[0] == 200)
    [memory] = kim.made("GET", "/agents/memory/search?query=harbour")["memories"]
    assert (memory["text"], memory["tags"], memory["source"]) == (fact, ["harbour"], "api")
    [passage] = kim.made("GET", "/agents/knowledge/search?query=neap")["passages"]
    assert (passage["document"], passage["owner"]) == ("tides.txt", "kim")
    assert "a week after" in passage["text"]
    other, _ = issue(appliance, "eve")
    assert other.made("GET", "/agents/memory/search?query=harbour") == {"memories": []}
    assert other.made("GET", "/agents/knowledge/search?query=neap") == {"passages": []}


# --- the audit trail


def test_the_audit_trail_tells_who_asked_and_which_tool_was_called_and_is_whole(appliance: Appliance) -> None:
    user = f"lea-{uuid.uuid4().hex[:6]}"
    lea, _ = issue(appliance, user)
    result = lea.run("Compute.", tool_choice=python("print(6*7)"))

    def told() -> list[dict[str, Any]]:
        said = appliance.loopctl("audit", "list", "--user", user, "--limit", "500", "--json").stdout
        return list(json.loads(said)["entries"])

    wait_for(
        "the request and its tool call in the audit trail",
        lambda: {"request.answered", "tool.called"} <= {entry["event"] for entry in told()},
        20,
    )
    entries = told()
    assert {entry["user"] for entry in entries} == {user}
    [asked] = [e for e in entries if (e["source"], e["subject"]) == ("gateway", "POST /agents/run-agent")]
    assert asked["detail"]["status"] == 200
    [called] = [e for e in entries if (e["source"], e["event"]) == ("agent", "tool.called")]
    assert (called["subject"], called["detail"]["run"]) == ("python", result["run_id"])
    assert asked["correlation_id"] == called["correlation_id"] == result["correlation_id"]
    assert "print(6*7)" not in json.dumps(entries), "what was asked is not the trail's to keep"
    plain = appliance.loopctl("audit", "list", "--user", user).stdout
    assert user in plain
    assert "tool.called" in plain
    verdict = appliance.loopctl("audit", "verify")
    assert "as they were written" in verdict.stdout
