"""Sandboxes on real containers, lent by a real loopd: nothing gets out, the host stays well, the next lease is clean.

Attempts are grouped into few containers; `escape_attempts.py` has those that are one call each. Bombs run beside a
probe of loopd's health.

Of public suites' checks, these are made here in the form of our own code (the suites themselves are not run):
amicontained: PID and user namespace, capabilities, chroot and pivot_root (not: AppArmor, which this host lacks).
deepce: mounts, environment, password files, Docker socket, other containers and the host on the network.
CDK: capabilities, mounts, cgroups and release_agent, device lists and mknod, metadata addresses, network namespace and
abstract sockets (containerd-shim), sensitive files, environment and services, core_pattern, sysctl, ptrace, user
namespaces, the runtime's program (docker-runc), open_by_handle_at (not: Kubernetes, lxcfs, registries).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker.errors
import pytest

from faults.rig import Rig, open_rig, wait_for

pytestmark = pytest.mark.docker

ATTEMPTS = (Path(__file__).parent / "escape_attempts.py").read_text()
HEADERS = {
    "Accept": "application/json, text/event-stream",
    "Content-Type": "application/json",
    "MCP-Protocol-Version": "2025-11-25",
}
SLOWEST_S = 2.0  # for loopd to say that it is well, beside a bomb, on two cores with other work
OWN_PROCESSES = 3  # init, server, zygote
TRIED: list[str] = []


class UnixHttp(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("loopbox", timeout=90)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def ask(path: Path, method: str, route: str, body: object = None) -> Any:  # Any: JSON
    with contextlib.closing(UnixHttp(path)) as connection:
        connection.request(method, route, None if body is None else json.dumps(body), HEADERS)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status < 300, text
        return json.loads(text) if text else None


@dataclass
class Session:
    """One lease and what can be done with it, as the agent does it."""

    rig: Rig
    lease: str
    socket: Path
    unit: str = ""

    def call(self, tool: str, **arguments: object) -> dict[str, Any]:  # Any: JSON
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        return dict(ask(self.socket, "POST", "/mcp", body)["result"]["structuredContent"])

    def bash(self, command: str, timeout_s: int = 30) -> str:
        done = self.call("bash", command=command, timeout_s=timeout_s)
        return str(done["stdout"])

    def python(self, code: str, timeout_s: int = 60) -> str:
        done = self.call("python", code=code, timeout_s=timeout_s)
        assert done["exit_code"] == 0, done
        return str(done["stdout"])

    def pids(self) -> set[int]:
        """Return its processes as the host numbers them; none when it has ended itself."""
        try:
            told = self.rig.container(self.unit).top(ps_args="-o pid")
        except docker.errors.APIError:
            return set()
        return {int(row[0]) for row in told["Processes"]}

    def give_back(self) -> None:
        ask(self.rig.run_dir / "broker" / "broker.sock", "DELETE", f"/v1/leases/{self.lease}")


@pytest.fixture(scope="module")
def host() -> Iterator[Rig]:
    with open_rig(
        {"LOOPBOX_SANDBOX__WARM": "3", "LOOPBOX_SANDBOX__MOST": "8", "LOOPBOX_SANDBOX__LEASE_S": "300"}
    ) as rig:
        rig.start()
        # The control API answers before sandboxes can be lent.
        wait_for("sandboxes are warm", lambda: rig.status()["sandboxes"]["warm"] == 3)
        yield rig


@contextlib.contextmanager
def lent(rig: Rig, name: str = "one", hosts: Sequence[str] = ()) -> Iterator[Session]:
    """Lend a sandbox; take it back at the end, and see that none of its processes is left."""
    wanted = {"session": name, "ttl_s": 200, "hosts": list(hosts)}
    told = ask(rig.run_dir / "broker" / "broker.sock", "POST", "/v1/leases", wanted)
    inode = (rig.run_dir / "leases" / told["socket"]).stat().st_ino
    box = next(p.parent.name for p in (rig.run_dir / "sandboxes").glob("*/mcp.sock") if p.stat().st_ino == inode)
    session = Session(rig, told["lease"], rig.run_dir / "leases" / told["socket"], f"sandbox-{box}")
    try:
        yield session
    finally:
        pids = session.pids()
        session.give_back()
        assert session.unit not in rig.containers()
        assert not [pid for pid in pids if is_sandboxed(pid)]


def is_sandboxed(pid: int) -> bool:
    """Tell whether a process of the sandboxes' user has this number; another one may have it by now."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}").stat().st_uid == 10003 and b"Z" not in Path(f"/proc/{pid}/stat").read_bytes()[:40]
    return False


@dataclass
class Probe:
    """Asks loopd again and again whether it is well."""

    rig: Rig
    slowest: float = 0.0
    asked: int = 0
    failed: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()

        def probe() -> None:
            while not stop.wait(0.05):
                began = time.monotonic()
                try:
                    self.rig.get("/healthz")
                except (OSError, AssertionError, http.client.HTTPException) as error:
                    self.failed.append(repr(error))
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.asked += 1

        thread = threading.Thread(target=probe)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@pytest.fixture
def well(host: Rig) -> Iterator[None]:
    """See that the host was well all the time."""
    probe = Probe(host)
    with probe.running():
        yield
        time.sleep(0.1)
    assert (probe.failed, probe.asked > 0) == ([], True)
    assert probe.slowest < SLOWEST_S


def clean(session: Session) -> None:
    """See that a session finds nothing of an earlier one."""
    found = session.bash("find /workspace /tmp /dev/shm -mindepth 1; ls /dev/mqueue; ulimit -n")
    assert found == "256\n"
    assert len(session.pids()) == OWN_PROCESSES


def test_no_attempt_of_one_call_gets_anything(host: Rig, record_property: Any) -> None:  # Any: pytest's callable
    ports = [host.control_port, host.public_port]
    code = ATTEMPTS.replace("HOST_PORTS: list[int] = []", f"HOST_PORTS: list[int] = {ports}", 1)
    with lent(host) as session:
        told = json.loads(session.python(code, timeout_s=100).splitlines()[-1])
    TRIED.extend(told)
    record_property("attempts", len(told))
    assert len(told) > 200
    assert {name: got for name, got in told.items() if got} == {}


LEAVE = """
import ctypes, os, socket, time
libc = ctypes.CDLL(None)
for path in ("/workspace/m", "/tmp/m", "/dev/shm/m"):
    open(path, "w").write("MARK-OF-ANOTHER")
shared = libc.shmget(0x4C42, 4096, 0o1666)
os.environ["MARK"] = "MARK-OF-ANOTHER"
listening = socket.socket(socket.AF_UNIX); listening.bind("\\0lb-mark"); listening.listen()
inet = socket.socket(); inet.bind(("127.0.0.1", 4242)); inet.listen()
open("/workspace/ready", "w").close()
time.sleep(8)
"""
LOOK = """
import ctypes, json, os, socket
libc = ctypes.CDLL(None)
found = []
for top in ("/workspace", "/tmp", "/dev/shm", "/run", "/dev/mqueue", "/var/tmp"):
    for at, _, names in os.walk(top):
        found += [os.path.join(at, n) for n in names if n not in ("mcp.sock",)]
for pid in filter(str.isdecimal, os.listdir("/proc")):
    for name in ("environ", "cmdline", "maps"):
        try:
            if b"OF-ANOTHER" in open(f"/proc/{pid}/{name}", "rb").read() and int(pid) != os.getpid():
                found.append(f"/proc/{pid}/{name}")
        except OSError: pass
    for way in ("root/workspace/m", "cwd/m", "fd/3"):
        if os.path.exists(f"/proc/{pid}/{way}") and "m" == way[-1]: found.append(f"/proc/{pid}/{way}")
if libc.shmget(0x4C42, 4096, 0) != -1: found.append("System V shared memory")
for address in ("\\0lb-mark",):
    try: socket.socket(socket.AF_UNIX).connect(address); found.append("an abstract socket")
    except OSError: pass
try: socket.socket().connect(("127.0.0.1", 4242)); found.append("a port on loopback")
except OSError: pass
try: found += [n for n in os.listdir("/run/toolrunner/..") if n not in ("toolrunner", "lock", "utmp")]
except OSError: pass
for other in OTHERS:
    for path in (f"/run/toolrunner/../{other}/mcp.sock", f"/run/loopbox/sandboxes/{other}/mcp.sock"):
        try: socket.socket(socket.AF_UNIX).connect(path); found.append(path)
        except OSError: pass
print(json.dumps(found))
"""


def test_two_sessions_at_once_see_nothing_of_each_other(host: Rig) -> None:
    with lent(host, "one") as one, lent(host, "two") as two:
        leaving = threading.Thread(target=one.python, args=(LEAVE,))
        leaving.start()
        wait_for("the first has left its marks", lambda: "ready" in one.bash("ls /workspace"), 10)
        others = [one.unit.removeprefix("sandbox-")]
        assert json.loads(two.python(f"OTHERS = {others}\n{LOOK}")) == []
        _quietly(two, "kill -9 -1")  # it ends itself by this, and nobody else
        assert one.bash("cat /workspace/m") == "MARK-OF-ANOTHER"
        leaving.join()
    TRIED.extend(f"two sessions: {what}" for what in ("files", "proc", "sysv", "abstract", "loopback", "run", "kill"))


BOMBS = {
    "fork bomb": "f() { f | f & }; f; sleep 15",
    "thread bomb": "python3 -c 'import threading,time\nwhile 1: threading.Thread(target=time.sleep,args=(9,)).start()'",
    "memory bomb": "python3 -c 'x=[]\nwhile 1: x.append(b\"x\"*(1<<20))'",
    "memory bomb in shared memory": "head -c 1G /dev/zero > /dev/shm/a; ls /dev/shm",
    "disk bomb in the workspace": "for i in $(seq 9); do head -c 100M /dev/zero > /workspace/$i; done",
    "disk bomb in /tmp": "for i in $(seq 9); do head -c 100M /dev/zero > /tmp/$i; done",
    "disk bomb in the sockets' folder": "head -c 1G /dev/zero > /run/toolrunner/a || echo refused",
    "inode bomb": "python3 -c 'import os\n"
    'for i in range(10**6): os.close(os.open(f"/workspace/i{i}", os.O_CREAT))\' | tail -c 99',
    "output bomb": "yes | head -c 2G",
    "error bomb": "yes | head -c 2G >&2",
    "sparse file": "truncate -s 900G /workspace/s; head -c 1M /workspace/s | wc -c",
    "processor bomb": "for i in 1 2 3 4; do (while :; do :; done) & done; sleep 2; kill %1 %2 %3 %4",
    "pipe bomb": "python3 -c 'import os\nwhile 1: r,w=os.pipe(); os.set_blocking(w,False); os.write(w,b\"x\"*65536)'",
    "lock bomb": "for i in $(seq 20); do (while :; do flock /tmp/l true; done) & done; sleep 2; kill $(jobs -p)",
}


@pytest.mark.usefixtures("well")
def test_no_bomb_gets_beyond_its_sandbox(host: Rig) -> None:
    """One after the other in one sandbox, which outlives them all or is gone; others work on beside it."""
    free = os.statvfs(host.base).f_bavail
    with lent(host, "bystander") as beside:
        for name, command in BOMBS.items():
            with lent(host, "bomber") as session:
                done = session.call("bash", command=command, timeout_s=10)
                assert len(done["stdout"]) + len(done["stderr"]) < 300_000, name
                assert beside.bash("echo fine") == "fine\n", name
                with contextlib.suppress(OSError, http.client.HTTPException):  # it may have ended with its bomb
                    assert session.call("bash", command="echo lives")["stdout"] == "lives\n", name
        limit = host.container(beside.unit).attrs["HostConfig"]["Memory"]
    with lent(host, "next") as session:
        clean(session)
    TRIED.extend(BOMBS)
    assert limit == 512 << 20
    assert free - os.statvfs(host.base).f_bavail < (256 << 20) / os.statvfs(host.base).f_frsize


ORPHANS = {
    "setsid": "setsid sleep 600 & echo started",
    "nohup": "nohup sleep 600 >/dev/null 2>&1 & disown -a; echo started",
    "double fork": "(setsid bash -c '(sleep 600 &) &' &); echo started",
    "deaf to signals": "(trap '' TERM HUP INT; exec setsid sleep 600) & echo started",
    "at exit": "python3 -c 'import atexit,os\natexit.register(lambda: os.fork() or os.setsid() or "
    'os.execlp("sleep","sleep","600"))\'; echo started',
    "a chain that begets itself": "(f() { sleep 0.01; (f &) & }; f) & echo started",
    "another name": "(exec -a '[kthreadd]' setsid sleep 600) & echo started",
    "stopped": "(setsid sleep 600 & kill -STOP $!); echo started",
}


@pytest.mark.usefixtures("well")
def test_no_process_outlives_its_call_or_its_lease(host: Rig) -> None:
    with lent(host, "parent") as session:
        for name, command in ORPHANS.items():
            assert session.bash(command, timeout_s=10).endswith("started\n"), name
            wait_for(f"{name}: all are gone", lambda: len(session.pids()) == OWN_PROCESSES, 5)
        server = threading.Thread(target=_quietly, args=(session, "trap '' TERM; setsid sleep 600 & sleep 600"))
        server.start()
        wait_for("it runs", lambda: len(session.pids()) > OWN_PROCESSES, 10)
    server.join(10)
    assert not server.is_alive()
    with lent(host, "next") as session:
        clean(session)
    TRIED.extend(ORPHANS)


def _quietly(session: Session, command: str) -> None:
    """Run a command whose sandbox is taken away meanwhile."""
    with contextlib.suppress(OSError, http.client.HTTPException, KeyError):
        session.bash(command, timeout_s=60)


def test_a_session_that_is_over_has_no_way_back(host: Rig) -> None:
    with lent(host) as session:
        session.bash("echo secret > /workspace/kept")
        path = session.socket
        ask(host.run_dir / "broker" / "broker.sock", "POST", f"/v1/leases/{session.lease}/renew", {"ttl_s": 60})
    assert not path.exists()
    assert not (host.run_dir / "sandboxes" / session.unit.removeprefix("sandbox-")).exists()
    for box in (host.run_dir / "sandboxes").iterdir():
        assert box.stat().st_mode & 0o7777 in (0o700, 0o711)  # starting or warm ones: never lent


def test_tools_work_under_all_that_holds_them(host: Rig) -> None:
    with lent(host) as session:
        assert (
            session.bash("seq 3 | sort -r | head -n 1; mkfifo f; (echo x > f &); cat f; date +%Y | wc -c")
            == "3\nx\n5\n"
        )
        code = "import subprocess, threading, multiprocessing.pool, sqlite3, ssl, socket, asyncio\n"
        code += "print(multiprocessing.pool.ThreadPool(2).map(abs, [-1]), socket.getfqdn() != '')\n"
        code += "print(asyncio.run(asyncio.wait_for(asyncio.sleep(0, 1), 5)), subprocess.check_output(['true']))"
        assert session.python(code) == "[1] True\n1 b''\n"
        script = "const {Worker} = require('worker_threads');"
        script += "new Worker('postMessage', {eval: true}).on('error', () => {}).on('exit', () => {"
        script += "const names = Object.keys(require('os').networkInterfaces());"
        script += "console.log(names, require('child_process').execSync('echo y') + '')})"
        assert session.call("javascript", code=script)["stdout"] == "[ 'lo' ] y\n\n"


def test_how_many_attempts_there_were(capsys: pytest.CaptureFixture[str]) -> None:
    """After the others."""
    with capsys.disabled():
        sys.stdout.write(f"\nescape attempts held: {len(TRIED)}\n")
    assert not TRIED or len(TRIED) == len(set(TRIED))
