# ruff: noqa: ARG002 - callbacks have the library's own signatures
"""sft: owns supervised training of an adapter: one run from its packs to its best checkpoint, from where it stopped.

The library's trainer does the steps, checkpoints and resuming. Ours is what it computes: the loss of the learnt tokens
of packed conversations, with the vocabulary's scores made for those places alone.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from loopbox_trainer import checkpoints
from loopbox_trainer.base_model import Numbers
from loopbox_trainer.chat_format import IGNORED
from loopbox_trainer.events import EventLog
from loopbox_trainer.machine import peak_memory, temperature
from loopbox_trainer.packing import Pack
from loopbox_trainer.spec import TrainSpec


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run came to."""

    checkpoint: Path | None  #: the best one; None when not one step was made
    cancelled: bool
    figures: dict[str, float | int | str | bool | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run's inputs."""

    job: Path
    spec: TrainSpec
    numbers: Numbers
    train: Sequence[Pack]
    evaluate: Sequence[Pack]
    fingerprint: str
    batch: int
    accumulation: int
    gradient_checkpointing: bool


def collate(packs: Sequence[Pack]) -> dict[str, torch.Tensor]:
    """Return packs as one batch: the mask lets a place see the shared beginning and its own conversation so far."""
    longest = max(len(one.tokens) for one in packs)

    def rows(name: str, filler: int) -> torch.Tensor:
        values = [list(getattr(one, name)) for one in packs]
        return torch.tensor([row + [filler] * (longest - len(row)) for row in values])

    owners = rows("owners", -1)
    seen = (owners[:, None, :] == owners[:, :, None]) | ((owners == 0)[:, None, :] & (owners >= 0)[:, :, None])
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    return {
        "input_ids": rows("tokens", 0),
        "labels": rows("labels", IGNORED),
        "position_ids": rows("positions", 0),
        "attention_mask": (seen & causal)[:, None],
    }


class PackedTrainer(Trainer):
    """The library's trainer with our loss."""

    tokens_read = 0
    tokens_learnt = 0

    def compute_loss(  # Any: the library's own signature
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - the library's own signature
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the mean loss of the learnt tokens, over all batches of the step."""
        labels = inputs["labels"][:, 1:]
        places = (labels != IGNORED).any(0).nonzero()[:, 0]
        asked = {key: value for key, value in inputs.items() if key != "labels"}
        scores = model(**asked, logits_to_keep=places, use_cache=False).logits
        wanted = labels[:, places]
        loss = cross_entropy(scores.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED, reduction="sum")
        learnt = int((wanted != IGNORED).sum())
        loss = loss / (num_items_in_batch if num_items_in_batch is not None else learnt)
        if model.training:
            self.tokens_read += inputs["input_ids"].numel()
            self.tokens_learnt += learnt
        return (loss, {"loss": loss}) if return_outputs else loss


class Reporter(TrainerCallback):
    """Tells what happens, marks checkpoints as whole and stops on SIGTERM."""

    def __init__(self, run: Run, log: EventLog) -> None:
        self.trainer: PackedTrainer | None = None
        self.cancelled = False
        self._run = run
        self._log = log
        self._tokens = 0
        self._at = time.monotonic()

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        """Stop at the next step."""
        self.cancelled = True

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,  # Any: the library's
    ) -> TrainerControl:
        """Have a checkpoint made before it stops."""
        if self.cancelled:
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,  # Any: the library's
    ) -> None:
        """Tell a step or an evaluation."""
        told = logs or {}
        if "eval_loss" in told:
            self._log.tell("eval", step=state.global_step, loss=told["eval_loss"])
        if "loss" not in told or self.trainer is None:
            return
        now, tokens = time.monotonic(), self.trainer.tokens_read
        self._log.tell(
            "step",
            step=state.global_step,
            steps=state.max_steps,
            loss=told["loss"],
            lr=told.get("learning_rate"),
            tokens_per_s=round((tokens - self._tokens) / max(now - self._at, 1e-9), 1),
            memory_bytes=peak_memory(),
            temperature_c=temperature(),
        )
        self._tokens, self._at = tokens, now

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,  # Any: the library's
    ) -> None:
        """Mark the checkpoint as whole."""
        checkpoint = self._run.job / checkpoints.FOLDER / f"checkpoint-{state.global_step}"
        checkpoints.close(checkpoint, self._run.fingerprint)
        self._log.tell("checkpoint", step=state.global_step)


def train(run: Run, model: PreTrainedModel, log: EventLog) -> Trained:
    """Train until it is done, stopped early or told to stop. Raises what the libraries raise."""
    spec = run.spec
    set_seed(spec.steps.seed)  # the adapter's first weights are drawn
    adapted: Any = get_peft_model(model, _lora(spec))  # Any: peft's model has the base's methods, which no type tells
    if run.gradient_checkpointing:
        adapted.enable_input_require_grads()
    reporter = Reporter(run, log)
    extra: list[TrainerCallback] = [reporter]
    if spec.keeping.patience and run.evaluate:
        extra.append(EarlyStoppingCallback(early_stopping_patience=spec.keeping.patience))
    trainer = PackedTrainer(
        model=adapted,
        args=_arguments(run),
        data_collator=collate,
        train_dataset=_Packs(run.train),
        eval_dataset=_Packs(run.evaluate) if run.evaluate else None,
        callbacks=extra,
    )
    reporter.trainer = trainer
    folder = run.job / checkpoints.FOLDER
    before = checkpoints.newest(folder, run.fingerprint)
    if before is not None:
        log.tell("phase", phase="resume", checkpoint=before.name)
    old = signal.signal(signal.SIGTERM, reporter.stop)
    started, processor = time.monotonic(), time.process_time()
    try:
        with _attention(run.numbers):
            told = trainer.train(resume_from_checkpoint=str(before) if before else None)
    finally:
        signal.signal(signal.SIGTERM, old)
    seconds = time.monotonic() - started
    state = trainer.state
    last = checkpoints.newest(folder, run.fingerprint)
    best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else last
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return Trained(
        checkpoint=best,
        cancelled=reporter.cancelled,
        figures={
            "steps": state.global_step,
            "train_loss": told.training_loss,
            "last_loss": losses[-1] if losses else None,
            "best_eval_loss": state.best_metric,
            "train_seconds": round(seconds, 3),
            "train_cpu_seconds": round(time.process_time() - processor, 3),
            "train_minutes": round(seconds / 60, 3),
            "tokens": trainer.tokens_read,
            "tokens_learnt": trainer.tokens_learnt,
            "tokens_per_s": round(trainer.tokens_read / max(seconds, 1e-9), 1),
            "memory_bytes": peak_memory(),
        },
    )


class _Packs(torch.utils.data.Dataset[Pack]):
    def __init__(self, packs: Sequence[Pack]) -> None:
        self._packs = packs

    def __len__(self) -> int:
        return len(self._packs)

    def __getitem__(self, index: int) -> Pack:
        return self._packs[index]


def _lora(spec: TrainSpec) -> LoraConfig:
    return LoraConfig(
        r=spec.lora.r,
        lora_alpha=spec.lora.alpha,
        lora_dropout=spec.lora.dropout,
        target_modules=list(spec.lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )


def _arguments(run: Run) -> TrainingArguments:
    steps, keeping = run.spec.steps, run.spec.keeping
    every = keeping.evaluate_every if run.evaluate else 0
    # The best of what was evaluated must be among what was kept.
    save = math.ceil(keeping.checkpoint_every / every) * every if every else keeping.checkpoint_every
    planned = math.ceil(len(run.train) / (run.batch * run.accumulation) * steps.epochs)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.job / "logs")
    return TrainingArguments(
        output_dir=str(run.job / checkpoints.FOLDER),
        per_device_train_batch_size=run.batch,
        per_device_eval_batch_size=run.batch,
        gradient_accumulation_steps=run.accumulation,
        gradient_checkpointing=run.gradient_checkpointing,
        num_train_epochs=steps.epochs,
        max_steps=steps.most or -1,
        learning_rate=steps.learning_rate,
        lr_scheduler_type=steps.schedule,
        warmup_steps=round((steps.most or planned) * steps.warmup),
        weight_decay=steps.weight_decay,
        max_grad_norm=steps.clip,
        seed=steps.seed,
        data_seed=steps.seed,
        use_cpu=run.numbers.device == "cpu",
        bf16=run.numbers.dtype is torch.bfloat16,
        logging_steps=1,
        eval_strategy="steps" if every else "no",
        eval_steps=every or None,
        save_strategy="steps",
        save_steps=save,
        save_total_limit=keeping.checkpoints,
        load_best_model_at_end=bool(every),
        metric_for_best_model="eval_loss" if every else None,
        greater_is_better=False if every else None,
        prediction_loss_only=True,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=["tensorboard"],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        log_level="error",
    )


_MASKED: Final = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]


def _attention(numbers: Numbers) -> AbstractContextManager[None]:
    return sdpa_kernel(_MASKED) if numbers.device == "cuda" else nullcontext()
