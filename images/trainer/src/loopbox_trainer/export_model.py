"""export_model: owns a whole model file: the base, unquantised, with the adapter merged in, quantised again.

Everything the base says of itself is copied: tokenizer, chat template, sizes. So nothing can get lost or be guessed
wrong on the way, as with a converter that has to know the tokenizer.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType
from gguf.quants import dequantize

from loopbox_trainer.lora_weights import Adapter
from loopbox_trainer.quantise import kind_of, quantise

_OWN: Final = frozenset({"general.architecture", "general.file_type", "general.quantization_version", "general.name"})
_FILE_TYPES: Final = {
    "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "F16": LlamaFileType.MOSTLY_F16,
}
_BLOCK: Final = re.compile(r"blk\.(\d+)\.")


@dataclass(slots=True)
class Written:
    """What was written."""

    kinds: Counter[str] = field(default_factory=Counter)  #: kind of numbers to tensors
    fall_backs: int = 0  #: tensors whose rows the wanted kind's blocks do not divide


def write_model(path: Path, base: gguf.GGUFReader, adapter: Adapter, mixture: str, name: str) -> Written:
    """Write the merged model. Raises OSError, TrainerError."""
    architecture = str(_contents(base, "general.architecture"))
    blocks = int(_contents(base, f"{architecture}.block_count"))
    added = {pair.tensor: pair for pair in adapter.pairs}
    tied = all(tensor.name != "output.weight" for tensor in base.tensors)
    written = Written()
    writer: Any = gguf.GGUFWriter(path, architecture)  # Any: gguf ships no types
    try:
        _copy(base, writer)
        writer.add_name(name)
        writer.add_file_type(_FILE_TYPES[mixture])
        if mixture != "F16":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for tensor in base.tensors:
            values = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
            if pair := added.get(tensor.name):
                values = values + adapter.scale * (pair.b @ pair.a)
            found = _BLOCK.match(tensor.name)
            block = int(found[1]) if found else 0
            shape = [int(n) for n in tensor.shape]
            kind, fallen = kind_of(tensor.name, shape, mixture, block, blocks, tied=tied)
            made = quantise(values, kind)
            writer.add_tensor(tensor.name, made, raw_dtype=None if kind in {Kind.F32, Kind.F16} else kind)
            written.kinds[kind.name] += 1
            written.fall_backs += fallen
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return written


def _copy(base: gguf.GGUFReader, writer: Any) -> None:  # Any: as above
    """Copy what the base says of itself."""
    for field_ in base.fields.values():
        if field_.name in _OWN or field_.name.startswith("GGUF.") or not field_.types:
            continue
        kind = field_.types[0]
        inner = field_.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field_.name, field_.contents(), kind, sub_type=inner)


def _contents(base: gguf.GGUFReader, name: str) -> Any:  # Any: a number or a text, as the file says
    found = base.get_field(name)
    return None if found is None else found.contents()
