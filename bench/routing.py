"""routing: what the gateway adds to an answer, and how many it carries, beside a plain aiohttp proxy.

Measured twice: as it is with auth.mode off, and with ``doors``: a token verified and two buckets counted each time.

``python bench/routing.py``; its last line is one JSON object. The stub engine is HAProxy itself with a fixed answer of
1 KB, so it is not the bottleneck. Latency: one client asks the engine directly, by the gateway and by the peer in
turns, so that what else the machine does hits all three alike. Throughput: wrk with 16 connections, one after another.
Sizes: REQUESTS (per way, default 4000), SECONDS (per way, default 5).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import quantiles

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import docker
import jwt
from docker.models.containers import Container
from docker.types import LogConfig

from built import built
from loopd.gateway import Doors, GatewayDownError, Route, ServerState
from loopd.haproxy import GatewayConfigError, HaproxyGateway
from loopd.haproxy_config import GatewayConfig
from loopd.haproxy_limits import RateLimits
from loopd.keys import Keyring
from loopd.tokens import ALGORITHM, AUDIENCE

IMAGE = built().gateway
REQUESTS = int(os.environ.get("REQUESTS", "4000"))
SECONDS = int(os.environ.get("SECONDS", "5"))
CONNECTIONS = 16
WARM_UP = 200
BODY_BYTES = 1024
UID = 10004
READY_S = 20.0
HERE = Path(__file__).parent

Ask = Callable[[], float]


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ensure_wrk() -> str:
    """Return wrk's path, installed from the distribution if it is missing."""
    if not shutil.which("wrk"):
        subprocess.run(["apt-get", "update", "-qq"], check=True, stdout=sys.stderr)
        subprocess.run(["apt-get", "install", "--yes", "-qq", "wrk"], check=True, stdout=sys.stderr)
    found = shutil.which("wrk")
    if not found:
        raise SystemExit("wrk is missing and apt-get has not brought it: install it, then run this again")
    return found


def stub_config(port: int) -> str:
    """Return a HAProxy that answers everything with 1 KB at once."""
    body = json.dumps({"response": "x" * (BODY_BYTES - 16)})
    return f"""global
    nbthread 1
defaults
    mode http
    timeout client 60s
    timeout server 60s
    timeout connect 1s
frontend stub
    bind 127.0.0.1:{port}
    http-request return status 200 content-type application/json string '{body}'
"""


@contextlib.contextmanager
def running(client: docker.DockerClient, directory: Path) -> Iterator[Container]:
    """Run the gateway's image as loopd runs it."""
    container = client.containers.run(
        IMAGE,
        network_mode="host",
        detach=True,
        log_config=LogConfig(type="json-file", config={"max-size": "10m", "max-file": "3"}),  # as loopd sets it
        user=f"{UID}:{UID}",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        volumes={str(directory): {"bind": "/run/gateway", "mode": "rw"}},
    )
    try:
        yield container
    finally:
        container.remove(force=True)


@contextlib.contextmanager
def owned_directory() -> Iterator[Path]:
    """Make a directory that the gateway's user owns."""
    directory = Path(tempfile.mkdtemp(prefix="gw"))
    os.chown(directory, UID, UID)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def peer(port: int, target: str) -> Iterator[None]:
    """Run the peer."""
    # It writes a traceback for each connection that the load tool closes at its end.
    process = subprocess.Popen(
        [sys.executable, str(HERE / "peer_proxy.py"), str(port), target], stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def wait_port(port: int) -> None:
    """Return once something listens."""
    deadline = time.monotonic() + READY_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing listens on port {port} after {READY_S:g} s")
        time.sleep(0.05)


async def attach(driver: HaproxyGateway, engine: str) -> None:
    """Give all traffic to the engine and return once the gateway's probe finds it up."""
    async with asyncio.timeout(READY_S):
        while True:
            with contextlib.suppress(GatewayDownError):
                await driver.apply((Route(pool="engine", server="stub", address=engine, share=100),))
                if [s.state for s in await driver.observe()] == [ServerState.UP]:
                    return
            await asyncio.sleep(0.05)


def make_token(keyring: Keyring) -> str:
    """Return a token as loopd signs it."""
    now = int(time.time())
    times = {"iat": now, "nbf": now, "exp": now + 3600}
    claims = {"iss": "loopbox", "aud": AUDIENCE, "sub": "bench", "role": "user", "jti": "0" * 32, **times}
    return jwt.encode(claims, keyring.current.private, ALGORITHM, headers={"kid": keyring.current.kid})


@contextlib.contextmanager
def asker(port: int, token: str) -> Iterator[Ask]:
    """Yield a function that asks once on a kept connection and returns the seconds it took."""
    body = json.dumps({"prompt": "x" * (BODY_BYTES - 14)}).encode()
    head = (
        "POST /api/generate HTTP/1.1\r\nHost: bench\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask() -> float:
            started = time.perf_counter()
            sock.sendall(request)
            answer = bytearray()
            while b"\r\n\r\n" not in answer or len(answer.partition(b"\r\n\r\n")[2]) < BODY_BYTES:
                chunk = sock.recv(64 << 10)
                if not chunk:
                    raise SystemExit(f"port {port} closed after {bytes(answer[:200])!r}")
                answer += chunk
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"port {port} answered {bytes(answer[:200])!r}")
            return time.perf_counter() - started

        yield ask


def latencies(ports: Mapping[str, int], token: str) -> dict[str, tuple[float, float]]:
    """Return (p50, p99) in milliseconds by way."""
    taken: dict[str, list[float]] = {name: [] for name in ports}
    with contextlib.ExitStack() as stack:
        asks = {name: stack.enter_context(asker(port, token)) for name, port in ports.items()}
        for turn in range(WARM_UP + REQUESTS):
            for name, ask in asks.items():
                seconds = ask()
                if turn >= WARM_UP:
                    taken[name].append(seconds * 1e3)
    cuts = {name: quantiles(values, n=100) for name, values in taken.items()}
    return {name: (cut[49], cut[98]) for name, cut in cuts.items()}


def throughput(wrk: str, port: int, token: str) -> float:
    """Return requests a second at 16 connections; any that fails ends the bench."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f'wrk.method = "POST"\nwrk.body = \'{{"prompt":"{"x" * (BODY_BYTES - 14)}"}}\'\n')
        script.write(f'wrk.headers["Authorization"] = "Bearer {token}"\n')
        script.flush()
        command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", script.name]
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{port}/api/generate"], check=True, capture_output=True, text=True
        )
    found = re.search(r"Requests/sec:\s+([0-9.]+)", done.stdout)
    if found is None or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise SystemExit(f"requests failed at port {port}:\n{done.stdout}{done.stderr}")
    return float(found[1])


def resident_mb(container: Container) -> float:
    """Return the resident memory of master and worker, MB."""
    container.reload()
    master = int(container.attrs["State"]["Pid"])
    pids = [master, *map(int, Path(f"/proc/{master}/task/{master}/children").read_text().split())]
    kilobytes = [re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in pids]
    return sum(int(found[1]) for found in kilobytes if found) / 1024


def measure(client: docker.DockerClient, wrk: str) -> dict[str, float]:
    """Set everything up and return the figures."""
    ports = {name: free_port() for name in ("direct", "gateway", "doors", "peer")}
    config = GatewayConfig(public_port=ports["gateway"], internal_address="", internal_port=1, max_body_bytes=1 << 20)

    async def check(path: Path) -> None:
        command = ["-c", "-f", f"/run/gateway/{path.name}"]
        try:
            # The draft belongs to UID and the check runs as UID, in the image's own HAProxy.
            client.containers.run(
                IMAGE, command, remove=True, volumes={str(path.parent): {"bind": "/run/gateway", "mode": "ro"}}
            )
        except docker.errors.ContainerError as error:
            raise GatewayConfigError(str(error)) from error

    with contextlib.ExitStack() as stack:
        stub_directory, directory, guarded = (stack.enter_context(owned_directory()) for _ in range(3))
        keyring = Keyring.open(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        token = make_token(keyring)
        (stub_directory / "haproxy.cfg").write_text(stub_config(ports["direct"]))
        stack.enter_context(running(client, stub_directory))
        driver = HaproxyGateway(lambda: config, directory, check=check, uid=UID)
        asyncio.run(driver.ensure_config(()))
        gateway = stack.enter_context(running(client, directory))
        # Limits that nobody reaches are counted as any others.
        limits = RateLimits(user_rate=1e6, user_burst=1e6, address_rate=1e6, address_burst=1e6)
        strict = replace(config, public_port=ports["doors"], auth=True, limits=limits)
        doors = HaproxyGateway(lambda: strict, guarded, check=check, uid=UID)
        with contextlib.suppress(GatewayDownError):
            asyncio.run(doors.admit(Doors(keys=keyring.public(), revoked={})))
        asyncio.run(doors.ensure_config(()))
        stack.enter_context(running(client, guarded))
        stack.enter_context(peer(ports["peer"], f"http://127.0.0.1:{ports['direct']}"))
        for each in (driver, doors):
            asyncio.run(attach(each, f"127.0.0.1:{ports['direct']}"))
        for port in ports.values():
            wait_port(port)
        # A gateway's log line is still being written when the next one is asked: each has a pass of its own.
        second = latencies({name: port for name, port in ports.items() if name != "gateway"}, token)
        taken = latencies({name: port for name, port in ports.items() if name != "doors"}, token)
        base = {"gateway": taken["direct"], "doors": second["direct"], "peer": taken["direct"]}
        taken["doors"] = second["doors"]
        rates = {name: throughput(wrk, port, token) for name, port in ports.items()}
        figures = {f"{name}_p{q}_ms": taken[name][i] for name in ports for i, q in ((0, 50), (1, 99))}
        for prefix, name in (("", "gateway"), ("doors_", "doors"), ("peer_", "peer")):
            figures |= {f"{prefix}added_p{q}_ms": taken[name][i] - base[name][i] for i, q in ((0, 50), (1, 99))}
        figures |= {"direct_rps_16": rates["direct"], "rps_16": rates["gateway"]}
        figures |= {"doors_rps_16": rates["doors"], "peer_rps_16": rates["peer"]}
        return figures | {"gateway_rss_mb": resident_mb(gateway)}


def main() -> None:
    """Measure and print."""
    wrk = ensure_wrk()
    client = docker.from_env()
    try:
        figures = measure(client, wrk)
    finally:
        client.close()
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
