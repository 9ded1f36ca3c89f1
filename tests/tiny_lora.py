"""tiny_lora: owns the making of a tiny LoRA adapter for tiny_gguf's models, strong enough to be heard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tiny_gguf import FEED_FORWARD, VOCABULARY, WIDTH

TARGETS = {
    "blk.0.attn_q.weight": (WIDTH, WIDTH),
    "blk.0.ffn_up.weight": (WIDTH, FEED_FORWARD),
    "blk.1.ffn_down.weight": (FEED_FORWARD, WIDTH),
    "output.weight": (WIDTH, VOCABULARY),
}


def make_tiny_lora(
    path: Path, *, seed: int = 0, rank: int = 4, alpha: float = 8.0, architecture: str = "llama", wide: int = 0
) -> Path:
    """Write an adapter and return its path; ``wide`` more columns than the base has make it fit no tiny model."""
    random = np.random.default_rng(seed)
    writer: Any = gguf.GGUFWriter(path, architecture)  # Any: gguf ships no types
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_name("tiny-lora")
    for name, (columns, rows) in TARGETS.items():
        a = random.standard_normal((rank, columns + wide)).astype(np.float32) / WIDTH**0.5
        b = random.standard_normal((rows, rank)).astype(np.float32)
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
