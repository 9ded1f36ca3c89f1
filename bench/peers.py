"""peers: the same swaps under the same load on what one would use instead, one after the other in one run.

``make bench BENCH=peers``; the last line is one JSON object, a peer's figures by its name; a peer that could not be had
is "not built: why". All are asked in the dialect that they share, /v1/chat/completions. SWAPS=5 each, STREAMS=32,
RATE=50, GAP_S=3, STREAM_TOKENS=64, WHOLE_TOKENS=8, PAUSE_S=2, PEERS=loopbox,ollama_create,litellm,llama_swap,
llama_router. LITELLM_VENV: an environment that has it already; else one is made and thrown away.

loopbox: a file is dropped, policy instant. ollama_create: one engine, ``create`` over the tag that serves. litellm: two
engines; the idle one is given the model and asked once, the configuration file then names it and the proxy is started
anew, as its documentation says for changes of that file without a database.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))
import docker
import requests
from bench.figures import Window, count, faults, latencies, quantile, within
from bench.ledger import wait_entry
from bench.traffic import Plan, ask_once, running
from docker.models.networks import Network

from appliance import free_ports
from built import built
from faults.rig import open_rig
from loopd.units import ENGINE_PORT
from tiny_gguf import make_tiny_gguf

SWAPS = int(os.environ.get("SWAPS", "5"))
GAP_S = float(os.environ.get("GAP_S", "3"))
PEERS = os.environ.get("PEERS", "loopbox,ollama_create,litellm,llama_swap,llama_router").split(",")
LITELLM = "litellm[proxy]==1.106.2"
LLAMA_SWAP = "github.com/mostlygeek/llama-swap@latest"
MODEL = "agent"
READY_S = 120.0
KEY = f"sk-{secrets.token_hex(16)}"  # LiteLLM does not start without one
INSTALL_S = 900.0
PARAMETERS = {"num_ctx": 2048, "num_thread": 1}


class NotBuiltError(Exception):
    """A peer cannot be had here; the text says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One that serves."""

    host: str
    port: int
    swap: Callable[[Path], None]  #: replaces the model; returns once the new one serves
    made_of: str


@dataclass(frozen=True, slots=True)
class Engine:
    """A plain Ollama container."""

    host: str

    @property
    def url(self) -> str:
        """Return where it listens."""
        return f"http://{self.host}:{ENGINE_PORT}"

    def create(self, model: Path) -> None:
        """Make the tag of these weights, over whatever it was, and have one token of it."""
        weights = model.read_bytes()
        digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
        require(requests.post(f"{self.url}/api/blobs/{digest}", data=weights, timeout=60), 201, 200)
        body = {
            "model": MODEL,
            "files": {"model.gguf": digest},
            "template": "{{ .Prompt }}",
            "parameters": PARAMETERS,
            "stream": False,
        }
        require(requests.post(f"{self.url}/api/create", json=body, timeout=60), 200)
        asked = {"model": MODEL, "prompt": "Hi", "stream": False, "options": {"num_predict": 1}}
        require(requests.post(f"{self.url}/api/generate", json=asked, timeout=60), 200)


def require(answer: requests.Response, *statuses: int) -> None:
    """End the bench when an engine does not do what it is told."""
    if answer.status_code not in statuses:
        raise SystemExit(f"{answer.url} answered {answer.status_code}: {answer.text[:500]}")


@contextlib.contextmanager
def network(client: docker.DockerClient) -> Iterator[Network]:
    """Make a network, since not every host has Docker's default one."""
    made = client.networks.create(f"lbb{secrets.token_hex(3)}", driver="bridge", internal=True)
    try:
        yield made
    finally:
        made.remove()


@contextlib.contextmanager
def engine(client: docker.DockerClient, net: Network) -> Iterator[Engine]:
    """Run a plain Ollama container, as it is without loopd."""
    container = client.containers.run(
        built().ollama,
        detach=True,
        environment={"OLLAMA_NUM_PARALLEL": "2", "OLLAMA_NOPRUNE": "0"},
        network=net.name,
        tmpfs={"/models": "size=512m,mode=1777"},
    )
    try:
        container.reload()
        running_at = Engine(container.attrs["NetworkSettings"]["Networks"][net.name]["IPAddress"])
        wait_up(f"{running_at.url}/api/version")
        yield running_at
    finally:
        container.remove(force=True, v=True)


def wait_up(url: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Return once it answers 200."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise SystemExit(f"what should answer {url} ended with {process.returncode}")
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=2).status_code == requests.codes.ok:
                return
        time.sleep(0.05)
    raise SystemExit(f"{url} does not answer after {READY_S:g} s")


@contextlib.contextmanager
def loopbox(folder: Path) -> Iterator[Peer]:
    """Run ours."""
    del folder
    settings = {"LOOPBOX_ENGINE_THREADS": "1", "LOOPBOX_ROLLOUT__POLICY": "instant"}
    with open_rig(settings) as rig:
        rig.start()
        rig.ensure_model("first", seed=1)

        def swap(model: Path) -> None:
            before = rig.newest_event()
            rig.drop(model)
            ended = wait_entry(rig, before, "rollout.promoted", "rollout.rolled_back", seconds=READY_S)
            if ended is None:
                raise SystemExit(f"no swap within {READY_S:g} s: {rig.log[-2000:]}")
            if ended.event == "rollout.rolled_back":  # refused, as a random model may be: another one
                swap(make_tiny_gguf(model.with_name(f"x{model.name}"), seed=int(time.time())))

        yield Peer("127.0.0.1", rig.public_port, swap, "this checkout")


@contextlib.contextmanager
def ollama_create(folder: Path) -> Iterator[Peer]:
    """Run one engine, whose tag is made anew."""
    with contextlib.closing(docker.from_env()) as client, network(client) as net, engine(client, net) as only:
        only.create(make_tiny_gguf(folder / "first.gguf", seed=1))
        yield Peer(only.host, ENGINE_PORT, only.create, f"Ollama of the image {built().ollama}")


@dataclass(slots=True)
class Proxy:
    """A LiteLLM proxy before one engine."""

    program: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self, engine_url: str) -> None:
        """Write its configuration and start it, after ending the one that runs."""
        self.stop()
        entry = {"model": f"ollama_chat/{MODEL}", "api_base": engine_url}
        config = {"model_list": [{"model_name": MODEL, "litellm_params": entry}]}
        (self.folder / "litellm.yaml").write_text(json.dumps(config))  # JSON is YAML
        command = [str(self.program), "--config", str(self.folder / "litellm.yaml"), "--port", str(self.port)]
        environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY}
        with (self.folder / "litellm.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1"], env=environment, stdout=log, stderr=log, cwd=self.folder
            )
        wait_up(f"http://127.0.0.1:{self.port}/health/readiness", self.process)

    def stop(self) -> None:
        """End it as its user would, and wait for what is in flight."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


@contextlib.contextmanager
def litellm(folder: Path) -> Iterator[Peer]:
    """Run two engines and the proxy before one of them."""
    program = install_litellm(folder)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(docker.from_env()))
        net = stack.enter_context(network(client))
        engines = [stack.enter_context(engine(client, net)) for _ in range(2)]
        engines[0].create(make_tiny_gguf(folder / "first.gguf", seed=1))
        proxy = Proxy(program, folder, free_ports(1)[0])
        stack.callback(proxy.stop)
        proxy.start(engines[0].url)

        def swap(model: Path) -> None:
            engines.reverse()
            engines[0].create(model)
            proxy.start(engines[0].url)

        yield Peer("127.0.0.1", proxy.port, swap, LITELLM)


def install_litellm(folder: Path) -> Path:
    """Return the proxy's program, installed into a throw-away environment. Raises NotBuiltError."""
    if found := os.environ.get("LITELLM_VENV"):
        return Path(found) / "bin" / "litellm"
    venv = folder / "venv"
    attempt([sys.executable, "-m", "venv", str(venv)])
    attempt([str(venv / "bin" / "pip"), "install", "--quiet", LITELLM])
    return venv / "bin" / "litellm"


def attempt(command: list[str], **environment: str) -> None:
    """Run one command of an install. Raises NotBuiltError with its last words."""
    try:
        done = subprocess.run(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotBuiltError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise NotBuiltError(f"`{' '.join(command)}` exited {done.returncode}: {done.stderr.strip()[-400:]}")


def llama_swap(folder: Path) -> NoReturn:
    """Build llama-swap, which is a Go module. Raises NotBuiltError."""
    if not shutil.which("go"):
        raise NotBuiltError("no Go toolchain is on this host")
    attempt(["go", "install", LLAMA_SWAP], GOBIN=str(folder))
    raise NotBuiltError("it was built, but this bench has no llama-server for it to start")


def llama_router(folder: Path) -> NoReturn:
    """Look for llama.cpp's own server, whose router mode swaps models. Raises NotBuiltError."""
    del folder
    if found := shutil.which("llama-server"):
        raise NotBuiltError(f"{found} is there, but this bench was never run with one")
    raise NotBuiltError(
        "no llama-server is on this host; Debian 12 does not ship that program, and the build of it on PyPI "
        "(xllamacpp 2026.10.11549) answers: xllamacpp disabled the router server feature"
    )


KNOWN: dict[str, Callable[[Path], contextlib.AbstractContextManager[Peer]]] = {
    "loopbox": loopbox,
    "ollama_create": ollama_create,
    "litellm": litellm,
    "llama_swap": llama_swap,
    "llama_router": llama_router,
}


def measure(peer: Peer, folder: Path) -> dict[str, object]:
    """Swap again and again under load; return the figures."""
    plan = Plan(
        host=peer.host,
        port=peer.port,
        streams=int(os.environ.get("STREAMS", "32")),
        rate=float(os.environ.get("RATE", "50")),
        stream_tokens=int(os.environ.get("STREAM_TOKENS", "64")),
        whole_tokens=int(os.environ.get("WHOLE_TOKENS", "8")),
        pause_s=float(os.environ.get("PAUSE_S", "2")),
        dialect="openai",
        key=KEY,
    )
    if fault := ask_once(plan, tokens=4, timeout_s=30)[1]:
        raise SystemExit(f"it does not answer before the load: {fault}")
    windows: list[Window] = []
    with running(plan, folder / "load.jsonl") as traffic:
        time.sleep(2 * GAP_S)
        for number in range(SWAPS):
            model = make_tiny_gguf(folder / f"swap{number}.gguf", seed=2000 + number, name=f"swap{number}")
            begun = time.time()
            peer.swap(model)
            windows.append((begun, time.time()))
            time.sleep(GAP_S)
        records = traffic.stop()
    during, steady = within(records, windows)
    return {
        "swaps": len(windows),
        **count(records),
        **latencies(steady, "steady"),
        **latencies(during, "during"),
        "swap_ms_p50": quantile([(end - start) * 1e3 for start, end in windows], 0.5),
        "generator_cpu_share": traffic.own["cpu_share"],
        "made_of": peer.made_of,
        "loadavg": [round(value, 1) for value in os.getloadavg()],
        "faults": faults(records, 3),
    }


def main() -> None:
    """Measure each and print."""
    result: dict[str, object] = {}
    for name in PEERS:
        with tempfile.TemporaryDirectory(prefix="lbb") as temporary:
            folder = Path(temporary)
            try:
                with KNOWN[name](folder) as peer:
                    result[name] = measure(peer, folder)
            except (NotBuiltError, SystemExit) as error:
                result[name] = f"not {'built' if isinstance(error, NotBuiltError) else 'measured'}: {error}"
            print(f"{name}: {result[name]}", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
