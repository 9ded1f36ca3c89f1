"""gguf_weights: owns looking at a bounded sample of the weights: not-a-number, infinity, all zero.

Measured on the pinned engine: weights of 0xFF and of zeros load, serve and answer 200. A sample can't prove weights
good; the golden prompts of a rollout are the second look.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import isfinite
from typing import Final

from loopd.gguf_layout import Layout, Source, Tensor
from loopd.gguf_types import COPY_AGAIN, GgufError, Limits

#: High bytes of a half float whose exponent is all ones: infinity or not a number.
_BAD_HALF: Final = frozenset(byte for byte in range(256) if byte & 0x7C == 0x7C)  # noqa: PLR2004 - the exponent bits
_BAD_E8M0: Final = 0xFF
_MOST_SAMPLES: Final = 16
_MATRIX: Final = 2


def check_weights(source: Source, layout: Layout, limits: Limits) -> None:
    """Look at up to ``limits.samples`` places. Raises GgufError: weights_not_finite, weights_all_zero."""
    each = max(1, min(_MOST_SAMPLES, limits.samples // len(layout.tensors)))
    step = max(1, len(layout.tensors) // limits.samples)
    for tensor in layout.tensors[::step]:
        zero = True
        for sample in _samples(source, tensor, each, limits.sample_bytes):
            if not _finite(tensor.kind.name, sample, tensor):
                raise GgufError(
                    "weights_not_finite",
                    f"tensor {tensor.name} ({tensor.kind.name}) holds infinity or not-a-number: the training or the "
                    f"conversion went wrong, or the copy did; convert the model again",
                )
            zero = zero and not any(sample)
        # Biases may rightly be all zero, and one half of a LoRA pair begins so; a weight matrix or the last norm can't.
        if (
            zero
            and not tensor.name.endswith(".lora_b")
            and (len(tensor.dims) >= _MATRIX or tensor.name == "output_norm.weight")
        ):
            raise GgufError(
                "weights_all_zero", f"tensor {tensor.name} is all zeros where it was looked at; {COPY_AGAIN}"
            )


def _samples(source: Source, tensor: Tensor, count: int, length: int) -> Iterator[bytes]:
    """Yield whole blocks from places spread evenly over the tensor, the first and the last among them."""
    block = tensor.kind.size
    window = max(1, length // block)
    blocks = tensor.size // block
    if blocks <= window * count:
        for first in range(0, blocks, window):
            yield source.at(tensor.start + first * block, min(window, blocks - first) * block)
        return
    for number in range(count):
        first = (blocks - window) * number // max(1, count - 1)
        yield source.at(tensor.start + first * block, window * block)


def _finite(kind: str, sample: bytes, tensor: Tensor) -> bool:
    # Sums, slices and sets run at C's speed; an infinity or a NaN survives every sum of 32-bit floats in doubles.
    if kind == "F32":
        return isfinite(sum(struct.unpack(f"<{len(sample) // 4}f", sample)))
    if kind == "BF16":
        wide = bytearray(len(sample) * 2)
        wide[2::4] = sample[0::2]
        wide[3::4] = sample[1::2]
        return isfinite(sum(struct.unpack(f"<{len(sample) // 2}f", wide)))
    if kind == "F16":
        return _BAD_HALF.isdisjoint(sample[1::2])
    if kind == "F64":
        return all(map(isfinite, struct.unpack(f"<{len(sample) // 8}d", sample)))
    return _scales_finite(kind, sample, tensor)


def _scales_finite(kind: str, sample: bytes, tensor: Tensor) -> bool:
    block = tensor.kind.size
    if kind == "Q8_K":
        scales = b"".join(sample[offset : offset + 4] for offset in range(0, len(sample), block))
        return isfinite(sum(struct.unpack(f"<{len(scales) // 4}f", scales)))
    if kind == "MXFP4":
        return _BAD_E8M0 not in sample[0::block]
    return all(_BAD_HALF.isdisjoint(sample[scale + 1 :: block]) for scale in tensor.kind.scales)
