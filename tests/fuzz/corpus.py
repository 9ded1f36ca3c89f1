"""corpus: owns the valid files that the mutator begins with, and where each field of them lies."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final, Literal

ALIGNMENT: Final = 32
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
SCALAR: Final = dict(zip((U8, I8, U16, I16, U32, I32, F32, BOOL, U64, I64, F64), "BbHhIifBQqd", strict=True))
TOKENS: Final = [*"abcdefghijklmn", "<s>", "</s>"]
Kind = Literal["magic", "version", "count", "length", "type", "name", "value", "dimension", "offset", "weights"]
Value = str | float | list[str] | list[int] | list[float]


@dataclass(frozen=True)
class Field:
    """One field of a file: its place and what it means."""

    start: int
    length: int
    kind: Kind


@dataclass
class Seed:
    """A valid file with its fields."""

    data: bytearray = field(default_factory=bytearray)
    fields: list[Field] = field(default_factory=list)

    def put(self, raw: bytes, kind: Kind) -> None:
        """Append one field."""
        if raw:
            self.fields.append(Field(len(self.data), len(raw), kind))
        self.data += raw

    def number(self, form: str, value: float, kind: Kind) -> None:
        """Append a number."""
        self.put(struct.pack("<" + form, value), kind)

    def text(self, words: str, kind: Kind = "name") -> None:
        """Append a string with its length."""
        raw = words.encode()
        self.number("Q", len(raw), "length")
        self.put(raw, kind)

    def pad(self) -> None:
        """Append up to the next aligned byte."""
        self.data += bytes(-len(self.data) % ALIGNMENT)


def build(metadata: list[tuple[str, int, Value]], tensors: list[tuple[str, tuple[int, ...], int, bytes]]) -> Seed:
    """Return a file; an array's type is given as ARRAY + 16 * element type."""
    seed = Seed()
    seed.put(b"GGUF", "magic")
    seed.number("I", 3, "version")
    seed.number("Q", len(tensors), "count")
    seed.number("Q", len(metadata), "count")
    for key, kind, value in metadata:
        seed.text(key)
        seed.number("I", kind % 16, "type")
        if kind % 16 == ARRAY:
            assert isinstance(value, list)
            seed.number("I", kind // 16, "type")
            seed.number("Q", len(value), "length")
        for one in value if isinstance(value, list) else [value]:
            element = kind // 16 if kind % 16 == ARRAY else kind
            if isinstance(one, str):
                seed.text(one, "value")
            else:
                seed.number(SCALAR[element], one, "value")
    offset = 0
    for name, dims, kind, data in tensors:
        seed.text(name)
        seed.number("I", len(dims), "count")
        for length in dims:
            seed.number("Q", length, "dimension")
        seed.number("I", kind, "type")
        seed.number("Q", offset, "offset")
        offset += -(-len(data) // ALIGNMENT) * ALIGNMENT
    for _, _, _, data in tensors:
        seed.pad()
        seed.put(data, "weights")
    return seed


def floats(*dims: int) -> bytes:
    """Return weights that are no constant."""
    count = 1
    for length in dims:
        count *= length
    return struct.pack(f"<{count}f", *((number % 7 - 3) / 8 + 0.01 for number in range(count)))


def model(architecture: str = "llama", quantised: tuple[int, bytes] | None = None) -> Seed:
    """Return a whole model of two blocks and sixteen tokens, with one quantised tensor if asked for."""
    metadata: list[tuple[str, int, Value]] = [
        ("general.architecture", STRING, architecture),
        ("general.alignment", U32, ALIGNMENT),
        ("general.file_type", U32, 0),
        (f"{architecture}.block_count", U32, 2),
        (f"{architecture}.context_length", U32, 128),
        (f"{architecture}.embedding_length", U32, 8),
        (f"{architecture}.attention.head_count", ARRAY + 16 * I32, [2, 2]),
        (f"{architecture}.attention.head_count_kv", U32, 1),
        (f"{architecture}.expert_count", U32, 4),
        (f"{architecture}.expert_used_count", U32, 2),
        (f"{architecture}.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "smollm"),
        ("tokenizer.ggml.tokens", ARRAY + 16 * STRING, TOKENS),
        ("tokenizer.ggml.scores", ARRAY + 16 * F32, [0.0] * 16),
        ("tokenizer.ggml.token_type", ARRAY + 16 * I32, [1] * 14 + [3, 3]),
        ("tokenizer.ggml.merges", ARRAY + 16 * STRING, ["a b"]),
        ("tokenizer.ggml.bos_token_id", U32, 14),
        ("tokenizer.ggml.eos_token_id", U32, 15),
        ("tokenizer.ggml.eos_token_ids", ARRAY + 16 * U32, [15]),
        ("tokenizer.ggml.add_bos_token", BOOL, 0),
        ("tokenizer.chat_template", STRING, "{{ messages }}"),
        ("general.flags", ARRAY + 16 * BOOL, [0, 1]),
        ("general.wide", U64, 1 << 40),
        ("general.ratio", F64, 0.5),
    ]
    tensors: list[tuple[str, tuple[int, ...], int, bytes]] = [
        ("token_embd.weight", (8, 16), 0, floats(8, 16)),
        ("blk.0.attn_q.weight", (8, 8), 0, floats(8, 8)),
        ("blk.1.attn_q.weight", (8, 8), 0, floats(8, 8)),
        ("output_norm.weight", (8,), 0, floats(8)),
    ]
    if quantised is not None:
        kind, block = quantised
        tensors.append(("blk.1.ffn_up.weight", (256, 2), kind, block * 2))
    return build(metadata, tensors)


def adapter() -> Seed:
    """Return a LoRA adapter of two pairs."""
    return build(
        [
            ("general.architecture", STRING, "llama"),
            ("general.type", STRING, "adapter"),
            ("adapter.type", STRING, "lora"),
            ("adapter.lora.alpha", F32, 8.0),
            ("adapter.alora.invocation_tokens", ARRAY + 16 * U32, [1, 2]),
        ],
        [
            ("blk.0.attn_q.weight.lora_a", (8, 2), 0, floats(8, 2)),
            ("blk.0.attn_q.weight.lora_b", (2, 8), 0, floats(2, 8)),
            ("token_embd.weight.lora_a", (2, 16), 0, floats(2, 16)),
            ("token_embd.weight.lora_b", (2, 8), 0, floats(2, 8)),
        ],
    )


def corpus() -> list[Seed]:
    """Return every valid file, small ones: an execution costs its bytes."""
    return [
        model(),
        model("qwen2", (12, bytes((1,)) * 144)),  # Q4_K
        model("mamba", (8, bytes((1,)) * 34 * 8)),  # Q8_0
        adapter(),
    ]
