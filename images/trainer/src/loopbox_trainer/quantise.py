"""quantise: owns the numbers of a model file: which kind each tensor gets, and making them by ggml's own code.

The kinds are those of llama.cpp's mixtures. Its code for them is in the image as a small library.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from typing import Final

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from loopbox_trainer.errors import TrainerError

LIBRARY: Final = "/opt/venv/lib/libggml-quants.so"
LIBRARY_VARIABLE: Final = "TRAINER_GGML"  #: another path of it

Kind = GGMLQuantizationType
#: What takes the place of a kind whose blocks do not divide a tensor's rows.
_FALL_BACKS: Final = {Kind.Q4_K: Kind.Q5_0, Kind.Q6_K: Kind.Q8_0}
_FINER: Final = ("attn_v.weight", "ffn_down.weight")


def kind_of(  # noqa: PLR0913 - what the rule depends on
    name: str, shape: Sequence[int], mixture: str, block: int, blocks: int, *, tied: bool
) -> tuple[Kind, bool]:
    """Return a tensor's kind, and whether it is a fall-back. Pure.

    shape: as the file tells it, a row's length first. tied: the token embeddings are the head, too.
    """
    if len(shape) < 2 or not name.endswith(".weight") or "_norm" in name:  # noqa: PLR2004 - a vector
        return Kind.F32, False
    if mixture == "F16":
        return Kind.F16, False
    if mixture == "Q8_0":
        wanted = Kind.Q8_0
    elif (
        name == "output.weight"
        or (tied and name == "token_embd.weight")
        or (name.endswith(_FINER) and _more_bits(block, blocks))
    ):
        wanted = Kind.Q6_K
    else:
        wanted = Kind.Q4_K
    kind = wanted
    if shape[0] % GGML_QUANT_SIZES[kind][0]:
        kind = _FALL_BACKS.get(kind, Kind.F16)
        if shape[0] % GGML_QUANT_SIZES[kind][0]:
            kind = Kind.F16
    return kind, kind != wanted


def quantise(values: NDArray[np.float32], kind: Kind) -> NDArray[np.generic]:
    """Return a matrix in a kind: numbers for the plain ones, else rows of bytes. Raises TrainerError."""
    values = np.ascontiguousarray(values, np.float32)
    if kind == Kind.F32:
        return values
    if kind == Kind.F16:
        return values.astype(np.float16)
    rows, columns = values.shape
    length, size = GGML_QUANT_SIZES[kind]
    made = np.empty((rows, columns // length * size), np.uint8)
    written = _library().ggml_quantize_chunk(int(kind), values.ctypes.data, made.ctypes.data, 0, rows, columns, None)
    if written != made.nbytes:
        raise TrainerError("quantise_failed", f"{kind.name}: {written} bytes, not {made.nbytes}; nothing was handed on")
    return made


def _more_bits(block: int, blocks: int) -> bool:
    """Whether llama.cpp gives a block's finer tensors more: the first and last eighth, and each third between."""
    eighth = blocks // 8
    return block < eighth or block >= 7 * eighth or (block - eighth) % 3 == 2  # noqa: PLR2004 - its own rule


@functools.cache
def _library() -> ctypes.CDLL:
    path = os.environ.get(LIBRARY_VARIABLE, LIBRARY)
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise TrainerError("quantise_failed", f"{path} cannot be loaded ({error}); build the image anew") from error
    chunk = library.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return library
