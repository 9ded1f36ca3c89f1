"""gguf_adapter: owns what a LoRA adapter file must say, by itself; whether it fits its base, the engine tells at load.

The rules are those of the pinned engine (llama-adapter.cpp): it asserts the type of alpha, so another one kills it, and
applies one adapter only, at full scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Final

from loopd.gguf_layout import Tensor
from loopd.gguf_metadata import Metadata
from loopd.gguf_types import (
    ARRAY,
    COPY_AGAIN,
    ENGINE_ARCHITECTURES,
    FLOAT32,
    NOT_CHAT_ARCHITECTURES,
    UINT32,
    GgufError,
)

_A: Final = ".lora_a"
_B: Final = ".lora_b"
#: The engine passes over them: it can't apply a norm.
_IGNORED: Final = "_norm.weight"
_MOST_RANK: Final = 4096
_MATRIX: Final = (2, 3)  # dimensions; the third counts experts
_NAME_CHARACTERS: Final = 256
#: What converters write; the engine multiplies with them.
_KINDS: Final = frozenset({"F32", "F16", "BF16", "Q8_0"})
_INVOCATION: Final = "adapter.alora.invocation_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSummary:
    """What a sound adapter file says of itself; size in bytes."""

    architecture: str
    name: str
    alpha: float  #: the engine multiplies by alpha / rank
    rank: int  #: the largest of its pairs
    pair_count: int
    parameter_count: int
    size_bytes: int


def is_adapter(metadata: Metadata) -> bool:
    """Tell whether the file calls itself an adapter."""
    return metadata.find_text("general.type") == "adapter"


def check_adapter(metadata: Metadata) -> AdapterSummary:
    """Hold an adapter's metadata against its tensors. Raises GgufError."""
    name = metadata.architecture[:80]
    if name not in ENGINE_ARCHITECTURES or name in NOT_CHAT_ARCHITECTURES:
        raise GgufError(
            "architecture_unknown", f"the engine knows no architecture {name!r}; update it or convert again"
        )
    kind = metadata.text("adapter.type")
    if kind != "lora":
        raise GgufError("adapter_type_unknown", f"adapter.type is {kind[:40]!r}; only lora can be served")
    alpha = _alpha(metadata)
    _check_invocation(metadata)
    pairs = _pairs(metadata.layout.tensors)
    rank = max(_rank(target, a, b) for target, (a, b) in pairs.items())
    return AdapterSummary(
        architecture=metadata.architecture,
        name=(metadata.find_text("general.name") or "")[:_NAME_CHARACTERS],
        alpha=alpha,
        rank=rank,
        pair_count=len(pairs),
        parameter_count=sum(tensor.elements for tensor in metadata.layout.tensors),
        size_bytes=metadata.layout.size,
    )


def _alpha(metadata: Metadata) -> float:
    value = metadata.layout.metadata.get("adapter.lora.alpha")
    if value is None:
        raise GgufError("missing_key", "metadata key adapter.lora.alpha is missing; convert the adapter again")
    if metadata.layout.types["adapter.lora.alpha"] != FLOAT32 or not isinstance(value, float):
        raise GgufError("wrong_type", f"adapter.lora.alpha must be a 32-bit float; {COPY_AGAIN}")
    if not isfinite(value) or value < 0:
        raise GgufError("adapter_alpha_invalid", f"adapter.lora.alpha is {value}; convert the adapter again")
    return value


def _check_invocation(metadata: Metadata) -> None:
    if metadata.layout.types.get(_INVOCATION, ARRAY) != ARRAY:
        raise GgufError("wrong_type", f"{_INVOCATION} must be an array; {COPY_AGAIN}")
    tokens = metadata.find_array(_INVOCATION)
    if tokens is not None and tokens.element != UINT32:
        raise GgufError("wrong_type", f"{_INVOCATION} must hold unsigned 32-bit numbers; {COPY_AGAIN}")


def _pairs(tensors: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    halves: dict[str, dict[str, Tensor]] = {_A: {}, _B: {}}
    for tensor in tensors:
        if tensor.name.endswith((_A, _B)):
            halves[tensor.name[-len(_A) :]][tensor.name[: -len(_A)]] = tensor
        elif not tensor.name.endswith(_IGNORED):
            raise GgufError(
                "adapter_tensor_unknown", f"tensor {tensor.name} is neither {_A} nor {_B}; convert the adapter again"
            )
    if lone := sorted(halves[_A].keys() ^ halves[_B].keys()):
        raise GgufError("adapter_pair_missing", f"{lone[0]} has only one of {_A} and {_B}; convert the adapter again")
    if not halves[_A]:
        raise GgufError("no_tensors", "the adapter changes nothing: it has no pair of tensors; convert it again")
    return {name: (a, halves[_B][name]) for name, a in halves[_A].items()}


def _rank(target: str, a: Tensor, b: Tensor) -> int:
    """Return the inner dimension of a pair. Raises GgufError when the two can't be multiplied."""
    for tensor in (a, b):
        if len(tensor.dims) not in _MATRIX:
            raise GgufError("adapter_shape", f"tensor {tensor.name} has the shape {list(tensor.dims)}; {COPY_AGAIN}")
        if tensor.kind.name not in _KINDS:
            raise GgufError(
                "adapter_tensor_type",
                f"tensor {tensor.name} is {tensor.kind.name}, not one of {sorted(_KINDS)}; convert it again",
            )
    # The embedding's pair is stored the other way round, because its rows are looked up.
    inner = a.dims[0] if target == "token_embd.weight" else a.dims[1]
    if inner != b.dims[0] or a.dims[2:] != b.dims[2:]:
        raise GgufError(
            "adapter_shape", f"{target}: {list(a.dims)} and {list(b.dims)} do not fit; convert the adapter again"
        )
    if inner > _MOST_RANK:
        raise GgufError("adapter_rank_invalid", f"{target} has rank {inner}, more than {_MOST_RANK}; {COPY_AGAIN}")
    return inner
