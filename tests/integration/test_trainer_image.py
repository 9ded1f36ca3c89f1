"""The trainer's image under the restrictions that loopd gives it, on a tiny model: seconds, and no stand-ins.

The image is built on demand (6 GB): `loopctl images build --only trainer`. Without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import docker
import pytest
from docker.errors import ImageNotFound
from docker.models.containers import Container

from built import built
from engine_alone import Model, open_engine
from loopd.sidecar import Sidecar
from tiny_gguf import make_tiny_gguf

pytestmark = pytest.mark.docker
PARAMETERS: Final = {"type": "object", "properties": {"x": {"type": "string"}}}
TOOL: Final = {"name": "f", "description": "F.", "parameters": PARAMETERS}
ANSWER: Final = "the sky is blue"  #: in one line: the tiny model has no way to write an end of line
CHECK: Final = Path(__file__).with_name("check_packed_loss.py")


class Bench:
    """A job's folders, and containers on them."""

    def __init__(self, place: Path, client: docker.DockerClient) -> None:
        self.job, self.data, self.models = place / "job", place / "data", place / "models"
        for folder in (self.job, self.data, self.models):
            folder.mkdir()
        os.chown(self.job, 10006, 10006)
        self.client = client
        self.model = make_tiny_gguf(self.models / "tiny.gguf", merges=True)

    def rows(self, count: int) -> None:
        said: list[dict[str, Any]] = [  # Any: JSON
            {"role": "user", "content": "say"},
            {"role": "assistant", "content": ANSWER},
        ]
        rows = [{"messages": [{**said[0], "content": f"say {n}"}, said[1]], "tools": [TOOL]} for n in range(count)]
        (self.data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def spec(self, **more: Any) -> None:  # Any: JSON
        told = {
            "base": "/models/tiny.gguf",
            "train": ["/data/train.jsonl"],
            "lora": {"r": 16, "alpha": 16},
            "steps": {"tokens": 900, "batch": 1, "epochs": 6, "learning_rate": 0.02},
            "keeping": {"checkpoint_every": 4},
            "handover": {"adapter": True, "model": True},
            **more,
        }
        (self.job / "spec.json").write_text(json.dumps(told))

    def start(self, *command: str, **more: Any) -> Container:  # Any: the library's
        settings: dict[str, Any] = {
            "read_only": True,
            "network_mode": "none",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "mem_limit": "3g",
            "pids_limit": 256,
            "tmpfs": {"/tmp": "size=64m,nosuid,nodev"},
            "labels": {"loopbox.test": "trainer-image"},
            "volumes": {
                str(self.job): {"bind": "/job", "mode": "rw"},
                str(self.data): {"bind": "/data", "mode": "ro"},
                str(self.models): {"bind": "/models", "mode": "ro"},
            },
        }
        settings["volumes"] |= more.pop("volumes", {})
        container = self.client.containers.create(str(built().trainer), list(command), **settings, **more)
        container.start()
        return container

    def run(self, *command: str, **more: Any) -> tuple[int, str]:  # Any: the library's
        container = self.start(*command, **more)
        try:
            code = container.wait(timeout=240)["StatusCode"]
            return code, container.logs().decode()[-3000:]
        finally:
            container.remove(force=True)

    def result(self) -> Any:  # Any: JSON
        return json.loads((self.job / "result.json").read_text())

    def events(self, name: str) -> list[dict[str, Any]]:  # Any: JSON
        lines = (self.job / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    if os.geteuid() != 0:
        pytest.fail("a job's folder is given to the trainer's user here: run these tests as root")
    client = docker.from_env()
    try:
        client.images.get(built().trainer or "")
    except ImageNotFound:
        client.close()
        pytest.skip("the trainer's image is built on demand: `loopctl images build --only trainer`")
    yield Bench(tmp_path, client)
    client.close()


def test_a_killed_job_goes_on_to_the_same_end_and_hands_on_what_the_engine_serves(bench: Bench, tmp_path: Path) -> None:
    bench.rows(24)
    bench.spec()
    code, log = bench.run("train")
    assert code == 0, log
    whole = bench.result()
    assert whole["status"] == "done"
    steps = bench.events("step")
    assert steps[-1]["loss"] < steps[0]["loss"] / 2
    assert any((bench.job / "logs").iterdir())

    first, bench.job = bench.job, tmp_path / "again"
    bench.job.mkdir()
    os.chown(bench.job, 10006, 10006)
    bench.spec()
    container = bench.start("train")
    try:
        # The log is followed, since a container that dies before its checkpoint would be waited for in vain.
        for _ in container.logs(stream=True, follow=True):
            if (bench.job / "events.jsonl").exists() and len(bench.events("checkpoint")) >= 2:
                container.kill("SIGKILL")
                break
        container.wait(timeout=60)
    finally:
        container.remove(force=True)
    assert not (bench.job / "result.json").exists()
    assert not (bench.job / "out").exists()
    code, log = bench.run("train")
    assert code == 0, log
    assert any(event["phase"] == "resume" for event in bench.events("phase"))
    assert abs(bench.result()["figures"]["last_loss"] - whole["figures"]["last_loss"]) < 1e-3

    for name in ("adapter", "model"):
        told = Sidecar.model_validate(tomllib.loads((first / "out" / f"{name}.toml").read_text()))
        assert told.template is not None
        merged = name == "model"
        gguf, adapter = (first / "out/model.gguf", None) if merged else (bench.model, first / "out/adapter.gguf")
        served = Model(gguf, told.template, adapter, {"stop": list(told.stop or ())})
        with open_engine(tmp_path / name, served) as engine:
            offered = {"type": "function", "function": TOOL}
            answer = engine.chat(
                {
                    "messages": [{"role": "user", "content": "say 3"}],
                    "tools": [offered],
                    "options": {"temperature": 0, "num_predict": 120, "num_thread": 1},
                }
            )
        assert answer["message"]["content"] == ANSWER


def test_a_job_told_to_stop_keeps_a_checkpoint_and_hands_nothing_on(bench: Bench) -> None:
    bench.rows(24)
    bench.spec(steps={"tokens": 900, "most": 100_000}, keeping={"checkpoint_every": 90_000})
    container = bench.start("train")
    try:
        for _ in container.logs(stream=True, follow=True):
            if (bench.job / "events.jsonl").exists() and bench.events("step"):
                break
        container.stop(timeout=60)
        assert container.wait()["StatusCode"] == 0
    finally:
        container.remove(force=True)
    assert bench.result()["status"] == "cancelled"
    assert len(bench.events("checkpoint")) == 1
    assert not (bench.job / "out").exists()


@pytest.mark.parametrize(
    ("rows", "model", "code", "exit_code"),
    [(2, None, "data_too_small", 3), (24, b"GGUF but not really", "base_unfit", 3)],
)
def test_what_cannot_be_trained_says_why(
    bench: Bench, rows: int, model: bytes | None, code: str, exit_code: int
) -> None:
    bench.rows(rows)
    bench.spec()
    if model is not None:
        bench.model.write_bytes(model)
    found, log = bench.run("train")
    assert (found, bench.result()["code"]) == (exit_code, code), log
    assert not (bench.job / "out").exists()


def test_a_full_disk_is_told_and_nothing_is_handed_on(bench: Bench) -> None:
    bench.rows(24)
    bench.spec()
    small = bench.client.volumes.create(
        driver="local", driver_opts={"type": "tmpfs", "device": "tmpfs", "o": "size=256k,uid=10006"}
    )
    try:
        # Checkpoints go to a file system that holds none.
        volumes = {str(small.name): {"bind": "/job/checkpoints", "mode": "rw"}}
        code, log = bench.run("train", volumes=volumes)
    finally:
        small.remove(force=True)
    assert (code, bench.result()["code"]) == (4, "disk_full"), log
    assert not (bench.job / "out").exists()


def test_a_packed_conversation_has_the_loss_that_it_has_alone(bench: Bench) -> None:
    volumes = {str(CHECK): {"bind": "/check.py", "mode": "ro"}}
    container = bench.start("/check.py", entrypoint=["/opt/venv/bin/python"], volumes=volumes)
    try:
        assert container.wait(timeout=120)["StatusCode"] == 0, container.logs().decode()[-3000:]
        told = json.loads(container.logs(stderr=False).decode().splitlines()[-1])
    finally:
        container.remove(force=True)
    assert abs(told["packed"] - told["alone"]) < 1e-4
    assert max(told["gradient_difference"]) < 1e-4
