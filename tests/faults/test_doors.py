"""Doors that ask for tokens, while parts die: who is in stays in, who is out stays out."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from faults.harm import main_process
from faults.rig import Rig, open_rig, wait_for

pytestmark = pytest.mark.docker

REFUSED = 6  # loopctl: no permission


@pytest.fixture(scope="module")
def guarded() -> Iterator[Rig]:
    """Serve one model behind doors that ask for tokens."""
    with open_rig({"LOOPBOX_AUTH__MODE": "required"}) as rig:
        rig.start()
        rig.ensure_model("a", seed=1)
        yield rig


def ask(rig: Rig, token: str, method: str = "GET", path: str = "/v1/models", body: object = None) -> tuple[int, bytes]:
    """Ask the gateway; status 0: it does not answer."""
    connection = http.client.HTTPConnection("127.0.0.1", rig.public_port, timeout=30)
    try:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def issue(rig: Rig, *arguments: str) -> dict[str, str]:
    return dict(json.loads(rig.loopctl("token", "issue", "--ttl", "1h", "--json", *arguments).stdout))


def test_tokens_in_use_go_on_without_loopd_and_the_next_one_knows_them(guarded: Rig) -> None:
    token = issue(guarded)["token"]
    assert ask(guarded, "")[0] == 401
    assert ask(guarded, token)[0] == 200
    guarded.kill()
    assert ask(guarded, token)[0] == 200
    status, body = ask(guarded, "", "POST", "/auth/login", {"username": "x", "password": "y"})
    assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")
    guarded.start()
    guarded.wait_serving()
    assert ask(guarded, token)[0] == 200
    assert ask(guarded, issue(guarded)["token"])[0] == 200


def test_a_revoked_token_stays_out_when_gateway_and_loopd_come_back(guarded: Rig) -> None:
    stolen, kept = issue(guarded), issue(guarded)
    told = json.loads(guarded.loopctl("token", "revoke", stolen["jti"], "--json").stdout)
    assert told == {"tokens": 1, "in_force": True}
    assert ask(guarded, stolen["token"])[0] == 401
    seq = guarded.newest_event()
    os.kill(main_process(guarded.container("gateway")), signal.SIGKILL)
    wait_for("the gateway was restarted", lambda: guarded.restarted("gateway", seq))
    wait_for("the gateway answers", lambda: ask(guarded, kept["token"])[0] == 200)
    assert ask(guarded, stolen["token"])[0] == 401
    guarded.kill()
    guarded.start()
    guarded.wait_serving()
    assert ask(guarded, stolen["token"])[0] == 401
    assert ask(guarded, kept["token"])[0] == 200


def test_keys_rotate_under_load_without_a_refusal(guarded: Rig) -> None:
    token = issue(guarded)["token"]
    statuses: list[int] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            statuses.append(ask(guarded, token)[0])
            time.sleep(0.01)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(3):
            guarded.loopctl("token", "rotate")
            assert ask(guarded, issue(guarded)["token"])[0] == 200
    finally:
        stop.set()
        thread.join(60)
    assert len(statuses) > 20
    assert set(statuses) == {200}
    guarded.loopctl("token", "rotate", "--revoke")
    assert ask(guarded, token)[0] == 401
    assert ask(guarded, issue(guarded)["token"])[0] == 200


def test_a_user_logs_in_through_the_real_gateway(guarded: Rig) -> None:
    status, body = guarded.call("GET", "/v1/users")
    assert (status, body) == (200, {"users": []})
    connection = http.client.HTTPConnection("127.0.0.1", guarded.control_port, timeout=30)
    admin = (guarded.home / "control.token").read_text().strip()
    secret = "correct horse battery staple"
    connection.request(
        "POST",
        "/v1/users",
        json.dumps({"name": "ann", "role": "user", "password": secret}),
        {"Authorization": f"Bearer {admin}"},
    )
    assert connection.getresponse().status == 201
    connection.close()
    status, raw = ask(guarded, "", "POST", "/auth/login", {"username": "ann", "password": secret})
    assert status == 200
    pair = json.loads(raw)
    status, raw = ask(guarded, pair["access_token"], "POST", "/agents/run-agent", {"instruction": "Hi"})
    assert status not in (0, 401, 403), raw
    assert ask(guarded, pair["access_token"], path="/metrics")[0] == 403
    assert guarded.loopctl("ask", "Hi", check=False).returncode != REFUSED
    logs = guarded.log + guarded.container("gateway").logs().decode()
    assert secret not in logs
    assert pair["access_token"][-40:] not in logs
    assert pair["refresh_token"] not in logs
