"""spec: owns what a training job is told to do, with bounds on all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from loopbox_trainer.errors import TrainerError

MOST_BYTES: Final = 256 << 10

MountedPath = Annotated[str, StringConstraints(pattern=r"^/[^\x00]{1,1023}$")]
Label = Annotated[str, StringConstraints(max_length=512)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
Module = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Lora(_Part):
    """The adapter that is trained."""

    r: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: Annotated[float, Field(gt=0, le=4096)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[Module, ...], Field(max_length=32)] = ()  #: names of linear layers; empty: all of them


class Steps(_Part):
    """How it is optimised. Tokens count as the model reads them, prompts included."""

    tokens: Annotated[int, Field(ge=64, le=1 << 17)] = 1024  #: of one packed sequence; longer rows are left out
    batch: Annotated[int, Field(ge=1, le=1024)] = 1  #: sequences at a time
    accumulation: Annotated[int, Field(ge=1, le=1024)] = 1  #: batches of one step
    epochs: Annotated[float, Field(gt=0, le=1000)] = 1
    most: Annotated[int, Field(ge=0, le=10_000_000)] = 0  #: steps; 0: as the epochs say
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05  #: part of all steps
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip: Annotated[float, Field(gt=0, le=1000)] = 1.0  #: longest gradient
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 1


class Machine(_Part):
    """How the host is used."""

    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    #: "auto": NF4 on a GPU or for over a billion weights. Without a GPU it saves memory and costs time.
    quantise: Literal["auto", "nf4", "none"] = "auto"
    dtype: Literal["auto", "bf16", "fp32"] = "auto"  #: "auto": bf16 where the processor has it
    gradient_checkpointing: bool = False  #: less memory, a third more time
    memory_bytes: Annotated[int, Field(ge=0)] = 0  #: most to allocate without a GPU; 0: the container's own limit


class Keeping(_Part):
    """Checkpoints and early stop, in steps."""

    checkpoint_every: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    evaluate_every: Annotated[int, Field(ge=0, le=1_000_000)] = 0  #: 0: at the end alone
    patience: Annotated[int, Field(ge=0, le=1000)] = 0  #: evaluations without a better one until it stops; 0: never
    checkpoints: Annotated[int, Field(ge=1, le=20)] = 2  #: kept


class Handover(_Part):
    """What is made of the best checkpoint."""

    adapter: bool = True  #: adapter.gguf, to be put on the base
    model: bool = False  #: model.gguf, merged and quantised
    quantise: Literal["Q4_K_M", "Q8_0", "F16"] = "Q4_K_M"
    base: Label = ""  #: how the sidecar names the release that the adapter is put on


class TrainSpec(_Part):
    """One job of supervised training. Paths are the container's."""

    command: Literal["train"] = "train"
    name: Name = "trained"
    base: MountedPath  #: a GGUF file, below /models
    train: Annotated[tuple[MountedPath, ...], Field(min_length=1, max_length=64)]  #: JSONL, below /data
    evaluate: Annotated[tuple[MountedPath, ...], Field(max_length=64)] = ()
    most_rows: Annotated[int, Field(ge=1, le=5_000_000)] = 1_000_000
    least_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 8  #: fewer fit ones are no training set
    lora: Lora = Lora()
    steps: Steps = Steps()
    machine: Machine = Machine()
    keeping: Keeping = Keeping()
    handover: Handover = Handover()


def read_spec(path: Path) -> TrainSpec:
    """Read a job's spec. Raises TrainerError "spec_invalid"."""
    try:
        with path.open("rb") as file:
            return TrainSpec.model_validate_json(file.read(MOST_BYTES))
    except OSError as error:
        raise TrainerError("spec_invalid", f"{path} cannot be read: {error.strerror}. Nothing was trained.") from error
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in error.errors()[:5]]
        raise TrainerError("spec_invalid", f"{path.name}: {'; '.join(faults)[:1000]}. Nothing was trained.") from error
