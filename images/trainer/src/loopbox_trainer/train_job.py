"""train_job: owns the command ``train``: from a job's spec to what it hands on."""

from __future__ import annotations

import gc
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loopbox_trainer.checkpoints import FOLDER
from loopbox_trainer.errors import ExhaustedError, TrainerError, exhaustion
from loopbox_trainer.events import EventLog, Result
from loopbox_trainer.files import digest_of
from loopbox_trainer.outcome import conclude
from loopbox_trainer.spec import TrainSpec, read_spec

if TYPE_CHECKING:
    from loopbox_trainer.sft import Run, Trained

SPEC: Final = "spec.json"
_OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True, slots=True)
class Inputs:
    """The job's inputs, by their content."""

    base: str  #: SHA-256
    data: tuple[str, ...]

    def fingerprint(self, spec: TrainSpec) -> str:
        """Return what must be the same for a checkpoint to be gone on from."""
        told = spec.model_dump_json(exclude={"handover", "machine"})
        return hashlib.sha256("\n".join([told, self.base, *self.data]).encode()).hexdigest()


def main(job: Path) -> int:
    """Train and hand on. Returns the exit code."""
    return conclude(job, lambda: _work(job))


def _work(job: Path) -> Result:
    spec = read_spec(job / SPEC)
    log = EventLog(job)
    # Read by libraries when they are imported, which is why that happens below.
    os.environ.update(_OFFLINE | {"OMP_NUM_THREADS": str(spec.machine.threads), "TOKENIZERS_PARALLELISM": "false"})
    from loopbox_trainer import base_model, machine, sft  # noqa: PLC0415 - see above
    from loopbox_trainer.examples import read_examples  # noqa: PLC0415
    from loopbox_trainer.export_job import hand_over  # noqa: PLC0415
    from loopbox_trainer.packing import pack  # noqa: PLC0415

    machine.bound_threads(spec.machine.threads)
    machine.bound_memory(spec.machine.memory_bytes)
    log.tell("phase", phase="read")
    base = Path(spec.base)
    inputs = inputs_of(spec)
    tokenizer = base_model.open_tokenizer(base)
    limits = {"longest": spec.steps.tokens, "most": spec.most_rows}
    read = read_examples(map(Path, spec.train), tokenizer, **limits)
    held = read_examples(map(Path, spec.evaluate), tokenizer, **limits)
    for reason, rows in sorted((read.left_out + held.left_out).items()):
        log.tell("warning", warning="rows_left_out", reason=reason, rows=rows)
    if len(read.examples) < spec.least_rows:
        raise TrainerError(
            "data_too_small",
            f"{len(read.examples)} rows can be learnt from, fewer than {spec.least_rows}"
            f" ({sum(read.left_out.values())} were left out); nothing was trained. Add data.",
        )
    packs = pack(read.examples, longest=spec.steps.tokens, seed=spec.steps.seed)
    evaluate = pack(held.examples, longest=spec.steps.tokens, seed=spec.steps.seed)
    (job / FOLDER).mkdir(exist_ok=True)
    run = sft.Run(
        job=job,
        spec=spec,
        numbers=base_model.choose_numbers(spec.machine, base_model.count_weights(base)),
        train=packs,
        evaluate=evaluate,
        fingerprint=inputs.fingerprint(spec),
        batch=min(spec.steps.batch, len(packs)),
        accumulation=spec.steps.accumulation,
        gradient_checkpointing=spec.machine.gradient_checkpointing,
    )
    log.tell("phase", phase="train", rows=len(read.examples), sequences=len(packs), nf4=run.numbers.nf4)
    trained = _train(run, log, base)
    figures = {
        "rows": len(read.examples),
        "rows_left_out": sum(read.left_out.values()),
        "sequences": len(packs),
        "nf4": run.numbers.nf4,
        "dtype": str(run.numbers.dtype).removeprefix("torch."),
        "device": run.numbers.device,
        **trained.figures,
    }
    if trained.cancelled:
        return Result(
            status="cancelled",
            code="cancelled",
            message="Stopped as asked, with a checkpoint; nothing was handed on. Resume it, or let it be.",
            figures=figures,
        )
    if trained.checkpoint is None:
        raise TrainerError("no_step_made", "Not one step was made, so there is nothing to hand on. Add data or steps.")
    log.tell("phase", phase="export")
    handed = hand_over(job, spec, trained.checkpoint, inputs.base, inputs.data, figures)
    return Result(status="done", figures=figures | handed.figures, files=handed.files)


def inputs_of(spec: TrainSpec) -> Inputs:
    """Return the digests of what a job is made from. Raises TrainerError "input_missing"."""
    try:
        return Inputs(digest_of(Path(spec.base)), tuple(digest_of(Path(one)) for one in (*spec.train, *spec.evaluate)))
    except OSError as error:
        raise TrainerError(
            "input_missing", f"{error.filename} cannot be read: {error.strerror}. Nothing was trained."
        ) from error


def _train(run: Run, log: EventLog, base: Path) -> Trained:
    """Train; once more with less at a time when memory runs out. Raises ExhaustedError."""
    from loopbox_trainer import base_model, sft  # noqa: PLC0415 - see _work

    for attempt in (run, _smaller(run)):
        try:
            return sft.train(attempt, base_model.open_model(base, run.numbers), log)
        except Exception as error:
            known = exhaustion(error)
            if known is None or known.code != "out_of_memory" or attempt is not run:
                raise
            log.tell("warning", warning="out_of_memory", reason="once more with less at a time")
        gc.collect()
    raise ExhaustedError("out_of_memory", "unreachable")


def _smaller(run: Run) -> Run:
    """Return the same mathematics in less memory."""
    if run.batch > 1:
        return replace(run, batch=(run.batch + 1) // 2, accumulation=run.accumulation * 2)
    return replace(run, gradient_checkpointing=True)
