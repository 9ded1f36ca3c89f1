"""gguf_types: owns the words of the GGUF format: limits, errors, value types, tensor types and architectures.

Standard library only and no work at import: the disposable inspection process pays for every import.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from loopd.errors import LoopdError

MIB: Final = 1 << 20
COPY_AGAIN: Final = "copy or convert the file again"


_UNFINISHED: Final = frozenset(
    [
        "truncated",
        "changed_while_read",
        "still_written",
        "adapter_without_base",
        "adapter_missing",
        "base_missing",
    ]
)


class GgufError(LoopdError):
    """A model file is not fit to be loaded; it was only read, nothing was changed and nothing was loaded."""

    status = 422

    def __init__(
        self,
        code: str,
        message: str,
        *,
        expected_bytes: int | None = None,
        actual_bytes: int | None = None,
    ) -> None:
        """Keep the stable word ``code``, and for "truncated" how long the file should be and how long it is."""
        super().__init__(message)
        # The base class gives each class one code; here each defect has its own, so the instance hides it.
        object.__setattr__(self, "code", code)
        self.expected_bytes = expected_bytes
        self.actual_bytes = actual_bytes

    @property
    def unfinished(self) -> bool:
        """True when the file looks like one that is still being copied, or that waits for another: look again."""
        return self.code in _UNFINISHED


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a file may ask of its reader; counts and bytes. The largest public models use about a third."""

    metadata_entries: int = 4096
    tensors: int = 65_536
    #: Of one string; the largest known are licence texts of some 60 KB.
    string_bytes: int = MIB
    chat_template_bytes: int = 256 << 10
    #: The specification's own bound.
    key_bytes: int = 65_535
    #: Of one string in an array; the longest known token is 1 KiB of spaces.
    element_bytes: int = 65_536
    #: In all arrays together: Gemma 3 has 262,144 tokens and twice as many merges. Bounds the time: 0.2 us each.
    strings: int = 2_000_000
    array_elements: int = 16_000_000
    header_bytes: int = 256 * MIB
    alignment: int = 65_536
    #: After the last tensor's padding; more is not a model's.
    trailing_bytes: int = 4096
    #: The engine keeps its layers and experts in arrays of this size and aborts beyond (llama-hparams.h).
    blocks: int = 512
    experts: int = 512
    context_length: int = 1 << 27
    embedding_length: int = 1 << 20
    #: Places looked at in the weights of the whole file, each ``sample_bytes`` long.
    samples: int = 2048
    sample_bytes: int = 4096
    #: A hole this long inside the data is taken for a copy that has not arrived.
    hole_bytes: int = 64 << 10


@dataclass(frozen=True, slots=True)
class TensorType:
    """How a tensor type packs its elements; ``scales`` are the offsets of the 16-bit floats in one block."""

    name: str
    block: int  #: elements
    size: int  #: bytes a block
    scales: tuple[int, ...] = ()


#: By number, as in ggml.h of the engine's release (GGML_TYPE_COUNT = 40); 4, 5, 31-33 and 36-38 were withdrawn.
TENSOR_TYPES: Final[dict[int, TensorType]] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18, (0,)),
    3: TensorType("Q4_1", 32, 20, (0, 2)),
    6: TensorType("Q5_0", 32, 22, (0,)),
    7: TensorType("Q5_1", 32, 24, (0, 2)),
    8: TensorType("Q8_0", 32, 34, (0,)),
    9: TensorType("Q8_1", 32, 36, (0, 2)),
    10: TensorType("Q2_K", 256, 84, (80, 82)),
    11: TensorType("Q3_K", 256, 110, (108,)),
    12: TensorType("Q4_K", 256, 144, (0, 2)),
    13: TensorType("Q5_K", 256, 176, (0, 2)),
    14: TensorType("Q6_K", 256, 210, (208,)),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66, (0,)),
    17: TensorType("IQ2_XS", 256, 74, (0,)),
    18: TensorType("IQ3_XXS", 256, 98, (0,)),
    19: TensorType("IQ1_S", 256, 50, (0,)),
    20: TensorType("IQ4_NL", 32, 18, (0,)),
    21: TensorType("IQ3_S", 256, 110, (0,)),
    22: TensorType("IQ2_S", 256, 82, (0,)),
    23: TensorType("IQ4_XS", 256, 136, (0,)),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54, (52,)),
    35: TensorType("TQ2_0", 256, 66, (64,)),
    39: TensorType("MXFP4", 32, 17),
}
#: Known to the format, not to the engine: it would refuse them at load, so they are refused here by name.
TENSOR_TYPES_TOO_NEW: Final[dict[int, str]] = {40: "NVFP4", 41: "Q1_0"}
TENSOR_TYPES_WITHDRAWN: Final = frozenset({4, 5, 31, 32, 33, 36, 37, 38})

#: general.file_type; a file without it has "unknown".
FILE_TYPES: Final[dict[int, str]] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
}

BOOL: Final = 7
STRING: Final = 8
ARRAY: Final = 9
#: The fixed-size value types by number.
SCALARS: Final[dict[int, struct.Struct]] = {
    number: struct.Struct("<" + letter)
    for number, letter in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        BOOL: "B",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
UINT32: Final = 4
INT32: Final = 5
FLOAT32: Final = 6
INTEGERS: Final = frozenset({0, 1, 2, 3, 4, 5, 10, 11})

#: What the pinned engine loads: Ollama v0.24.0, llama/llama.cpp/src/llama-arch.cpp and model.Register in
#: model/models, less the parts that are no chat model (below). Review it with each engine upgrade.
ENGINE_ARCHITECTURES: Final = frozenset(
    [
        "llama",
        "llama4",
        "deci",
        "falcon",
        "grok",
        "gpt2",
        "gptj",
        "gptneox",
        "mpt",
        "baichuan",
        "starcoder",
        "refact",
        "bloom",
        "stablelm",
        "qwen",
        "qwen2",
        "qwen2moe",
        "qwen2vl",
        "qwen3",
        "qwen3moe",
        "qwen3next",
        "qwen3vl",
        "qwen3vlmoe",
        "phi2",
        "phi3",
        "phimoe",
        "plamo",
        "plamo2",
        "codeshell",
        "orion",
        "internlm2",
        "minicpm",
        "minicpm3",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3n",
        "starcoder2",
        "mamba",
        "mamba2",
        "jamba",
        "falcon-h1",
        "xverse",
        "command-r",
        "cohere2",
        "dbrx",
        "olmo",
        "olmo2",
        "olmoe",
        "openelm",
        "arctic",
        "deepseek",
        "deepseek2",
        "chatglm",
        "glm4",
        "glm4moe",
        "bitnet",
        "t5",
        "jais",
        "nemotron",
        "nemotron_h",
        "nemotron_h_moe",
        "exaone",
        "exaone4",
        "rwkv6",
        "rwkv6qwen2",
        "rwkv7",
        "arwkv7",
        "granite",
        "granitemoe",
        "granitehybrid",
        "chameleon",
        "solar",
        "plm",
        "bailingmoe",
        "bailingmoe2",
        "dots1",
        "arcee",
        "afmoe",
        "ernie4_5",
        "ernie4_5-moe",
        "hunyuan-moe",
        "hunyuan-dense",
        "smollm3",
        "gpt-oss",
        "lfm2",
        "lfm2moe",
        "dream",
        "smallthinker",
        "llada",
        "llada-moe",
        "seed_oss",
        "grovemoe",
        "apertus",
        "minimax-m2",
        "cogvlm",
        "rnd1",
        "pangu-embedded",
        "mistral3",
        "deepseekocr",
        "gemma4",
        "glm4moelite",
        "glmocr",
        "gptoss",
        "laguna",
        "mllama",
        "nemotron_h_omni",
        "olmo3",
        "qwen25vl",
        "qwen35",
        "qwen35moe",
    ]
)
#: Known to the engine, but they embed, encode or project: they can't answer a chat.
NOT_CHAT_ARCHITECTURES: Final = frozenset(
    [
        "clip",
        "bert",
        "bert_embed",
        "nomic-bert",
        "nomic-bert_embed",
        "nomic-bert-moe",
        "nomic-bert-moe_embed",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "gemma-embedding",
        "gemma3_embed",
        "qwen3_embed",
        "t5encoder",
        "wavtokenizer-dec",
    ]
)
#: No attention heads, so no head counts to check.
RECURRENT_ARCHITECTURES: Final = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
#: Some of their blocks rightly have no tensors.
SPARSE_BLOCK_ARCHITECTURES: Final = frozenset({"deci"})
#: "gemma4" is read by the engine's own gemma4 model, the others by llama.cpp too.
TOKENIZERS: Final = frozenset({"llama", "gpt2", "t5", "rwkv", "plamo2", "bert", "gemma4"})
