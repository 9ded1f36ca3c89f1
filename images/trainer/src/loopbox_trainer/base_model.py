"""base_model: owns opening the base: a GGUF file's tokenizer, and its weights without their quantisation.

The base is what the appliance serves, so what is trained on is what the adapter will be put on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from loopbox_trainer.chat_format import END, START
from loopbox_trainer.errors import TrainerError
from loopbox_trainer.spec import Machine

MANY_WEIGHTS: Final = 1_000_000_000
#: Architectures whose linear layers the export knows how to write (see export_adapter).
ARCHITECTURES: Final = frozenset({"llama", "qwen2", "qwen3"})


@dataclass(frozen=True, slots=True)
class Numbers:
    """What is computed with."""

    device: str
    dtype: torch.dtype
    nf4: bool


def open_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    """Return the base's own tokenizer. Raises TrainerError "base_unfit"."""
    architecture = _architecture(gguf)
    if architecture not in ARCHITECTURES:
        raise TrainerError(
            "base_unfit",
            f"{gguf.name} is of the architecture {architecture!r}; {', '.join(sorted(ARCHITECTURES))} can be trained. "
            "Nothing was trained.",
        )
    try:
        # Any: the library's factories are not typed
        tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    except Exception as error:  # the library raises whatever a missing or unknown tokenizer leads to
        raise TrainerError(
            "base_unfit", f"{gguf.name} has no tokenizer that can be used ({error}). Nothing was trained."
        ) from error
    if any(len(tokenizer.encode(mark, add_special_tokens=False)) != 1 for mark in (START, END)):
        raise TrainerError(
            "base_unfit", f"{gguf.name} does not know ChatML: {START} is no token of it. Nothing was trained."
        )
    made: PreTrainedTokenizerBase = tokenizer
    return made


def open_model(gguf: Path, numbers: Numbers) -> PreTrainedModel:
    """Return the base for training, frozen. Raises TrainerError "base_unfit"."""
    try:
        # Any: the library's factories are not typed
        model: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=numbers.dtype)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise TrainerError("base_unfit", f"{gguf.name} cannot be read ({error}). Nothing was trained.") from error
    # The library marks it as quantised, though it no longer is, and then refuses half of what follows.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.use_cache = False
    model.requires_grad_(requires_grad=False)
    if numbers.nf4:
        _quantise(model, numbers)
    made: PreTrainedModel = model.to(numbers.device)
    return made


def choose_numbers(machine: Machine, weights: int) -> Numbers:
    """Return what to compute with on this machine, for a base of so many weights."""
    gpu = torch.cuda.is_available()
    bf16 = torch.cuda.is_bf16_supported() if gpu else torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 - the one way to ask
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}.get(
        machine.dtype, torch.bfloat16 if bf16 else torch.float32
    )
    nf4 = machine.quantise == "nf4" or (machine.quantise == "auto" and (gpu or weights > MANY_WEIGHTS))
    return Numbers("cuda" if gpu else "cpu", dtype, nf4)


def count_weights(gguf: Path) -> int:
    """Return how many weights a file holds."""
    return sum(int(tensor.n_elements) for tensor in GGUFReader(str(gguf)).tensors)


def _architecture(gguf: Path) -> str:
    try:
        found = GGUFReader(str(gguf)).get_field("general.architecture")
    except (OSError, ValueError, IndexError) as error:
        raise TrainerError("base_unfit", f"{gguf} is no GGUF file ({error}). Nothing was trained.") from error
    return str(found.contents()) if found is not None else ""


def _quantise(model: Any, numbers: Numbers) -> None:  # Any: as above
    """Put NF4 layers in place of the linear ones, but for the head."""
    import bitsandbytes  # noqa: PLC0415 - it takes a second, and most jobs without a GPU do without

    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, torch.nn.Linear) or layer is head:
            continue
        small = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=numbers.dtype,
            quant_type="nf4",
        )
        small.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        small.bias = layer.bias
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, small.to(numbers.device))
    model.is_loaded_in_4bit = True  # the mark by which peft knows
