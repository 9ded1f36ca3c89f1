"""make: owns the starter: its data, its job in the trainer's container, its figures in the engine's, its files.

``make starter`` runs it. The adapter lands in starter/out/ with its sidecar, manifest and figures; dropped into
<home>/models/incoming it becomes a release beside the embedded model.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import docker  # noqa: E402 - after the places of what follows

from built import built  # noqa: E402 - as above
from dataset import held_out_prompts, training_rows, unseen_prompts  # noqa: E402 - as above
from embedded import embedded_model  # noqa: E402 - as above
from engine_alone import Model, open_engine  # noqa: E402 - as above
from measure import Count, measure  # noqa: E402 - as above

SEED: Final = 1
HELD_OUT_SEED: Final = 7
OUT: Final = HERE / "out"
_USER: Final = 10006  #: the trainer's


def main() -> int:
    """Make it and write its figures; the last line is one JSON object."""
    recipe = json.loads((HERE / "recipe.json").read_text())
    with tempfile.TemporaryDirectory(prefix="loopbox-starter-") as place:
        job = train(Path(place), recipe)
        result = json.loads((job / "result.json").read_text())
        if result["status"] != "done":
            sys.stderr.write(f"starter: {result['message']}\n")
            return 1
        figures = {**result["figures"], **score(job / "out", Path(place) / "engine", recipe)}
        shutil.rmtree(OUT, ignore_errors=True)
        shutil.copytree(job / "out", OUT)
    (OUT / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


def train(place: Path, recipe: Mapping[str, Any]) -> Path:
    """Run the job and return its folder. Any: JSON."""
    job, data = place / "job", place / "data"
    job.mkdir()
    data.mkdir()
    place.chmod(0o755)
    os.chown(job, _USER, _USER)
    rows = training_rows(recipe["rows"], SEED)
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = embedded_model()
    spec = {**recipe["spec"], "base": f"/models/{model.name}", "train": ["/data/train.jsonl"]}
    (job / "spec.json").write_text(json.dumps(spec))
    client = docker.from_env()
    try:
        container = client.containers.run(
            str(built().trainer),
            ["train"],
            detach=True,
            read_only=True,
            network_mode="none",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            tmpfs={"/tmp": "size=64m,nosuid,nodev"},  # noqa: S108 - inside the container
            labels={"loopbox.test": "starter"},
            volumes={
                str(job): {"bind": "/job", "mode": "rw"},
                str(data): {"bind": "/data", "mode": "ro"},
                str(model.parent): {"bind": "/models", "mode": "ro"},
            },
        )
        try:
            for line in container.logs(stream=True, follow=True):
                sys.stderr.write(line.decode(errors="replace"))
            container.wait()
        finally:
            container.remove(force=True)
    finally:
        client.close()
    return job


def score(out: Path, home: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the engine with the adapter as a release would serve it. Any: JSON."""
    told = tomllib.loads((out / "adapter.toml").read_text())
    settings = {"num_ctx": 2048, "num_thread": 1, "stop": told["stop"]}
    model = Model(embedded_model(), told["template"], out / "adapter.gguf", settings)
    with open_engine(home, model, timeout_s=600) as engine:
        held = measure(engine, held_out_prompts(recipe["held_out"], HELD_OUT_SEED))
        unseen = measure(engine, unseen_prompts(recipe["unseen"], HELD_OUT_SEED))
    return {**_told("", held), **_told("unseen_", unseen), "misses": held.misses + unseen.misses}


def _told(name: str, count: Count) -> dict[str, float]:
    return {
        f"{name}asked": count.asked,
        f"{name}exact": count.share(count.exact),
        f"{name}json_valid": count.share(count.valid),
    }


if __name__ == "__main__":
    sys.exit(main())
