"""lora_weights: owns a trained adapter as the base's file names and orders it. Pure but for reading the checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from loopbox_trainer.errors import TrainerError

Array = NDArray[np.float32]
_HEAD: Final = "base_model.model."
_A: Final = ".lora_A.weight"
_B: Final = ".lora_B.weight"
#: Architectures whose files keep the rows of queries and keys in the order of the other rotary form.
_TURNED: Final = frozenset({"llama"})


@dataclass(frozen=True, slots=True)
class Pair:
    """What is added to one tensor: scale times b times a."""

    tensor: str  #: the base's name of it
    a: Array  #: rank by inputs
    b: Array  #: outputs by rank


@dataclass(frozen=True, slots=True)
class Adapter:
    """A whole adapter."""

    pairs: tuple[Pair, ...]
    alpha: float
    rank: int

    @property
    def scale(self) -> float:
        """What the product is multiplied with."""
        return self.alpha / self.rank


def read_adapter(checkpoint: Path, base: gguf.GGUFReader) -> Adapter:
    """Read a checkpoint's adapter for its base. Raises TrainerError "adapter_unfit"."""
    settings = json.loads((checkpoint / "adapter_config.json").read_text())
    weights = load_file(checkpoint / "adapter_model.safetensors")
    architecture = str(_field(base, "general.architecture"))
    blocks = int(_field(base, f"{architecture}.block_count"))
    heads = int(_field(base, f"{architecture}.attention.head_count"))
    kv_heads = int(_field(base, f"{architecture}.attention.head_count_kv") or heads)
    kind = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, blocks)
    shapes = {str(tensor.name): tuple(int(n) for n in tensor.shape) for tensor in base.tensors}
    pairs: list[Pair] = []
    for key in sorted(weights):
        if not key.endswith(_A):
            continue
        own = key.removeprefix(_HEAD).removesuffix(_A)
        tensor = names.get_name(own + ".weight", try_suffixes=(".weight",))
        a, b = np.asarray(weights[key], np.float32), np.asarray(weights[key.removesuffix(_A) + _B], np.float32)
        if architecture in _TURNED and own.endswith(("q_proj", "k_proj")):
            b = _turned(b, heads if own.endswith("q_proj") else kv_heads)
        if tensor is None or shapes.get(tensor) != (a.shape[1], b.shape[0]):
            raise TrainerError("adapter_unfit", f"{own} has no place in the base, so nothing was handed on.")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise TrainerError("adapter_unfit", f"{own} holds numbers that are not finite, so nothing was handed on.")
        pairs.append(Pair(tensor, a, b))
    if not pairs:
        raise TrainerError("adapter_unfit", "The checkpoint holds no adapter, so nothing was handed on.")
    return Adapter(tuple(pairs), float(settings["lora_alpha"]), int(settings["r"]))


def _turned(rows: Array, heads: int) -> Array:
    """Return a tensor's rows in the file's order: the two halves of each head interleaved."""
    parts = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(rows.shape))


def _field(base: gguf.GGUFReader, name: str) -> Any:  # Any: a number or a text, as the file says
    field = base.get_field(name)
    return None if field is None else field.contents()
