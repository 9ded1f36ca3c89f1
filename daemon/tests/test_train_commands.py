"""`loopctl train` and the control API's jobs, on a whole loopd with the engine in memory."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from run_loopctl import start

from loopd.config import Settings
from loopd.engine import InMemoryEngine
from loopd.registry import Registry
from loopd.state import open_database
from running_loopd import running, settings_at
from samples import make_release

BASE = make_release()


@dataclass
class Rig:
    settings: Settings
    engine: InMemoryEngine

    async def started(self, unit: str) -> None:
        """Wait until a job's container runs."""
        async with asyncio.timeout(10):
            while unit not in self.engine.instances:
                await asyncio.sleep(0.01)

    def work(self, job: str) -> Path:
        return self.settings.home / "training" / "jobs" / job / "work"


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    folder = Path(tempfile.mkdtemp(prefix="lb"))
    settings = settings_at(folder)
    for name in ("home", "run_dir", "control_port", "public_port"):
        monkeypatch.setenv(f"LOOPBOX_{name.upper()}", str(getattr(settings, name)))
    async with running(settings) as engine:
        async with open_database(settings.home / "state.db") as database:
            await Registry(database).add(BASE, source="test")
        yield Rig(settings, engine)
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Done:
    stdout: str


async def loopctl(*arguments: str, code: int = 0) -> Done:
    """Run the real program: loopd is in this process and logs to its streams."""
    process = await start(*arguments)
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode == code, (out.decode(), err.decode())
    return Done(out.decode())


def told(text: str) -> Any:  # Any: JSON
    return json.loads(text)


async def begun(rig: Rig, *arguments: str) -> str:
    job = str(
        told((await loopctl("train", "start", "mine", "rows.jsonl", "--base", "alpha", "--json", *arguments)).stdout)[
            "id"
        ]
    )
    await rig.started(f"trainer-{job.removeprefix('job-')}")
    return job


async def test_a_job_is_told_to_the_trainer_in_its_own_words(rig: Rig) -> None:
    job = await begun(rig, "--epochs", "2", "--rank", "8", "--evaluate", "held.jsonl")
    spec = told((rig.work(job).parent / "spec.json").read_text())
    assert (spec["base"], spec["train"], spec["evaluate"]) == (
        f"/models/{BASE.gguf_sha256}.gguf",
        ["/data/rows.jsonl"],
        ["/data/held.jsonl"],
    )
    assert (spec["lora"]["r"], spec["steps"]["epochs"], spec["handover"]) == (
        8,
        2.0,
        {"adapter": True, "model": False, "base": "alpha"},
    )
    listed = (await loopctl("train", "list")).stdout
    assert "running" in listed
    assert "local asked for it" in listed or "asked for it" in listed


async def test_a_job_is_watched_to_its_end_and_what_it_made_is_handed_on(rig: Rig) -> None:
    job = await begun(rig)
    work = rig.work(job)
    lines = [
        {"event": "phase", "phase": "train"},
        {"event": "step", "step": 1, "steps": 2, "loss": 2.5, "tokens_per_s": 300.0, "memory_bytes": 1 << 30},
        {"event": "step", "step": 2, "steps": 2, "loss": 1.25, "tokens_per_s": 310.0, "memory_bytes": 1 << 30},
    ]
    (work / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = (await loopctl("train", "show", job)).stdout
    assert "2 of 2 steps" in shown
    assert "loss 1.2500, 310 tokens/s" in shown
    watching = asyncio.create_task(loopctl("train", "watch", job))
    await asyncio.sleep(0)
    (work / "out").mkdir()
    (work / "out" / "adapter.gguf").write_bytes(b"GGUF")
    (work / "out" / "adapter.toml").write_text('base = "alpha"\n')
    (work / "result.json").write_text(json.dumps({"status": "done", "figures": {"loss": 1.25, "kinds": "F16 3"}}))
    rig.engine.die(f"trainer-{job.removeprefix('job-')}", exit_code=0)
    text = (await watching).stdout
    assert "step 1 of 2: loss 2.5000" in text
    assert "done: what it made is in the model directory" in text
    view = told((await loopctl("train", "show", job, "--json")).stdout)["job"]
    assert (view["status"], view["figures"]) == ("done", {"loss": 1.25, "kinds": "F16 3"})
    incoming, name = rig.settings.home / "models" / "incoming", f"mine-{job.removeprefix('job-')}"
    assert (incoming / f"{name}.gguf").read_bytes() == b"GGUF"
    assert (incoming / f"{name}.toml").is_file()


async def test_a_job_is_ended_and_goes_on(rig: Rig) -> None:
    job = await begun(rig)
    assert "is being ended" in (await loopctl("train", "cancel", job)).stdout
    assert "cancelled" in (await loopctl("train", "watch", job, code=1)).stdout
    await loopctl("train", "cancel", job, code=5)
    assert "is queued" in (await loopctl("train", "resume", job)).stdout
    await rig.started(f"trainer-{job.removeprefix('job-')}")


async def test_a_failure_says_what_and_why(rig: Rig) -> None:
    job = await begun(rig)
    words = {"status": "failed", "code": "too_few_rows", "message": "3 rows fit; 8 are needed."}
    (rig.work(job) / "result.json").write_text(json.dumps(words))
    rig.engine.die(f"trainer-{job.removeprefix('job-')}", exit_code=3)
    assert "failed: 3 rows fit; 8 are needed. [too_few_rows]" in (await loopctl("train", "watch", job, code=1)).stdout


async def test_a_data_set_is_made_of_files_that_were_added(rig: Rig, tmp_path: Path) -> None:
    assert "nothing yet" in (await loopctl("data", "list")).stdout
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    assert "rows.jsonl has" in (await loopctl("data", "add", str(tmp_path / "rows.jsonl"))).stdout
    await loopctl("data", "add", str(tmp_path / "rows.jsonl"), code=1)  # it is there
    asked = await loopctl("data", "curate", "mine", "rows.jsonl", "--synthetic", "100", "--seed", "7", "--json")
    job = str(told(asked.stdout)["id"])
    await rig.started(f"trainer-{job.removeprefix('job-')}")
    spec = told((rig.work(job).parent / "spec.json").read_text())
    assert [source["path"] for source in spec["sources"]] == ["rows.jsonl"]
    assert (spec["synthetic"], spec["seed"]) == ({"rows": 100, "held_out": 0}, 7)
    out = rig.work(job) / "out"
    out.mkdir()
    for name in ("train.jsonl", "manifest.json", "odd"):
        (out / name).write_text("{}\n")
    (rig.work(job) / "result.json").write_text(json.dumps({"status": "done", "figures": {"train": 1}}))
    rig.engine.die(f"trainer-{job.removeprefix('job-')}", exit_code=0)
    await loopctl("train", "watch", job)
    listed = told((await loopctl("data", "list", "--json")).stdout)["files"]
    assert [one["path"] for one in listed] == ["mine/manifest.json", "mine/train.jsonl", "rows.jsonl"]
    await loopctl("data", "curate", "mine", code=5)
    await loopctl("data", "curate", "mine", "../state.db", code=2)


async def test_what_cannot_be_is_refused(rig: Rig) -> None:
    refused = (
        (("start", "mine", "rows.jsonl"), 5),  # nothing serves
        (("start", "mine", "rows.jsonl", "--base", "nobody"), 4),
        (("start", "mi ne", "rows.jsonl"), 2),
        (("start", "mine", "../rows.jsonl"), 2),
        (("start", "mine", "rows.jsonl", "--rank", "0"), 2),
        (("show", "job-000000000000"), 4),
        (("show", "no job"), 2),
        (("resume", "job-000000000000"), 4),
    )
    await asyncio.gather(*(loopctl("train", *arguments, code=code) for arguments, code in refused))
    assert "no job yet" in (await loopctl("train", "list")).stdout
