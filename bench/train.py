"""train: how fast our training job is, beside a bare trl script on the same rows with the same adapter.

``python bench/train.py``; its last line is one JSON object. Needs the trainer's image. Both run in it, one after the
other, on one thread, without checkpoints between; loading the model is in neither. ``overhead`` compares processor
time, which other work on the host sways less than time: below 0, ours is the cheaper one. ``exact`` and ``json_valid``
are those of the starter (``make starter`` measures them in the engine). Sizes: ROWS (default 60).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "starter")]

import docker  # noqa: E402 - after the places of what follows

from built import built  # noqa: E402 - as above
from dataset import training_rows  # noqa: E402 - as above
from embedded import embedded_model  # noqa: E402 - as above

ROWS = int(os.environ.get("ROWS", "60"))
USER = 10006  # the trainer's
STEPS = {"tokens": 1536, "learning_rate": 0.002}


def run(place: Path, command: list[str], entrypoint: list[str] | None = None) -> str:
    """Run a command in the trainer's image and return what it wrote."""
    client = docker.from_env()
    try:
        container = client.containers.create(
            str(built().trainer),
            command,
            entrypoint=entrypoint,
            read_only=True,
            network_mode="none",
            tmpfs={"/tmp": "size=256m"},  # noqa: S108 - inside the container
            environment={"OMP_NUM_THREADS": "1"},
            labels={"loopbox.test": "bench-train"},
            volumes={
                str(place / "job"): {"bind": "/job", "mode": "rw"},
                str(place / "data"): {"bind": "/data", "mode": "ro"},
                str(embedded_model().parent): {"bind": "/models", "mode": "ro"},
                str(HERE / "bare_trl.py"): {"bind": "/bare_trl.py", "mode": "ro"},
            },
        )
        try:
            container.start()
            code = container.wait()["StatusCode"]
            told = container.logs(stderr=False).decode()
            if code:
                raise RuntimeError(container.logs().decode()[-3000:])
            return told
        finally:
            container.remove(force=True)
    finally:
        client.close()


def main() -> None:
    """Measure both."""
    with tempfile.TemporaryDirectory(prefix="loopbox-bench-") as name:
        place = Path(name)
        place.chmod(0o755)
        for folder in ("job", "data"):
            (place / folder).mkdir()
        os.chown(place / "job", USER, USER)
        (place / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in training_rows(ROWS, 3)))
        spec = {
            "name": "bench",
            "base": f"/models/{embedded_model().name}",
            "train": ["/data/rows.jsonl"],
            "lora": {"r": 8, "alpha": 16},
            "steps": STEPS,
        }
        (place / "job" / "spec.json").write_text(json.dumps(spec))
        bare = json.loads(run(place, ["/bare_trl.py", "/job/spec.json"], ["/opt/venv/bin/python"]).splitlines()[-1])
        run(place, ["train"])
        ours: dict[str, Any] = json.loads((place / "job" / "result.json").read_text())["figures"]
    starter = HERE.parent / "starter" / "out" / "figures.json"
    kept: dict[str, Any] = json.loads(starter.read_text()) if starter.exists() else {}
    figures = {
        "rows": ROWS,
        "s_per_step": round(ours["train_seconds"] / ours["steps"], 3),
        "tokens_per_s": ours["tokens_per_s"],
        "train_rows_per_s": round(ours["rows"] / ours["train_seconds"], 3),
        "train_minutes": ours["train_minutes"],
        "memory_bytes": ours["memory_bytes"],
        "cpu_s_per_row": round(ours["train_cpu_seconds"] / ours["rows"], 3),
        "bare_cpu_s_per_row": round(bare["cpu_seconds"] / bare["rows"], 3),
        "bare_rows_per_s": round(bare["rows"] / bare["seconds"], 3),
        "bare_tokens_per_s": round(bare["tokens"] / bare["seconds"], 1),
        "bare_memory_bytes": bare["memory_bytes"],
        "overhead": round(ours["train_cpu_seconds"] / ours["rows"] / (bare["cpu_seconds"] / bare["rows"]) - 1, 3),
        "exact": kept.get("exact"),
        "json_valid": kept.get("json_valid"),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
