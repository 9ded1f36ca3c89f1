"""What a user does and sees, as README says it, on real Docker, HAProxy and Ollama with the embedded model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import ollama
import openai
import pytest

from appliance import Appliance
from tiny_gguf import make_tiny_gguf

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

QUESTION = "What is the capital of France?"


def post(url: str, body: dict[str, Any] | bytes, timeout: float = 120) -> tuple[int, dict[str, Any]]:
    """POST as curl does; return status and parsed body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
    """Poll until the condition holds; fail saying what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


def champion(appliance: Appliance) -> dict[str, Any]:
    """Return the release that serves."""
    return dict(next(r for r in appliance.status()["releases"] if r["role"] == "champion"))


class Load:
    """Clients that ask from the start of the block to its end, each again as soon as the rate lets it.

    The rate stays below what the gateway takes from one user, 200 requests a second: a tiny model answers faster than
    that, and the rest would be refused with 429.
    """

    RATE = 150  #: requests a second of all clients, at most

    def __init__(self, url: str, clients: int = 3) -> None:
        self.url = url
        self.answers: list[tuple[int, str]] = []
        self.faults: list[str] = []
        self._stop = threading.Event()
        self._pause_s = clients / self.RATE  #: from one request of a client to its next
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        body = {"model": "agent", "prompt": "Hi", "stream": False, "options": {"num_predict": 4}}
        due = time.monotonic()
        while not self._stop.wait(due - time.monotonic()):
            due = max(due, time.monotonic()) + self._pause_s
            request = urllib.request.Request(f"{self.url}/api/generate", json.dumps(body).encode())
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    answer = json.load(response)
                    self.answers.append((response.status, response.headers["X-Loopbox-Release"]))
                    if not answer["done"]:
                        self.faults.append("an answer that was not done")
            except (OSError, ValueError) as error:
                self.faults.append(repr(error))


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[int], Path]:
    """Make a small real model that Ollama loads in a moment."""
    return lambda seed: make_tiny_gguf(tmp_path / f"tiny-{seed}.gguf", seed=seed)


def drop(appliance: Appliance, model: Path) -> None:
    """Copy a model into the directory, as `cp` does."""
    subprocess.run(["cp", str(model), str(appliance.home / "models" / "incoming")], check=True)


# --- 1. make up


def test_make_up_says_where_it_serves_and_a_second_one_changes_nothing(appliance: Appliance) -> None:
    assert appliance.url in appliance.output
    before = appliance.containers()
    assert {name.removeprefix(f"{appliance.instance}-").split("-")[0] for name in before} == {
        "gateway",
        "agent",
        "engine",
    }
    pid = (appliance.run_dir / "loopd.pid").read_text()
    started = time.monotonic()
    again = appliance.make("up")
    seconds = time.monotonic() - started
    assert again.returncode == 0, again.stderr
    assert seconds < 15, f"a second make up took {seconds:.1f} s"
    assert appliance.containers() == before
    assert (appliance.run_dir / "loopd.pid").read_text() == pid


# --- 2. it answers


def test_loopctl_ask_streams_an_answer_of_the_embedded_model(appliance: Appliance) -> None:
    assert "Paris" in appliance.loopctl("ask", QUESTION).stdout


def test_curl_of_run_agent_gets_the_same(appliance: Appliance) -> None:
    status, body = post(f"{appliance.url}/agents/run-agent", {"instruction": QUESTION})
    assert (status, body["status"]) == (200, "completed")
    assert "Paris" in body["output"]
    assert body["usage"]["output_tokens"] > 0


def test_an_openai_client_chats(appliance: Appliance) -> None:
    with openai.OpenAI(base_url=f"{appliance.url}/v1", api_key=appliance.token) as client:
        answer = client.chat.completions.create(
            model="agent", messages=[{"role": "user", "content": QUESTION}], max_tokens=40, temperature=0
        )
        assert "Paris" in (answer.choices[0].message.content or "")
        chunks = client.chat.completions.create(
            model="agent", messages=[{"role": "user", "content": QUESTION}], max_tokens=20, stream=True
        )
        assert sum(1 for _ in chunks) > 3


def test_an_ollama_client_chats(appliance: Appliance) -> None:
    with ollama.Client(host=appliance.url, headers={"Authorization": f"Bearer {appliance.token}"}) as client:
        answer = client.chat(
            "agent", [{"role": "user", "content": QUESTION}], options={"temperature": 0, "num_predict": 40}
        )
        assert "Paris" in (answer.message.content or "")
        with pytest.raises(ollama.ResponseError) as caught:
            client.delete("agent")
        assert caught.value.status_code == 403, "no client may change the engine's models"


# --- 3. tools in a sandbox


def test_exec_prints_what_the_sandbox_printed(appliance: Appliance) -> None:
    done = appliance.loopctl("exec", "--", "python3", "-c", "print(6*7)")
    assert (done.stdout, done.returncode) == ("42\n", 0)


def test_exec_passes_the_exit_code_and_has_no_network(appliance: Appliance) -> None:
    code = "import socket,sys; s=socket.socket(); s.settimeout(2); sys.exit(s.connect_ex(('10.0.0.1', 80)) and 7)"
    done = appliance.loopctl("exec", "--", "python3", "-c", code, check=False)
    assert done.returncode == 7
    assert appliance.loopctl("exec", "--", "id", "-u").stdout.strip() != "0"


def test_each_exec_gets_a_fresh_sandbox(appliance: Appliance) -> None:
    appliance.loopctl("exec", "--", "touch", "/workspace/left-behind")
    assert appliance.loopctl("exec", "--", "ls", "/workspace").stdout == ""


def test_code_in_a_sandbox_writes_nothing_on_the_host(appliance: Appliance) -> None:
    """The socket's directory is the host's: a file there fills its disk, a link there takes the socket's place."""
    for act in ("touch /run/toolrunner/x", "rm /run/toolrunner/mcp.sock", "ln -s /etc /run/toolrunner/y"):
        done = appliance.loopctl("exec", "--", "sh", "-c", act, check=False)
        assert done.returncode == 1
        assert "Permission denied" in done.stderr


def test_a_forced_tool_runs_for_real_with_arguments_the_model_filled_in(appliance: Appliance) -> None:
    status, body = post(
        f"{appliance.url}/agents/run-agent",
        {"instruction": "Run the command: echo hello", "tool_choice": {"name": "bash"}},
    )
    assert (status, body["status"]) == (200, "completed"), body
    (call,) = body["tool_calls"]
    assert call["name"] == "bash"
    assert isinstance(call["arguments"]["command"], str)
    assert {"exit_code", "stdout", "stderr"} <= set(call["result"])


def test_a_forced_tool_with_given_arguments_returns_its_real_output(appliance: Appliance) -> None:
    choice = {"name": "python", "arguments": {"code": "print(6*7)"}}
    status, body = post(f"{appliance.url}/agents/run-agent", {"instruction": "Compute.", "tool_choice": choice})
    assert status == 200, body
    assert body["tool_calls"][0]["result"]["stdout"] == "42\n"


def test_a_tool_that_does_not_exist_is_named_and_the_ones_there_are_listed(appliance: Appliance) -> None:
    status, body = post(f"{appliance.url}/agents/run-agent", {"instruction": "x", "tool_choice": {"name": "teleport"}})
    assert 400 <= status < 500
    assert body["error"]["code"] == "unknown_tool"
    assert "python" in json.dumps(body["error"])
    wait_for("the lease to be given back", lambda: appliance.status()["sandboxes"]["leased"] == 0)


# --- 4. a dropped model replaces the old one


def test_a_dropped_model_takes_over_under_load_and_rollback_brings_the_old_one_back(
    appliance: Appliance, tiny: Callable[[int], Path]
) -> None:
    old = champion(appliance)
    watch = subprocess.Popen(
        [str(appliance.tree / ".venv" / "bin" / "loopctl"), "rollouts", "watch"],
        env=appliance.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with Load(appliance.url) as load:
        drop(appliance, tiny(1))
        wait_for("the dropped model to serve", lambda: champion(appliance)["name"] == "tiny-1")
        wait_for("its rollout to end", lambda: appliance.status()["rollout"] is None)
        new = champion(appliance)
        time.sleep(0.5)
        appliance.loopctl("releases", "rollback")
        assert champion(appliance)["id"] == old["id"]
        time.sleep(0.5)
    assert load.faults == []
    assert {status for status, _ in load.answers} == {200}
    assert {release for _, release in load.answers} == {old["short"], new["short"]}
    said, _ = watch.communicate(timeout=30)
    assert watch.returncode == 0, said
    assert "promote" in said
    engines = [name for name in appliance.containers() if "-engine-" in name]
    assert engines == [f"{appliance.instance}-engine-{old['short']}"], "the other one was retired"


def test_a_stream_under_way_ends_on_the_release_it_began_on(appliance: Appliance, tiny: Callable[[int], Path]) -> None:
    old = champion(appliance)
    request = urllib.request.Request(
        f"{appliance.url}/api/generate",
        json.dumps({"model": "agent", "prompt": "Tell a long story.", "options": {"num_predict": 300}}).encode(),
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        first = json.loads(response.readline())
        drop(appliance, tiny(2))
        wait_for("the dropped model to serve", lambda: champion(appliance)["name"] == "tiny-2")
        chunks = [json.loads(line) for line in response]
    assert (first["done"], chunks[-1]["done"]) == (False, True)
    assert response.headers["X-Loopbox-Release"] == old["short"]
    wait_for("the rollout to end", lambda: appliance.status()["rollout"] is None)
    appliance.loopctl("releases", "rollback")


def test_a_half_copied_model_waits_and_a_broken_one_is_moved_aside(
    appliance: Appliance, tiny: Callable[[int], Path]
) -> None:
    before = champion(appliance)
    incoming, rejected = appliance.home / "models" / "incoming", appliance.home / "models" / "rejected"
    whole = tiny(3).read_bytes()
    with Load(appliance.url, clients=1) as load:
        (incoming / "half.gguf").write_bytes(whole[: len(whole) // 2])
        (incoming / "broken.gguf").write_bytes(b"GGUF" + bytes(1000))
        wait_for("the broken one to be moved", lambda: (rejected / "broken.gguf.reason.json").exists())
        events = appliance.loopctl("events", "--json", "--limit", "500").stdout
        refused = [e for e in map(json.loads, events.splitlines()) if e["event"] == "candidate.rejected"]
        assert refused[-1]["subject"] == "broken.gguf"
        assert refused[-1]["cause"]
        assert (incoming / "half.gguf").exists(), "the half copied one waits"
        assert champion(appliance)["id"] == before["id"]
        (incoming / "half.gguf").write_bytes(whole)
        wait_for("the whole one to serve", lambda: champion(appliance)["name"] == "half")
    assert load.faults == []
    wait_for("the rollout to end", lambda: appliance.status()["rollout"] is None)
    appliance.loopctl("releases", "rollback")


# --- 5. it tells the truth, and a killed loopd harms nothing


def test_status_tells_of_each_service_what_docker_tells(appliance: Appliance) -> None:
    status = appliance.status()
    assert (status["state"], status["reason"]) == ("serving", "")
    containers = appliance.containers()
    for service in status["services"]:
        assert containers[f"{appliance.instance}-{service['name']}"].startswith(service["container"])
        assert service["ready"]
    plain = appliance.loopctl("status").stdout
    assert "gateway" in plain
    assert "\x1b[" not in plain, "no colours on a pipe"


def test_a_killed_loopd_restarts_nothing_and_cuts_nothing(appliance: Appliance) -> None:
    before = appliance.containers()
    with Load(appliance.url) as load:
        for _ in range(2):
            os.kill(int((appliance.run_dir / "loopd.pid").read_text()), signal.SIGKILL)
            down = appliance.loopctl("status", check=False)
            assert down.returncode == 3
            assert "make up" in down.stderr
            assert appliance.make("up").returncode == 0
    assert load.faults == []
    assert len(load.answers) > 5
    assert appliance.containers() == before
    assert appliance.status()["state"] == "serving"


@pytest.mark.parametrize("unit", ["agent", "gateway", "engine"])
def test_a_killed_container_comes_back_with_its_cause(appliance: Appliance, unit: str) -> None:
    names = appliance.containers()
    name = next(n for n in names if f"-{unit}" in n)
    subprocess.run(["docker", "kill", name], check=True, capture_output=True)

    def mended() -> bool:
        service = next(s for s in appliance.status()["services"] if name.endswith(s["name"]))
        return (
            bool(service["restarts"]) and bool(service["ready"]) and "SIGKILL" in (service["last_restart_cause"] or "")
        )

    wait_for(f"{name} to be mended", mended)
    wait_for("the appliance to serve", lambda: appliance.status()["state"] == "serving")
    assert "Paris" in appliance.loopctl("ask", QUESTION).stdout
    assert "SIGKILL" in appliance.loopctl("why", name.removeprefix(f"{appliance.instance}-")).stdout


# --- bad input


def test_a_giant_request_is_refused_with_413(appliance: Appliance) -> None:
    for path in ("/agents/run-agent", "/v1/chat/completions"):
        with socket.create_connection(("127.0.0.1", appliance.public_port)) as sock:
            head = (
                f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {appliance.token}\r\n"
                "Content-Type: application/json\r\nContent-Length: 99999999\r\n\r\n"
            )
            sock.sendall(head.encode())
            assert sock.recv(12) == b"HTTP/1.1 413"


def test_the_control_api_wants_its_token(appliance: Appliance) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        url = f"http://127.0.0.1:{appliance.control_port}/v1/status"
        urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": "Bearer none"}), timeout=5)
    assert caught.value.code == 401
    caught.value.close()
    assert (appliance.home / "control.token").stat().st_mode & 0o777 == 0o600


def test_a_user_logs_in_as_operating_says(appliance: Appliance) -> None:
    done = subprocess.run(
        [str(appliance.tree / ".venv" / "bin" / "loopctl"), "user", "add", "ann", "--password-stdin"],
        env=appliance.environment,
        input="correct horse battery staple",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "ann" in done.stdout
    status, pair = post(f"{appliance.url}/auth/login", {"username": "ann", "password": "correct horse battery staple"})
    assert status == 200
    request = urllib.request.Request(
        f"{appliance.url}/auth/whoami", headers={"Authorization": f"Bearer {pair['access_token']}"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert json.load(response)["user"] == "ann"


def test_a_second_appliance_on_the_same_port_is_refused_before_anything_starts(
    appliance: Appliance, tmp_path: Path
) -> None:
    other = dict(appliance.environment) | {"LOOPBOX_HOME": str(tmp_path / "h"), "LOOPBOX_INSTANCE": "lbother"}
    other["LOOPBOX_RUN_DIR"] = str(appliance.run_dir.with_name("r2"))
    done = subprocess.run(
        [str(appliance.tree / ".venv" / "bin" / "loopctl"), "up"],
        env=other,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert str(appliance.public_port) in done.stderr + done.stdout
    assert not list(Path(tmp_path).glob("h/state.db"))
    listed = subprocess.run(
        ["docker", "ps", "-aq", "--filter", "label=loopbox.instance=lbother"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout == ""


def test_wrong_settings_are_named_and_exit_78(appliance: Appliance) -> None:
    environment = appliance.environment | {"LOOPBOX_PUBLIC_PORT": "99999"}
    done = subprocess.run(
        [str(appliance.tree / ".venv" / "bin" / "loopctl"), "config", "check"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 78
    assert "public_port" in done.stderr
