"""export_job: owns handing on: a checkpoint as files that the appliance takes in, whole or not at all."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf

from loopbox_trainer.chat_format import STOP, TEMPLATE
from loopbox_trainer.checkpoints import FOLDER, newest
from loopbox_trainer.errors import TrainerError
from loopbox_trainer.events import EventLog, Result
from loopbox_trainer.export_adapter import write_adapter
from loopbox_trainer.export_model import write_model
from loopbox_trainer.files import digest_of, sync_folder, sync_tree, write_json
from loopbox_trainer.lora_weights import read_adapter
from loopbox_trainer.outcome import conclude
from loopbox_trainer.spec import TrainSpec, read_spec

OUT: Final = "out"
MANIFEST: Final = "manifest.json"
Figures = Mapping[str, float | int | str | bool | None]


@dataclass(frozen=True, slots=True)
class Handed:
    """What was handed on."""

    files: dict[str, str]
    figures: dict[str, float | int | str | bool | None]


def main(job: Path) -> int:
    """Hand on a job's newest whole checkpoint once more. Returns the exit code."""
    return conclude(job, lambda: _again(job))


def _again(job: Path) -> Result:
    from loopbox_trainer.train_job import inputs_of  # noqa: PLC0415 - it imports this module in turn

    spec = read_spec(job / "spec.json")
    inputs = inputs_of(spec)
    checkpoint = newest(job / FOLDER, inputs.fingerprint(spec))
    if checkpoint is None:
        raise TrainerError("no_checkpoint", "The job has no whole checkpoint, so there is nothing to hand on. Train.")
    EventLog(job).tell("phase", phase="export")
    handed = hand_over(job, spec, checkpoint, inputs.base, inputs.data, {})
    return Result(status="done", figures=handed.figures, files=handed.files)


def hand_over(  # noqa: PLR0913, PLR0917 - each is one thing that the manifest tells
    job: Path, spec: TrainSpec, checkpoint: Path, base_sha256: str, data: Sequence[str], figures: Figures
) -> Handed:
    """Write out/ anew. Raises TrainerError, OSError."""
    started = time.monotonic()
    part = job / f".{OUT}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    reader = gguf.GGUFReader(spec.base)
    adapter = read_adapter(checkpoint, reader)
    told: dict[str, float | int | str | bool | None] = {}
    lineage = {
        "base": f"sha256:{base_sha256}",
        "data": ", ".join(f"sha256:{one}" for one in data)[:512],
        "job": spec.name,
        "scores": {k: v for k, v in figures.items() if k in {"best_eval_loss", "last_loss"} and isinstance(v, float)},
    }
    if spec.handover.adapter:
        field = reader.get_field("general.architecture")
        write_adapter(part / "adapter.gguf", adapter, str(field.contents()) if field else "", spec.name)
        base = spec.handover.base or f"sha256:{base_sha256}"
        (part / "adapter.toml").write_text(sidecar(lineage, base=base), encoding="utf-8")
        told["adapter_bytes"] = (part / "adapter.gguf").stat().st_size
    if spec.handover.model:
        written = write_model(part / "model.gguf", reader, adapter, spec.handover.quantise, spec.name)
        (part / "model.toml").write_text(sidecar(lineage), encoding="utf-8")
        told |= {
            "model_bytes": (part / "model.gguf").stat().st_size,
            "model_kinds": ", ".join(f"{kind} {count}" for kind, count in sorted(written.kinds.items())),
            "model_fall_backs": written.fall_backs,
        }
    files = {path.name: digest_of(path) for path in sorted(part.iterdir())}
    told["export_seconds"] = round(time.monotonic() - started, 3)
    manifest = {
        "files": files,
        "base_sha256": base_sha256,
        "data_sha256": list(data),
        "checkpoint": checkpoint.name,
        "spec": spec.model_dump(mode="json"),
        "figures": {**figures, **told},
    }
    write_json(part / MANIFEST, manifest)
    files[MANIFEST] = digest_of(part / MANIFEST)
    sync_tree(part)
    shutil.rmtree(job / OUT, ignore_errors=True)
    part.replace(job / OUT)
    sync_folder(job)
    return Handed(files, told)


def sidecar(lineage: Mapping[str, object], *, base: str = "") -> str:
    """Return the TOML that stands beside a model file: how to serve it, and where it came from."""
    # A JSON string is a TOML string, too; DEL alone is not written the same way.
    lines = [f"base = {_text(base)}"] if base else []
    lines += [f"template = {_text(TEMPLATE)}", f"stop = [{', '.join(map(_text, STOP))}]", "", "[lineage]"]
    lines += [f"{key} = {_text(str(lineage[key]))}" for key in ("base", "data", "job")]
    scores = lineage.get("scores")
    if isinstance(scores, Mapping) and scores:
        lines += ["", "[lineage.scores]", *(f"{key} = {float(value)!r}" for key, value in scores.items())]
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
