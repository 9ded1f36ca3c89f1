"""export_adapter: owns writing a trained adapter as a GGUF file, as engines put one on the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from loopbox_trainer.lora_weights import Adapter


def write_adapter(path: Path, adapter: Adapter, architecture: str, name: str) -> None:
    """Write it in half precision. Raises OSError."""
    writer: Any = gguf.GGUFWriter(path, architecture)  # Any: gguf ships no types
    try:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", adapter.alpha)
        writer.add_name(name)
        for pair in adapter.pairs:
            writer.add_tensor(f"{pair.tensor}.lora_a", np.ascontiguousarray(pair.a, np.float16))
            writer.add_tensor(f"{pair.tensor}.lora_b", np.ascontiguousarray(pair.b, np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
