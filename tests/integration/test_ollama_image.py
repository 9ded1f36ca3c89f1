"""The engine's image with the embedded model, under exactly the restrictions that it serves with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import docker
import httpx
import pytest
from docker.models.containers import Container
from docker.models.networks import Network

import embedded
from built import built

pytestmark = pytest.mark.docker
IMAGE: Final = built().ollama
ENGINE_UID: Final = 10001
STARTED_S: Final = 30.0
#: The engine's own place for a model whose name has no host in it. A directory's name: nothing is fetched.
MANIFEST: Final = Path("manifests", "registry.ollama.ai", "library", "agent", "latest")
MEDIA: Final = "application/vnd.ollama.image."
CHATML: Final = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
)
PARAMETERS: Final[dict[str, object]] = {"num_thread": 1, "num_ctx": 2048, "stop": ["<|im_start|>", "<|im_end|>"]}
GREEDY: Final[dict[str, object]] = {"temperature": 0, "seed": 1}
#: Figures, for who asks: `pytest --log-cli-level=INFO`.
LOG: Final = logging.getLogger("loopbox.figures")


@dataclass(frozen=True)
class Engine:
    """A running engine and its own client."""

    container: Container
    http: httpx.Client

    # Any: the engine's answers are JSON whose shape each test asserts.
    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def generate(self, prompt: str, **more: object) -> Any:  # Any: as above
        return self.post("/api/generate", {"model": "agent", "prompt": prompt, "stream": False, **more})


@dataclass(frozen=True)
class Store:
    """Weights as loopd keeps them: one file, hard-linked into each release's blob store."""

    weights: Path
    digest: str

    def link(self, home: Path) -> Path:
        """Make a release's empty model directory with the weights in it."""
        blobs = home / "blobs"
        blobs.mkdir(parents=True)
        for directory in (home, blobs):
            os.chown(directory, ENGINE_UID, ENGINE_UID)
        blob = blobs / f"sha256-{self.digest}"
        blob.hardlink_to(self.weights)
        return blob

    def own(self, uid: int) -> None:
        os.chown(self.weights, uid, uid)

    def facts(self) -> tuple[int, int, int, int]:
        """Return what tells whether the file was replaced, written or touched."""
        told = self.weights.stat()
        return (told.st_ino, told.st_size, told.st_mtime_ns, told.st_mode)


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The embedded model's GGUF."""
    return embedded.embedded_model()


@pytest.fixture
def store(embedded_model: Path, tmp_path: Path) -> Store:
    """A store of its own for each test, root's and read-only."""
    if os.geteuid() != 0:
        pytest.fail("files are given to the engine's user here: run these tests as root")
    weights = Path(shutil.copy(embedded_model, tmp_path / "store.gguf"))
    weights.chmod(0o444)
    with weights.open("rb") as file:
        return Store(weights, hashlib.file_digest(file, "sha256").hexdigest())


def seal(store: Store, home: Path, parameters: dict[str, object]) -> None:
    """Write a whole model as root: what /api/create would write, without the engine."""
    blobs = store.link(home).parent

    def layer(kind: str, content: str) -> dict[str, object]:
        digest = hashlib.sha256(content.encode()).hexdigest()
        (blobs / f"sha256-{digest}").write_text(content)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content.encode())}

    layers = [
        {"mediaType": f"{MEDIA}model", "digest": f"sha256:{store.digest}", "size": store.weights.stat().st_size},
        layer(f"{MEDIA}template", CHATML),
        layer(f"{MEDIA}params", json.dumps(parameters)),
    ]
    settings = {
        "model_format": "gguf",
        "model_family": "llama",
        "model_families": ["llama"],
        "rootfs": {"type": "layers", "diff_ids": [part["digest"] for part in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": layer("application/vnd.docker.container.image.v1+json", json.dumps(settings)),
        "layers": layers,
    }
    (home / MANIFEST).parent.mkdir(parents=True)
    (home / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A bridge that leads nowhere."""
    client = docker.from_env()
    try:
        client.images.get(IMAGE)
    except docker.errors.ImageNotFound:
        pytest.fail(f"image {IMAGE} is missing: run `make images`")
    made = client.networks.create(f"loopbox-test-{uuid4().hex[:12]}", driver="bridge", internal=True)
    try:
        yield made
    finally:
        made.remove()
        client.close()


@contextlib.contextmanager
def open_engine(network: Network, home: Path, *, mode: str) -> Iterator[Engine]:
    """Run one engine on a model directory, with the restrictions that loopd gives it."""
    client = docker.from_env()
    container = client.containers.run(
        IMAGE,
        detach=True,
        init=True,
        read_only=True,
        tmpfs={"/tmp": "size=64m,nosuid,nodev,noexec"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        pids_limit=256,
        mem_limit="1g",
        network=str(network.name),
        volumes={str(home): {"bind": "/models", "mode": mode}},
        labels={"loopbox.test": "ollama-image"},
    )
    try:
        container.reload()
        address = container.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"]
        with httpx.Client(base_url=f"http://{address}:11434", timeout=60, trust_env=False) as http:
            _await_answer(container, http)
            yield Engine(container, http)
    finally:
        container.remove(force=True)
        client.close()


def _await_answer(container: Container, http: httpx.Client) -> None:
    deadline = time.monotonic() + STARTED_S
    while time.monotonic() < deadline:
        try:
            http.get("/api/version", timeout=1).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.02)  # a port that does not answer yet gives nothing to wait on
        else:
            return
    raise AssertionError(f"the engine did not answer in {STARTED_S} s: {container.logs().decode()[-2000:]}")


def test_a_release_that_the_engine_cannot_write_answers(store: Store, network: Network, tmp_path: Path) -> None:
    """Guards serving from weights that no engine, even a broken-into one, can change: all root's, mounted read-only."""
    seal(store, tmp_path / "models", PARAMETERS)
    before = store.facts()
    with open_engine(network, tmp_path / "models", mode="ro") as engine:
        first = engine.generate("Hello", options={**GREEDY, "num_predict": 1})
        assert (first["done"], first["eval_count"]) == (True, 1)
        LOG.info("load_ms %.0f", first["load_duration"] / 1e6)
        schema = {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
            "required": ["city", "sure"],
        }
        bound = engine.generate("Name a city.", format=schema, options={**GREEDY, "num_predict": 96})
        answer = json.loads(bound["response"])
        assert set(answer) == {"city", "sure"}
        assert isinstance(answer["sure"], bool)
        told = engine.post("/api/show", {"model": "agent"})
        assert told["template"] == CHATML
        assert told["capabilities"] == ["completion"]
        (loaded,) = engine.http.get("/api/ps").json()["models"]
        assert loaded["context_length"] == PARAMETERS["num_ctx"]
    assert store.facts() == before


def test_no_request_changes_a_release_that_the_engine_cannot_write(
    store: Store, network: Network, tmp_path: Path
) -> None:
    """Guards against a client beyond the gateway's rules that deletes, remakes or fills up a release."""
    home = tmp_path / "models"
    seal(store, home, PARAMETERS)
    files = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    remake = {"model": "agent", "from": "agent", "system": "Lie.", "stream": False}
    with open_engine(network, home, mode="ro") as engine:
        asked = [
            engine.http.post("/api/create", json=remake),
            engine.http.post("/api/copy", json={"source": "agent", "destination": "other"}),
            engine.http.request("DELETE", "/api/delete", json={"model": "agent"}),
            engine.http.post(f"/api/blobs/sha256:{hashlib.sha256(b'x').hexdigest()}", content=b"x"),
        ]
        assert [answer.status_code for answer in asked] == [500] * len(asked)
        assert all("read-only" in answer.text for answer in asked)
        assert engine.generate("Hello", options={"num_predict": 1})["done"]
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == files


def test_create_makes_no_second_copy_of_the_engines_own_weights(store: Store, network: Network, tmp_path: Path) -> None:
    """Guards the disk: a model made by the API shares the store's bytes. The weights have to be the engine's own."""
    home = tmp_path / "models"
    blob = store.link(home)
    store.own(ENGINE_UID)
    inode = store.weights.stat().st_ino
    body = {
        "model": "agent",
        "files": {"m.gguf": f"sha256:{store.digest}"},
        "template": CHATML,
        "parameters": PARAMETERS,
        "stream": False,
    }
    with open_engine(network, home, mode="rw") as engine:
        asked_at = time.monotonic()
        assert engine.post("/api/create", body) == {"status": "success"}
        LOG.info("create_ms %.1f", (time.monotonic() - asked_at) * 1e3)
        assert engine.generate("Hello", options={"num_predict": 1})["done"]
    assert blob.stat().st_ino == store.weights.stat().st_ino == inode
    assert sum(path.stat().st_size for path in home.rglob("*") if path.is_file() and path != blob) < 16 << 10
    with store.weights.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == store.digest


def test_create_fails_on_weights_that_are_not_the_engines_own(store: Store, network: Network, tmp_path: Path) -> None:
    """Guards the way releases are made: creating sets the file's times, which only its owner may do."""
    home = tmp_path / "models"
    store.link(home)
    before = store.facts()
    body = {"model": "agent", "files": {"m.gguf": f"sha256:{store.digest}"}, "stream": False}
    with open_engine(network, home, mode="rw") as engine:
        answer = engine.http.post("/api/create", json=body)
        assert answer.status_code == 500
        assert "operation not permitted" in answer.text
    assert store.facts() == before


def test_an_engine_keeps_to_the_threads_it_was_given(store: Store, network: Network, tmp_path: Path) -> None:
    """Guards the champion's cores: one thread must burn one core, whatever the machine has."""
    seal(store, tmp_path / "models", PARAMETERS)
    with open_engine(network, tmp_path / "models", mode="ro") as engine:
        engine.generate("Hello", options={"num_predict": 1})
        burnt, asked_at = _cpu_ns(engine), time.monotonic_ns()
        one = engine.generate("Tell a long story.", options={**GREEDY, "num_predict": 96})
        cores = (_cpu_ns(engine) - burnt) / (time.monotonic_ns() - asked_at)
        assert one["eval_count"] > 32
        LOG.info("cores_of_one_thread %.2f", cores)
        LOG.info("rss_mb %d", _memory_bytes(engine) >> 20)
        assert cores < 1.3
        # On a busy machine two threads burn no more than one; the engine's own word is true on any.
        assert set(re.findall(rb"NumThreads:(\d+)", engine.container.logs())) == {b"1"}
        two = engine.generate("Tell a long story.", options={**GREEDY, "num_predict": 96, "num_thread": 2})
        for threads, told in ((1, one), (2, two)):
            LOG.info("tokens_per_s with %d threads: %.1f", threads, told["eval_count"] / told["eval_duration"] * 1e9)


def _cpu_ns(engine: Engine) -> int:
    """Return the processor time that the container has used, in nanoseconds."""
    # Any: the API's JSON. One shot, for the engine would otherwise wait seconds for a second sample.
    told: Any = engine.container.stats(stream=False, one_shot=True)
    used: int = told["cpu_stats"]["cpu_usage"]["total_usage"]
    return used


def _memory_bytes(engine: Engine) -> int:
    """Return the resident bytes of all processes of the container."""
    rows = engine.container.top(ps_args="-o pid,rss")["Processes"]
    return sum(int(row[1]) for row in rows) << 10


def test_a_stop_ends_the_engine_at_once_and_cleanly(store: Store, network: Network, tmp_path: Path) -> None:
    """Guards the order of retiring: a stop cuts the answer in flight, so draining comes first; and it is no crash."""
    seal(store, tmp_path / "models", PARAMETERS)
    body = {"model": "agent", "prompt": "Tell a long story.", "options": {**GREEDY, "num_predict": 2000}}
    lines: list[str] = []
    with open_engine(network, tmp_path / "models", mode="ro") as engine:
        with (
            contextlib.suppress(httpx.RemoteProtocolError),
            engine.http.stream("POST", "/api/generate", json=body) as answer,
        ):
            for line in answer.iter_lines():
                if not lines:
                    engine.container.kill("SIGTERM")
                lines.append(line)
        assert engine.container.wait(timeout=10)["StatusCode"] == 0
    assert lines
    assert not json.loads(lines[-1])["done"]


def test_the_image_holds_nothing_that_it_does_not_need(store: Store, network: Network, tmp_path: Path) -> None:
    """Guards against a build machine's certificates, root, setuid programs and missing licence texts in the image."""
    seal(store, tmp_path / "models", PARAMETERS)
    with open_engine(network, tmp_path / "models", mode="ro") as engine:

        def run(command: str) -> tuple[int | None, bytes]:
            code, output = engine.container.exec_run(["sh", "-c", command])
            assert isinstance(output, bytes)
            return code, output

        image = engine.container.image
        assert image is not None
        settings = image.attrs["Config"]
        assert settings["User"] == f"{ENGINE_UID}:{ENGINE_UID}"
        assert run(" ".join(settings["Healthcheck"]["Test"][1:]))[0] == 0
        assert run("find / -xdev -type f -perm /6000 2>/dev/null")[1] == b""
        assert run("find /etc/ssl /build /root/.cache -type f 2>/dev/null")[1] == b""
        assert b"MIT License" in run("cat /usr/share/licences/github.com/ollama/ollama@*/LICENSE")[1]
