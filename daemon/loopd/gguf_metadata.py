"""gguf_metadata: owns what the metadata must say, by itself and against the tensors, for the engine to serve it.

The rules are the ones whose breach makes the pinned engine abort, over-read or answer nonsense; what it refuses in
good order inside the candidate's own container is left to it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from math import isfinite, isnan
from typing import Final

from loopd.gguf_layout import ArrayValue, Layout, Source
from loopd.gguf_types import (
    COPY_AGAIN,
    ENGINE_ARCHITECTURES,
    FLOAT32,
    INT32,
    INTEGERS,
    NOT_CHAT_ARCHITECTURES,
    RECURRENT_ARCHITECTURES,
    SPARSE_BLOCK_ARCHITECTURES,
    STRING,
    TOKENIZERS,
    UINT32,
    GgufError,
    Limits,
)

_BLOCK: Final = re.compile(r"(?:dec\.)?blk\.(\d{1,9})\.")
_MOST_HEADS: Final = 65_536
_LAST_TOKEN_TYPE: Final = 6
_TOKENIZER: Final = "tokenizer.ggml."
#: Ids that the engine stops or starts at. Others (padding, mask) it ignores when they are out of range.
_SPECIAL: Final = ("bos", "eos", "eot", "eom")


class Metadata:
    """Typed, checked reading of the metadata of one file."""

    def __init__(self, layout: Layout, limits: Limits) -> None:
        self.layout = layout
        self.limits = limits
        self.architecture = self.text("general.architecture")

    def text(self, key: str) -> str:
        """Return a string that must be there. Raises GgufError."""
        value = self.find_text(key)
        if not value:
            raise GgufError("missing_key", f"metadata key {key} is missing or empty; convert the model again")
        return value

    def find_text(self, key: str) -> str | None:
        """Return a string, None where absent. Raises GgufError "wrong_type"."""
        value = self.layout.metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise GgufError("wrong_type", f"metadata key {key} must be a string; convert the model again")
        return value

    def find_count(self, key: str) -> int | None:
        """Return a number that is not negative, None where absent. Raises GgufError "wrong_type"."""
        value = self.layout.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or self.layout.types[key] not in INTEGERS or value < 0:
            raise GgufError("wrong_type", f"metadata key {key} must be a whole number from 0; convert the model again")
        return value

    def count(self, name: str, most: int) -> int:
        """Return ``<architecture>.<name>``, from 1 to ``most``. Raises GgufError "<name>_invalid"."""
        key = f"{self.architecture}.{name}"
        value = self.find_count(key)
        if value is None:
            raise GgufError("missing_key", f"metadata key {key} is missing; convert the model again")
        if not 1 <= value <= most:
            raise GgufError(f"{name}_invalid", f"{key} is {value}, not from 1 to {most}; convert the model again")
        return value

    def by_block(self, name: str, blocks: int) -> Sequence[int] | None:
        """Return one number for each block, from one number or an array; None where absent."""
        key = f"{self.architecture}.{name}"
        value = self.layout.metadata.get(key)
        if not isinstance(value, ArrayValue):
            single = self.find_count(key)
            return None if single is None else (single,) * blocks
        if value.element not in INTEGERS:
            raise GgufError("wrong_type", f"array {key} must hold whole numbers; convert the model again")
        if value.count != blocks or value.numbers is None:
            raise GgufError(
                "array_length_mismatch", f"array {key} has {value.count} entries for {blocks} blocks; {COPY_AGAIN}"
            )
        return tuple(int(number) for number in value.numbers)

    def find_array(self, key: str) -> ArrayValue | None:
        """Return an array, None where absent. Raises GgufError "wrong_type"."""
        value = self.layout.metadata.get(key)
        if value is not None and not isinstance(value, ArrayValue):
            raise GgufError("wrong_type", f"metadata key {key} must be an array; convert the model again")
        return value


def check_kind(metadata: Metadata) -> None:
    """Refuse what is no whole chat model: adapters, projectors, shards, embedders, unknown architectures."""
    kind = metadata.find_text("general.type") or "model"
    if kind != "model":
        raise GgufError("not_a_model", f"general.type is {kind[:40]!r}: not a model by itself; give the base model")
    if (metadata.find_count("split.count") or 0) > 1:
        raise GgufError("split_file", "the file is one part of several; merge them with llama-gguf-split first")
    name = metadata.architecture[:80]
    if name in NOT_CHAT_ARCHITECTURES:
        raise GgufError("architecture_not_chat", f"architecture {name} embeds or encodes and can't chat; give another")
    if name not in ENGINE_ARCHITECTURES:
        raise GgufError(
            "architecture_unknown", f"the engine knows no architecture {name!r}; update it or convert again"
        )


def check_shape(metadata: Metadata) -> tuple[int, int, int]:
    """Hold sizes against the tensors; return context length, blocks and embedding length. Raises GgufError."""
    limits = metadata.limits
    blocks = metadata.count("block_count", limits.blocks)
    width = metadata.count("embedding_length", limits.embedding_length)
    context = metadata.count("context_length", limits.context_length)
    _check_numbers(metadata)
    _check_heads(metadata, blocks, width)
    _check_experts(metadata)
    _check_blocks(metadata, blocks)
    return context, blocks, width


def _check_numbers(metadata: Metadata) -> None:
    for key, value in metadata.layout.metadata.items():
        if isinstance(value, float) and not isfinite(value):
            raise GgufError("value_not_finite", f"metadata key {key} is {value}; convert the model again")


def _check_heads(metadata: Metadata, blocks: int, width: int) -> None:
    if metadata.architecture in RECURRENT_ARCHITECTURES:
        return
    heads = metadata.by_block("attention.head_count", blocks)
    if heads is None:
        raise GgufError("missing_key", f"metadata key {metadata.architecture}.attention.head_count is missing")
    groups = metadata.by_block("attention.head_count_kv", blocks) or heads
    single_length = metadata.find_count(f"{metadata.architecture}.attention.key_length") is None
    if not any(heads):
        raise GgufError("head_count_invalid", "attention.head_count is 0; convert the model again")
    for head, group in zip(heads, groups, strict=True):
        if not (0 <= head <= _MOST_HEADS and 0 <= group <= _MOST_HEADS):
            raise GgufError("head_count_invalid", f"attention.head_count {head}, head_count_kv {group}; {COPY_AGAIN}")
        if head and single_length and width % head:
            raise GgufError(
                "head_count_invalid", f"embedding_length {width} does not divide by head_count {head}; {COPY_AGAIN}"
            )
        if head and group and head % group:
            raise GgufError(
                "head_count_kv_invalid", f"head_count {head} does not divide by head_count_kv {group}; {COPY_AGAIN}"
            )
    if not any(groups):
        raise GgufError("head_count_kv_invalid", "attention.head_count_kv is 0; convert the model again")


def _check_experts(metadata: Metadata) -> None:
    experts = metadata.find_count(f"{metadata.architecture}.expert_count") or 0
    used = metadata.find_count(f"{metadata.architecture}.expert_used_count") or 0
    if experts > metadata.limits.experts or used > experts or (experts and not used):
        raise GgufError(
            "expert_count_invalid", f"{used} of {experts} experts used, at most {metadata.limits.experts}; {COPY_AGAIN}"
        )


def _check_blocks(metadata: Metadata, blocks: int) -> None:
    found: set[int] = set()
    for tensor in metadata.layout.tensors:
        match = _BLOCK.match(tensor.name)
        if match:
            number = int(match[1])
            if number >= blocks:
                raise GgufError(
                    "block_count_mismatch",
                    f"tensor {tensor.name} is of block {number}, the metadata says {blocks} blocks; {COPY_AGAIN}",
                )
            found.add(number)
    # Blocks that predict further tokens may be left out by the converter; they are the last ones.
    spare = metadata.find_count(f"{metadata.architecture}.nextn_predict_layers") or 0
    missing = sorted(set(range(max(1, blocks - spare))) - found)
    if missing and not (found and metadata.architecture in SPARSE_BLOCK_ARCHITECTURES):
        raise GgufError(
            "block_count_mismatch",
            f"the metadata says {blocks} blocks, block {missing[0]} has no tensor; convert the model again",
        )


def check_vocabulary(metadata: Metadata, source: Source, width: int) -> int:
    """Hold the vocabulary against its own arrays and the embedding; return its size. Raises GgufError."""
    model = metadata.text(f"{_TOKENIZER}model")
    if model not in TOKENIZERS:
        raise GgufError("tokenizer_unknown", f"the engine knows no tokenizer {model[:40]!r}; convert the model again")
    metadata.find_text(f"{_TOKENIZER}pre")
    tokens = metadata.find_array(f"{_TOKENIZER}tokens")
    if tokens is None or tokens.count == 0:
        raise GgufError("missing_key", f"{_TOKENIZER}tokens is missing or empty; convert the model again")
    if tokens.element != STRING:
        raise GgufError("wrong_type", f"{_TOKENIZER}tokens must hold strings; convert the model again")
    if metadata.layout.duplicate_token is not None:
        raise GgufError(
            "duplicate_token", f"token {metadata.layout.duplicate_token} has the text of an earlier one; {COPY_AGAIN}"
        )
    merges = metadata.find_array(f"{_TOKENIZER}merges")
    if model == "gpt2" and merges is None:
        raise GgufError("missing_key", f"{_TOKENIZER}merges is missing; convert the model again")
    if merges is not None and merges.element != STRING:
        raise GgufError("wrong_type", f"{_TOKENIZER}merges must hold strings; convert the model again")
    _check_token_arrays(metadata, source, tokens.count)
    _check_special(metadata, tokens.count)
    _check_embedding(metadata, width, tokens.count)
    return tokens.count


def _check_token_arrays(metadata: Metadata, source: Source, vocabulary: int) -> None:
    for name, elements in (("scores", {FLOAT32}), ("token_type", {INT32, UINT32})):
        key = f"{_TOKENIZER}{name}"
        values = metadata.find_array(key)
        if values is None:
            continue
        if values.element not in elements:
            raise GgufError("wrong_type", f"array {key} holds another type than the engine reads; {COPY_AGAIN}")
        if values.count != vocabulary:
            raise GgufError(
                "vocabulary_mismatch", f"{key} has {values.count} entries for {vocabulary} tokens; {COPY_AGAIN}"
            )
        # 4 bytes each, at most limits.strings of them.
        raw = source.at(values.offset, vocabulary * 4)
        if name == "token_type":
            if max(struct.unpack(f"<{vocabulary}I", raw)) > _LAST_TOKEN_TYPE:
                raise GgufError("token_type_invalid", f"{key} holds a type above {_LAST_TOKEN_TYPE}; {COPY_AGAIN}")
        elif any(map(isnan, struct.unpack(f"<{vocabulary}f", raw))):
            raise GgufError("value_not_finite", f"{key} holds not-a-number; {COPY_AGAIN}")


def _check_special(metadata: Metadata, vocabulary: int) -> None:
    ids = {f"{_TOKENIZER}{name}_token_id" for name in _SPECIAL}
    numbers = {key: metadata.find_count(key) for key in sorted(ids)}
    many = metadata.find_array(f"{_TOKENIZER}eos_token_ids")
    if many is not None and many.element not in INTEGERS:
        raise GgufError("wrong_type", f"{_TOKENIZER}eos_token_ids must hold whole numbers; {COPY_AGAIN}")
    for index, one in enumerate((many.numbers or ()) if many is not None else ()):
        numbers[f"{_TOKENIZER}eos_token_ids[{index}]"] = int(one)
    for key, number in numbers.items():
        if number is not None and not 0 <= number < vocabulary:
            raise GgufError("token_id_invalid", f"{key} is {number} of {vocabulary} tokens; convert the model again")


def _check_embedding(metadata: Metadata, width: int, vocabulary: int) -> None:
    tensor = next((one for one in metadata.layout.tensors if one.name == "token_embd.weight"), None)
    if tensor is None:
        raise GgufError("tensor_missing", "tensor token_embd.weight is missing; convert the model again")
    if tensor.dims[0] != width:
        raise GgufError(
            "embedding_length_mismatch",
            f"token_embd.weight has rows of {tensor.dims[0]}, embedding_length says {width}; {COPY_AGAIN}",
        )
    if len(tensor.dims) != 2 or tensor.dims[1] != vocabulary:  # noqa: PLR2004 - a matrix
        raise GgufError(
            "vocabulary_mismatch",
            f"token_embd.weight has the shape {list(tensor.dims)} for {vocabulary} tokens; {COPY_AGAIN}",
        )
    stated = metadata.find_count(f"{metadata.architecture}.vocab_size")
    if stated is not None and stated != vocabulary:
        raise GgufError("vocabulary_mismatch", f"vocab_size is {stated}, there are {vocabulary} tokens; {COPY_AGAIN}")
