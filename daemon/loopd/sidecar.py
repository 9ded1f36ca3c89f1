"""sidecar: owns what may stand beside a model file and be dropped with it: how to serve it, and where it came from.

``name.toml`` is loopbox's own form, ``name.Modelfile`` Ollama's; a plain ``Modelfile`` counts where there is exactly
one GGUF file. What it leaves out comes from the GGUF file itself. ``name.gguf.sig`` is the signature.
"""

from __future__ import annotations

import errno
import os
import stat
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from loopd.gguf_types import GgufError
from loopd.modelfile import invalid, parse_modelfile

SUFFIX: Final = ".gguf"
SIGNATURE_SUFFIX: Final = ".sig"
PLAIN: Final = "Modelfile"
SUFFIXES: Final = (".toml", ".Modelfile")
MOST_BYTES: Final = 512 << 10

#: What the engine samples with; what belongs to the host (threads, layers on the GPU) is no release's to say.
SAMPLING: Final[dict[str, tuple[float, float]]] = {
    "temperature": (0, 10),
    "top_p": (0, 1),
    "top_k": (0, 1_000_000),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repeat_last_n": (-1, 1 << 20),
    "repeat_penalty": (0, 10),
    "presence_penalty": (-10, 10),
    "frequency_penalty": (-10, 10),
    "seed": (-(1 << 31), (1 << 31) - 1),
    "num_predict": (-2, 1 << 20),
    "num_keep": (-1, 1 << 20),
}
_MOST_PARTS: Final = 500
_WHOLE: Final = frozenset({"top_k", "repeat_last_n", "seed", "num_predict", "num_keep"})

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[^/\x00]{1,255}$")]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Label = Annotated[str, StringConstraints(max_length=512)]
Score = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AdapterFile(_Part):
    """A LoRA adapter that was dropped beside."""

    file: FileName


class Lineage(_Part):
    """Where a release came from, in its maker's words; not part of its identity."""

    base: Label = ""  #: what it was trained from
    data: Label = ""  #: what it was trained on
    job: Label = ""  #: what trained it
    scores: Annotated[dict[Annotated[str, StringConstraints(max_length=64)], Score], Field(max_length=64)] = {}


class Sidecar(_Part):
    """What a sidecar says; None or empty: it says nothing of that."""

    template: Annotated[str, StringConstraints(max_length=256 << 10)] | None = None  #: in the engine's own syntax
    system: Annotated[str, StringConstraints(max_length=64 << 10)] = ""
    stop: Annotated[tuple[Stop, ...], Field(max_length=32)] | None = None
    num_ctx: Annotated[int, Field(ge=256, le=1 << 20)] | None = None
    parameters: dict[str, float] = {}
    #: The engine applies one.
    adapters: Annotated[tuple[AdapterFile, ...], Field(max_length=1)] = ()
    #: For an adapter: the release it is put on (name or id), or its weights (sha256:… or the file they came as).
    base: Label = ""
    lineage: Lineage = Lineage()

    @field_validator("parameters")
    @classmethod
    def _known(cls, value: dict[str, float]) -> dict[str, float]:
        for name, number in value.items():
            least, most = SAMPLING.get(name, (0.0, 0.0))
            if name not in SAMPLING:
                raise ValueError(f"{name[:40]!r} is no sampling parameter; there are {', '.join(sorted(SAMPLING))}")
            if not least <= number <= most or (name in _WHOLE and number != int(number)):
                kind = "a whole number" if name in _WHOLE else "a number"
                raise ValueError(f"{name} is {number:g}, not {kind} from {least:g} to {most:g}")
        return value


@dataclass(frozen=True, slots=True)
class Drop:
    """A model file with what lies beside it."""

    model: Path
    sidecar: Path | None = None
    signature: Path | None = None

    @property
    def companions(self) -> tuple[Path, ...]:
        """What is not the model itself."""
        return tuple(path for path in (self.sidecar, self.signature) if path is not None)


def find_drop(model: Path, names: Collection[str]) -> Drop:
    """Put a model file together with its companions among these names. Raises GgufError "sidecar_twice"."""
    found = [name for suffix in SUFFIXES if (name := model.stem + suffix) in names]
    if not found and PLAIN in names and sum(name.lower().endswith(SUFFIX) for name in names) == 1:
        found = [PLAIN]
    if len(found) > 1:
        raise GgufError("sidecar_twice", f"{' and '.join(found)} both say how to serve {model.name}; drop one of them")
    signature = model.name + SIGNATURE_SUFFIX
    return Drop(
        model,
        model.with_name(found[0]) if found else None,
        model.with_name(signature) if signature in names else None,
    )


def is_companion(name: str) -> bool:
    """Tell whether a file is there for another's sake."""
    return name == PLAIN or name.endswith(SUFFIXES) or name.lower().endswith(SUFFIX + SIGNATURE_SUFFIX)


def read_small(path: Path) -> bytes:
    """Return a companion's bytes. Raises GgufError "sidecar_invalid", OSError."""
    refusal = GgufError("sidecar_invalid", f"{path.name} is no file of at most {MOST_BYTES >> 10} KiB; copy it itself")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise refusal from error
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise refusal
        return os.pread(fd, MOST_BYTES, 0)
    finally:
        os.close(fd)


def parse_sidecar(name: str, raw: bytes, *, model: str) -> Sidecar:
    """Read a sidecar by its name's form; ``model`` is the file it stands beside.

    Raises GgufError: sidecar_invalid, modelfile_invalid.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise GgufError("sidecar_invalid", f"{name} is not UTF-8; write it again") from error
    try:
        return _toml(text) if name.endswith(".toml") else _modelfile(text, model)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc']))[:80]}: {one['msg'][:200]}" for one in error.errors()[:3]]
        raise GgufError("sidecar_invalid", f"{name}: {'; '.join(faults)}; mend it and drop both files again") from error
    except (ValueError, RecursionError) as error:  # not TOML, or a number of thousands of digits
        told = str(error)[:200]
        raise GgufError("sidecar_invalid", f"{name} is not TOML: {told}; mend it and drop both files again") from error


def _toml(text: str) -> Sidecar:
    # The library's time grows with the square of a dotted key's parts: 512 KiB of one key hold it for minutes.
    run = 0
    for part in text.split("."):
        run = run + 1 if part and "\n" not in part else 0
        if run > _MOST_PARTS:
            raise GgufError("sidecar_invalid", f"the sidecar has a key or a line of over {_MOST_PARTS} dotted parts")
    return Sidecar.model_validate(tomllib.loads(text))


def _modelfile(text: str, model: str) -> Sidecar:
    said = parse_modelfile(text)
    adapters = [_beside(name) for name in said.adapters]
    # FROM names the file beside; beside an adapter it names the base, and ADAPTER the file.
    own = _beside(said.base) == model
    if not own and adapters != [model]:
        raise invalid(1, f"FROM {said.base[:80]} is not {model}, the file it stands beside")
    stop: list[str] = []
    numbers: dict[str, float] = {}
    for line, name, value in said.parameters:
        if name == "stop":
            stop.append(value)
            continue
        if name != "num_ctx" and name not in SAMPLING:
            raise invalid(line, f"PARAMETER {name[:40]} is no release's to say; there are stop, num_ctx and sampling")
        try:
            numbers[name] = float(value)
        except ValueError as error:
            raise invalid(line, f"PARAMETER {name} is {value[:40]!r}, no number") from error
    return Sidecar(
        template=said.template,
        system=said.system or "",
        stop=tuple(stop) or None,
        num_ctx=numbers.pop("num_ctx", None),
        parameters=numbers,
        adapters=tuple(AdapterFile(file=name) for name in adapters) if own else (),
        base="" if own else said.base,
    )


def _beside(path: str) -> str:
    """Return the name of a file beside, without its ./ ; paths elsewhere stay as they are and fit nothing."""
    return path.removeprefix("./")
