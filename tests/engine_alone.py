"""engine_alone: owns one engine container with a model of ours in it, for tests and figures that need only the engine.

The model is written as root and mounted read-only, with the restrictions that loopd gives an engine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import docker
import httpx
from docker.models.containers import Container

from built import built

ALIAS: Final = "agent"
STARTED_S: Final = 60.0
_MANIFEST: Final = Path("manifests", "registry.ollama.ai", "library", ALIAS, "latest")
_MEDIA: Final = "application/vnd.ollama.image."


@dataclass(frozen=True)
class Model:
    """What the engine serves."""

    gguf: Path
    template: str
    adapter: Path | None = None
    parameters: Mapping[str, object] | None = None


@dataclass(frozen=True)
class EngineAlone:
    """A running engine."""

    container: Container
    http: httpx.Client

    # Any: the engine's answers are JSON whose shape each caller knows.
    def chat(self, body: Mapping[str, Any]) -> Any:
        """Ask for a chat."""
        answer = self.http.post("/api/chat", json={"model": ALIAS, "stream": False, **body})
        if answer.status_code != 200:
            raise AssertionError(f"the engine answered {answer.status_code}: {answer.text[:500]}")
        return answer.json()

    def rendered(self, body: Mapping[str, Any]) -> str:
        """Return the text that the model would be given for a chat."""
        return str(self.chat({**body, "_debug_render_only": True})["_debug_info"]["rendered_template"])


def write_model(home: Path, model: Model) -> None:
    """Write the engine's model store."""
    blobs = home / "blobs"
    blobs.mkdir(parents=True)

    def file(kind: str, path: Path) -> dict[str, object]:
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        shutil.copyfile(path, blobs / f"sha256-{digest}")
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": path.stat().st_size}

    def text(kind: str, content: str) -> dict[str, object]:
        digest = hashlib.sha256(content.encode()).hexdigest()
        (blobs / f"sha256-{digest}").write_text(content)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content.encode())}

    layers = [file(f"{_MEDIA}model", model.gguf)]
    if model.adapter is not None:
        layers.append(file(f"{_MEDIA}adapter", model.adapter))
    layers += [
        text(f"{_MEDIA}template", model.template),
        text(f"{_MEDIA}params", json.dumps(dict(model.parameters or {}))),
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
        "config": text("application/vnd.docker.container.image.v1+json", json.dumps(settings)),
        "layers": layers,
    }
    (home / _MANIFEST).parent.mkdir(parents=True)
    (home / _MANIFEST).write_text(json.dumps(manifest))


@contextmanager
def open_engine(home: Path, model: Model, *, timeout_s: float = 120) -> Iterator[EngineAlone]:
    """Serve a model from a fresh directory; the container and its network are gone afterwards."""
    write_model(home, model)
    client = docker.from_env()
    network = client.networks.create(f"loopbox-test-{uuid4().hex[:12]}", driver="bridge", internal=True)
    container: Container | None = None
    try:
        container = client.containers.run(
            built().ollama,
            detach=True,
            init=True,
            read_only=True,
            tmpfs={"/tmp": "size=64m,nosuid,nodev,noexec"},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            pids_limit=256,
            mem_limit="2g",
            network=str(network.name),
            volumes={str(home): {"bind": "/models", "mode": "ro"}},
            labels={"loopbox.test": "engine-alone"},
        )
        container.reload()
        address = container.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"]
        with httpx.Client(base_url=f"http://{address}:11434", timeout=timeout_s, trust_env=False) as http:
            _await_answer(container, http)
            yield EngineAlone(container, http)
    finally:
        if container is not None:
            container.remove(force=True)
        network.remove()
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
