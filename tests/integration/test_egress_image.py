"""The egress image as loopd runs it, with a real sandbox: what was granted is reached, nothing else, and it is told."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator

import docker
import pytest

from faults.rig import Rig, open_rig, wait_for
from faults.test_sandbox_escapes import ask, lent

pytestmark = pytest.mark.docker

ASK = """
import json, socket, sys
def say(request):
    with socket.socket(socket.AF_UNIX) as proxy:
        proxy.settimeout(20)
        proxy.connect("/run/toolrunner/egress.sock")
        proxy.sendall(request.encode())
        return b"".join(iter(lambda: proxy.recv(65536), b"")).decode()
def get(host): return say(f"GET http://{host}/ HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n")
def connect(host): return say(f"CONNECT {host} HTTP/1.1\\r\\n\\r\\nGET / HTTP/1.0\\r\\n\\r\\n")
print(json.dumps([ANSWERS]))
"""


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"from outside"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the base class's name
        pass


def bridge_address() -> str:
    """Return the host's address on Docker's own bridge: private, and reachable from the proxy."""
    client = docker.from_env()
    try:
        config = client.networks.get("bridge").attrs["IPAM"]["Config"][0]
        return str(config.get("Gateway") or config["Subnet"].rsplit(".", 1)[0] + ".1").split("/")[0]
    finally:
        client.close()


@pytest.fixture(scope="module")
def outside() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer((bridge_address(), 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"{bridge_address()}:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def rig(outside: str) -> Iterator[Rig]:
    allow = json.dumps(["*", outside])
    with open_rig({"LOOPBOX_SANDBOX__WARM": "1", "LOOPBOX_EGRESS__ALLOW": allow}) as rig:
        rig.start()
        # The control API answers before sandboxes can be lent.
        wait_for("a sandbox is warm", lambda: rig.status()["sandboxes"]["warm"] == 1)
        with lent(rig, "ordinary", hosts=[]):
            assert "egress" not in rig.containers()  # nobody was granted anything
        yield rig


def test_a_grant_reaches_what_was_granted_and_nothing_else(rig: Rig, outside: str) -> None:
    seq = rig.newest_event()
    with lent(rig, "granted", hosts=["*.example.org", outside]) as session:
        address, port = outside.split(":")
        other = f"{address}:{int(port) - 1}"
        asked = [f"get('{outside}')", f"connect('{outside}')", f"get('{other}')", "get('169.254.169.254')"]
        asked += ["get('metadata.google.internal')", "get('x.example.org:8080')", "connect('localhost:443')"]
        told = json.loads(session.python(ASK.replace("ANSWERS", ", ".join(asked))))
        assert told[0].endswith("from outside")
        assert told[1].startswith("HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.0 200 OK")
        assert [answer.split(" ")[1] for answer in told[2:]] == ["403"] * 5
        assert session.bash("ls /sys/class/net") == "lo\n"
        wait_for("all is told", lambda: len(rig.events(seq, "egress.connection", "granted")) >= 6, 10)
    causes = [event["cause"] for event in rig.events(seq, "egress.", "granted")]
    assert f"{outside}: allowed" in causes
    assert "169.254.169.254:80: not_granted" in causes
    assert "7 connections, 5 refused" in causes


def test_the_agents_session_is_refused_what_the_operator_did_not_allow(rig: Rig) -> None:
    with pytest.raises(AssertionError, match="host_not_allowed"):
        ask(rig.run_dir / "broker" / "broker.sock", "POST", "/v1/leases", {"session": "s", "hosts": ["10.0.0.1"]})


def test_the_proxy_and_loopd_may_both_be_killed(rig: Rig, outside: str) -> None:
    with lent(rig, "lives on", hosts=[outside]) as session:
        code = ASK.replace("ANSWERS", f"get('{outside}')")
        rig.container("egress").kill()
        wait_for("the proxy is back", lambda: "from outside" in session.python(code), 20)
        rig.kill()
        assert "from outside" in session.python(code)  # while there is no loopd
        rig.start()
        wait_for("it is granted again", lambda: "from outside" in quiet(session.python, code), 20)


def quiet(function: object, code: str) -> str:
    with contextlib.suppress(AssertionError, OSError):
        return str(function(code))  # type: ignore[operator]  # one of the session's
    return ""


def test_the_proxy_has_no_privilege_and_writes_nowhere(rig: Rig, outside: str) -> None:
    with lent(rig, "looks", hosts=[outside]):
        container = rig.container("egress")
        assert container.attrs["HostConfig"]["ReadonlyRootfs"] is True
        code, output = container.exec_run(["sh", "-c", "id -u; touch /run/egress/x /x 2>&1 | wc -l; ls /run/egress"])
        assert isinstance(output, bytes)
        assert (code, output.decode().split()) == (0, ["10005", "2", "control.sock"])
        told = container.exec_run(["cat", "/proc/1/status"])[1]
        assert isinstance(told, bytes)
        assert b"CapEff:\t0000000000000000" in told
        assert b"NoNewPrivs:\t1" in told
