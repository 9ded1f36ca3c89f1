"""Every class of malformed file, each with the one code that it must be refused with."""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from loopd.gguf import GgufError, Limits, inspect

ALIGNMENT = 32
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
SCALAR = dict(zip((U8, I8, U16, I16, U32, I32, F32, BOOL, U64, I64, F64), "BbHhIifBQqd", strict=True))


def text(words: str | bytes) -> bytes:
    raw = words.encode() if isinstance(words, str) else words
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: object) -> bytes:
    """The type and value of one metadata entry; an array's content is (element type, elements)."""
    if kind == STRING:
        assert isinstance(content, str | bytes)
        return struct.pack("<I", kind) + text(content)
    if kind == ARRAY:
        assert isinstance(content, tuple)
        element, elements = content
        packed = b"".join(value(element, one)[4:] for one in elements)
        return struct.pack("<IIQ", kind, element, len(elements)) + packed
    return struct.pack("<I" + SCALAR[kind], kind, content)


@dataclass
class Entry:
    """One row of the tensor table; the offset is where the tensor lies by default."""

    name: str | bytes
    dims: tuple[int, ...]
    kind: int = 0
    data: bytes = b""
    offset: int | None = None
    rank: int | None = None
    name_length: int | None = None


@dataclass
class Model:
    """A file in parts, so that a test can spoil exactly one of them."""

    magic: bytes = b"GGUF"
    version: int = 3
    #: A key of None: the bytes stand for the whole entry.
    metadata: list[tuple[str | bytes | None, bytes]] = field(default_factory=list)
    tensors: list[Entry] = field(default_factory=list)
    entry_count: int | None = None
    tensor_count: int | None = None
    tail: bytes = b""

    def put(self, key: str, raw: bytes) -> None:
        """Replace or add a metadata entry."""
        self.drop(key)
        self.metadata.append((key, raw))

    def drop(self, key: str) -> None:
        self.metadata = [(name, raw) for name, raw in self.metadata if name != key]

    def tensor(self, name: str) -> Entry:
        return next(one for one in self.tensors if one.name == name)

    def build(self) -> bytes:
        """The bytes of the file."""
        out = bytearray(self.magic + struct.pack("<I", self.version))
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        entries = len(self.metadata) if self.entry_count is None else self.entry_count
        out += struct.pack("<QQ", tensors, entries)
        for key, raw in self.metadata:
            out += (b"" if key is None else text(key)) + raw
        data = bytearray()
        for one in self.tensors:
            data += bytes(-len(data) % ALIGNMENT)
            offset = len(data) if one.offset is None else one.offset
            rank = len(one.dims) if one.rank is None else one.rank
            named = text(one.name)
            out += named if one.name_length is None else struct.pack("<Q", one.name_length) + named[8:]
            out += struct.pack("<I", rank) + struct.pack(f"<{len(one.dims)}Q", *one.dims)
            out += struct.pack("<IQ", one.kind, offset)
            data += one.data
        out += bytes(-len(out) % ALIGNMENT)
        return bytes(out + data + self.tail)


def floats(*dims: int) -> bytes:
    count = 1
    for length in dims:
        count *= length
    return struct.pack(f"<{count}f", *((number % 7 - 3) / 8 + 0.01 for number in range(count)))


TOKENS = [*"abcdefghijklmn", "<s>", "</s>"]


def sound() -> Model:
    """A valid model of two blocks and sixteen tokens."""
    model = Model()
    for key, raw in (
        ("general.architecture", value(STRING, "llama")),
        ("general.name", value(STRING, "sound")),
        ("general.file_type", value(U32, 0)),
        ("llama.block_count", value(U32, 2)),
        ("llama.context_length", value(U32, 128)),
        ("llama.embedding_length", value(U32, 8)),
        ("llama.attention.head_count", value(U32, 2)),
        ("llama.attention.head_count_kv", value(U32, 1)),
        ("llama.attention.layer_norm_rms_epsilon", value(F32, 1e-5)),
        ("tokenizer.ggml.model", value(STRING, "gpt2")),
        ("tokenizer.ggml.pre", value(STRING, "smollm")),
        ("tokenizer.ggml.tokens", value(ARRAY, (STRING, TOKENS))),
        ("tokenizer.ggml.scores", value(ARRAY, (F32, [0.0] * 16))),
        ("tokenizer.ggml.token_type", value(ARRAY, (I32, [1] * 14 + [3, 3]))),
        ("tokenizer.ggml.merges", value(ARRAY, (STRING, ["a b"]))),
        ("tokenizer.ggml.bos_token_id", value(U32, 14)),
        ("tokenizer.ggml.eos_token_id", value(U32, 15)),
        ("tokenizer.ggml.add_bos_token", value(BOOL, 0)),
        ("tokenizer.chat_template", value(STRING, "{{ messages }}")),
    ):
        model.put(key, raw)
    for name, dims in (
        ("token_embd.weight", (8, 16)),
        ("blk.0.attn_q.weight", (8, 8)),
        ("blk.1.attn_q.weight", (8, 8)),
        ("output_norm.weight", (8,)),
    ):
        model.tensors.append(Entry(name, dims, data=floats(*dims)))
    return model


def test_the_sound_model_passes(tmp_path: Path) -> None:
    """Guards the table below: each row must fail for its own defect, not for one in the base."""
    path = tmp_path / "sound.gguf"
    path.write_bytes(sound().build())
    summary = inspect(path)
    assert (summary.architecture, summary.vocab_size, summary.tensor_count) == ("llama", 16, 4)
    assert (summary.eos_token_id, summary.eos_text, summary.context_length) == (15, "</s>", 128)
    assert summary.parameter_count == 8 * 16 + 64 + 64 + 8


def put(key: str, kind: int, content: object) -> Callable[[Model], None]:
    return lambda model: model.put(key, value(kind, content))


def drop(key: str) -> Callable[[Model], None]:
    return lambda model: model.drop(key)


def raw(key: str, content: bytes) -> Callable[[Model], None]:
    return lambda model: model.put(key, content)


def header(**fields: object) -> Callable[[Model], None]:
    def spoil(model: Model) -> None:
        for name, content in fields.items():
            setattr(model, name, content)

    return spoil


def tensor(which: str, /, **fields: object) -> Callable[[Model], None]:
    def spoil(model: Model) -> None:
        one = model.tensor(which)
        # The fields come from the table as objects; each is the type of the attribute that it names.
        model.tensors[model.tensors.index(one)] = replace(one, **fields)  # type: ignore[arg-type]

    return spoil


def metadata_first(key: str | bytes | None, content: bytes) -> Callable[[Model], None]:
    return lambda model: model.metadata.insert(0, (key, content))


EMBED, QUERY, LAST = "token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight"
HUGE = 1 << 61
ARRAY_HEAD = struct.Struct("<IIQ")

DEFECTS: list[tuple[str, Callable[[Model], None], str]] = [
    ("wrong magic", header(magic=b"GGUX"), "bad_magic"),
    ("zip file", header(magic=b"PK\x03\x04"), "bad_magic"),
    ("byte-swapped magic", header(magic=b"FUGG"), "bad_magic"),
    ("git lfs pointer", header(magic=b"version https://git-lfs.example/spec/v1\n"), "bad_magic"),
    ("web page", header(magic=b"<!DOCTYPE html>"), "bad_magic"),
    ("version 0", header(version=0), "big_endian"),
    ("version 1", header(version=1), "version_unsupported"),
    ("version 4", header(version=4), "version_unsupported"),
    ("big-endian version", header(version=0x03000000), "big_endian"),
    ("tensor count of 2^61", header(tensor_count=HUGE), "too_many_tensors"),
    ("tensor count of 2^64 - 1", header(tensor_count=(1 << 64) - 1), "too_many_tensors"),
    ("metadata count of 2^61", header(entry_count=HUGE), "too_many_keys"),
    ("metadata count past the file", header(entry_count=4000), "truncated"),
    ("tensor count past the file", header(tensor_count=60_000), "truncated"),
    ("one metadata entry too many", header(entry_count=20), "tensor_name_too_long"),
    ("vocabulary alone", header(tensors=[]), "no_tensors"),
    ("key length of 2^61", metadata_first(None, struct.pack("<Q", HUGE)), "key_too_long"),
    ("key empty", metadata_first(b"", value(U32, 1)), "key_empty"),
    ("key not UTF-8", metadata_first(b"general.\xff\xfe", value(U32, 1)), "key_not_utf8"),
    ("key with NUL", metadata_first(b"general\0name", value(U32, 1)), "key_has_nul"),
    ("key of 64 KiB", metadata_first(b"k" * 65_536, value(U32, 1)), "key_too_long"),
    ("key twice", metadata_first("general.architecture", value(STRING, "llama")), "duplicate_key"),
    ("value type 13", raw("x.y", struct.pack("<II", 13, 0)), "unknown_value_type"),
    ("value type 2^32 - 1", raw("x.y", struct.pack("<II", 0xFFFFFFFF, 0)), "unknown_value_type"),
    ("string length of 2^61", raw("x.y", struct.pack("<IQ", STRING, HUGE)), "string_too_long"),
    ("string length of 2^64 - 1", raw("x.y", struct.pack("<IQ", STRING, (1 << 64) - 1)), "string_too_long"),
    ("string past the file", raw("x.y", struct.pack("<IQ", STRING, 900_000)), "truncated"),
    ("string not UTF-8", put("general.name", STRING, b"\xff\xfe"), "string_not_utf8"),
    ("string with NUL", put("general.name", STRING, b"a\0b"), "string_has_nul"),
    ("chat template of 300 KB", put("tokenizer.chat_template", STRING, "x" * 300_000), "string_too_long"),
    ("bool of 2", put("tokenizer.ggml.add_bos_token", BOOL, 2), "bool_invalid"),
    ("bool of 255 in an array", put("x.y", ARRAY, (BOOL, [0, 1, 255])), "bool_invalid"),
    ("array of arrays", raw("x.y", ARRAY_HEAD.pack(ARRAY, ARRAY, 1)), "array_nested"),
    ("array of type 99", raw("x.y", ARRAY_HEAD.pack(ARRAY, 99, 1)), "unknown_value_type"),
    ("array length of 2^61", raw("x.y", ARRAY_HEAD.pack(ARRAY, U8, HUGE)), "array_too_long"),
    ("string array length of 2^61", raw("x.y", ARRAY_HEAD.pack(ARRAY, STRING, HUGE)), "array_too_long"),
    ("number array past the file", raw("x.y", ARRAY_HEAD.pack(ARRAY, U64, 1_000_000)), "truncated"),
    ("string array past the file", raw("x.y", ARRAY_HEAD.pack(ARRAY, STRING, 1_000_000)), "truncated"),
    (
        "string in an array of 2^61",
        raw("x.y", ARRAY_HEAD.pack(ARRAY, STRING, 2) + text("a") + struct.pack("<Q", HUGE)),
        "string_too_long",
    ),
    ("no architecture", drop("general.architecture"), "missing_key"),
    ("architecture is a number", put("general.architecture", U32, 1), "wrong_type"),
    ("architecture of nobody", put("general.architecture", STRING, "hal9000"), "architecture_unknown"),
    ("embedder", put("general.architecture", STRING, "bert"), "architecture_not_chat"),
    ("adapter of no kind", put("general.type", STRING, "adapter"), "missing_key"),
    ("projector", put("general.type", STRING, "mmproj"), "not_a_model"),
    ("shard", put("split.count", U16, 4), "split_file"),
    ("alignment 0", put("general.alignment", U32, 0), "alignment_invalid"),
    ("alignment 4", put("general.alignment", U32, 4), "alignment_invalid"),
    ("alignment 48", put("general.alignment", U32, 48), "alignment_invalid"),
    ("alignment 2^31", put("general.alignment", U32, 1 << 31), "alignment_invalid"),
    ("alignment as 64 bits", put("general.alignment", U64, 32), "wrong_type"),
    ("alignment as text", put("general.alignment", STRING, "32"), "wrong_type"),
    ("no block count", drop("llama.block_count"), "missing_key"),
    ("block count 0", put("llama.block_count", U32, 0), "block_count_invalid"),
    ("block count 10^9", put("llama.block_count", U32, 10**9), "block_count_invalid"),
    ("block count -1", put("llama.block_count", I32, -1), "wrong_type"),
    ("block count as text", put("llama.block_count", STRING, "2"), "wrong_type"),
    ("block count as bool", put("llama.block_count", BOOL, 1), "wrong_type"),
    ("fewer blocks than tensors", put("llama.block_count", U32, 1), "block_count_mismatch"),
    ("more blocks than tensors", put("llama.block_count", U32, 3), "block_count_mismatch"),
    ("context length 0", put("llama.context_length", U32, 0), "context_length_invalid"),
    ("context length 2^40", put("llama.context_length", U64, 1 << 40), "context_length_invalid"),
    ("no context length", drop("llama.context_length"), "missing_key"),
    ("embedding length 0", put("llama.embedding_length", U32, 0), "embedding_length_invalid"),
    ("embedding length of another model", put("llama.embedding_length", U32, 16), "embedding_length_mismatch"),
    ("epsilon not a number", put("llama.attention.layer_norm_rms_epsilon", F32, float("nan")), "value_not_finite"),
    ("no head count", drop("llama.attention.head_count"), "missing_key"),
    ("head count 0", put("llama.attention.head_count", U32, 0), "head_count_invalid"),
    ("head count 3 for width 8", put("llama.attention.head_count", U32, 3), "head_count_invalid"),
    ("head count 2^31", put("llama.attention.head_count", U32, 1 << 31), "head_count_invalid"),
    (
        "head count as an array of three",
        put("llama.attention.head_count", ARRAY, (U32, [2] * 3)),
        "array_length_mismatch",
    ),
    ("head count as texts", put("llama.attention.head_count", ARRAY, (STRING, ["2", "2"])), "wrong_type"),
    ("negative head count", put("llama.attention.head_count", ARRAY, (I32, [-2, 2])), "head_count_invalid"),
    ("key and value heads 0", put("llama.attention.head_count_kv", U32, 0), "head_count_kv_invalid"),
    ("more key heads than heads", put("llama.attention.head_count_kv", U32, 4), "head_count_kv_invalid"),
    ("10^6 experts", put("llama.expert_count", U32, 10**6), "expert_count_invalid"),
    ("experts used without experts", put("llama.expert_used_count", U32, 2), "expert_count_invalid"),
    ("no tokenizer", drop("tokenizer.ggml.model"), "missing_key"),
    ("tokenizer of nobody", put("tokenizer.ggml.model", STRING, "abacus"), "tokenizer_unknown"),
    ("no tokens", drop("tokenizer.ggml.tokens"), "missing_key"),
    ("empty vocabulary", put("tokenizer.ggml.tokens", ARRAY, (STRING, [])), "missing_key"),
    ("tokens are numbers", put("tokenizer.ggml.tokens", ARRAY, (U32, [1] * 16)), "wrong_type"),
    ("tokens are one text", put("tokenizer.ggml.tokens", STRING, "abc"), "wrong_type"),
    ("token twice", put("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", *TOKENS[:-1]])), "duplicate_token"),
    ("a token short", put("tokenizer.ggml.tokens", ARRAY, (STRING, TOKENS[:-1])), "vocabulary_mismatch"),
    ("no merges", drop("tokenizer.ggml.merges"), "missing_key"),
    ("merges are numbers", put("tokenizer.ggml.merges", ARRAY, (U32, [1])), "wrong_type"),
    ("scores short", put("tokenizer.ggml.scores", ARRAY, (F32, [0.0] * 15)), "vocabulary_mismatch"),
    ("scores are whole numbers", put("tokenizer.ggml.scores", ARRAY, (I32, [0] * 16)), "wrong_type"),
    ("score not a number", put("tokenizer.ggml.scores", ARRAY, (F32, [float("nan")] * 16)), "value_not_finite"),
    ("token types short", put("tokenizer.ggml.token_type", ARRAY, (I32, [1] * 15)), "vocabulary_mismatch"),
    ("token types as bytes", put("tokenizer.ggml.token_type", ARRAY, (U8, [1] * 16)), "wrong_type"),
    ("token type 77", put("tokenizer.ggml.token_type", ARRAY, (I32, [77] * 16)), "token_type_invalid"),
    ("end token beyond the vocabulary", put("tokenizer.ggml.eos_token_id", U32, 16), "token_id_invalid"),
    ("end token 2^32 - 1", put("tokenizer.ggml.eos_token_id", U32, 0xFFFFFFFF), "token_id_invalid"),
    ("end token as text", put("tokenizer.ggml.eos_token_id", STRING, "</s>"), "wrong_type"),
    ("begin token beyond the vocabulary", put("tokenizer.ggml.bos_token_id", U32, 99), "token_id_invalid"),
    ("turn end beyond the vocabulary", put("tokenizer.ggml.eot_token_id", U32, 99), "token_id_invalid"),
    ("further end tokens", put("tokenizer.ggml.eos_token_ids", ARRAY, (I32, [15, -4])), "token_id_invalid"),
    ("further end tokens as floats", put("tokenizer.ggml.eos_token_ids", ARRAY, (F32, [1.0])), "wrong_type"),
    ("vocabulary size of another model", put("llama.vocab_size", U32, 17), "vocabulary_mismatch"),
    ("tensor name empty", tensor(QUERY, name=""), "tensor_name_empty"),
    ("tensor name of 64 bytes", tensor(QUERY, name="n" * 64), "tensor_name_too_long"),
    ("tensor name length of 2^61", tensor(QUERY, name_length=HUGE), "tensor_name_too_long"),
    ("tensor name with NUL", tensor(QUERY, name=b"blk.0.attn_q\0.weight"), "tensor_name_has_nul"),
    ("tensor name not UTF-8", tensor(QUERY, name=b"blk.0.\xff"), "tensor_name_not_utf8"),
    ("tensor twice", tensor(QUERY, name=EMBED), "tensor_duplicate"),
    ("no embedding", tensor(EMBED, name="tok.weight"), "tensor_missing"),
    ("rank 0", tensor(QUERY, rank=0), "dimension_count"),
    ("rank 5", tensor(QUERY, dims=(8, 8, 1, 1, 1)), "dimension_count"),
    ("rank 2^32 - 1", tensor(QUERY, rank=0xFFFFFFFF), "dimension_count"),
    ("a dimension of 0", tensor(QUERY, dims=(8, 0)), "dimension_zero"),
    ("dimensions of 2^63", tensor(QUERY, dims=(1 << 32, 1 << 31)), "dimension_overflow"),
    ("dimensions that wrap to 64", tensor(QUERY, dims=(1 << 32, 1 << 32, 64)), "dimension_overflow"),
    ("bytes past 2^63", tensor(QUERY, dims=(1 << 61, 2)), "dimension_overflow"),
    ("withdrawn type", tensor(QUERY, kind=4), "unknown_tensor_type"),
    ("type 2^32 - 1", tensor(QUERY, kind=0xFFFFFFFF), "unknown_tensor_type"),
    ("type newer than the engine", tensor(QUERY, kind=40), "tensor_type_too_new"),
    ("rows not whole blocks", tensor(QUERY, kind=8), "row_not_whole_blocks"),
    ("offset not aligned", tensor(QUERY, offset=513), "offset_misaligned"),
    ("offset into the one before", tensor(QUERY, offset=480), "tensor_overlap"),
    ("all tensors on one another", tensor(QUERY, offset=0), "tensor_overlap"),
    ("offset of 2^63", tensor(QUERY, offset=1 << 63), "tensor_gap"),
    ("offset past the file", tensor(LAST, offset=1 << 20), "tensor_gap"),
    ("shape larger than its place", tensor(QUERY, dims=(8, 64)), "tensor_overlap"),
    ("last tensor larger than the file", tensor(LAST, dims=(8, 64)), "truncated"),
    ("a megabyte behind the last tensor", header(tail=b"x" * (1 << 20)), "trailing_bytes"),
    ("embedding with one row less", tensor(EMBED, dims=(8, 15), data=floats(8, 15)), "vocabulary_mismatch"),
    ("embedding in one dimension", tensor(EMBED, dims=(8,), data=floats(8)), "vocabulary_mismatch"),
    ("weights of zero", tensor(QUERY, data=bytes(256)), "weights_all_zero"),
    ("last norm of zero", tensor(LAST, data=bytes(32)), "weights_all_zero"),
    ("weights of 0xFF", tensor(QUERY, data=b"\xff" * 256), "weights_not_finite"),
    ("one infinity", tensor(QUERY, data=floats(8, 7) + struct.pack("<8f", *[float("inf")] * 8)), "weights_not_finite"),
]


@pytest.mark.parametrize(("spoil", "code"), [row[1:] for row in DEFECTS], ids=[row[0] for row in DEFECTS])
def test_a_malformed_file_is_refused_by_its_own_code(tmp_path: Path, spoil: Callable[[Model], None], code: str) -> None:
    """Guards against crafted files that killed, or were served by, the bare engine."""
    model = sound()
    spoil(model)
    path = tmp_path / "bad.gguf"
    path.write_bytes(model.build())
    with pytest.raises(GgufError) as caught:
        inspect(path)
    assert caught.value.code == code
    assert len(str(caught.value)) < 400


def test_the_table_holds_many_classes_of_defects() -> None:
    """The requirement names forty; a row that is deleted by mistake is seen here."""
    assert len({name for name, *_ in DEFECTS}) == len(DEFECTS) >= 100
    assert len({code for *_, code in DEFECTS}) >= 40


def quantised(kind: int, size: int) -> Callable[[bytes], Model]:
    def build(block: bytes) -> Model:
        model = sound()
        assert len(block) == size
        model.put("llama.embedding_length", value(U32, 256))
        model.tensors = [
            Entry(one.name, (256, 16 if one.name == EMBED else 1), kind, block * (16 if one.name == EMBED else 1))
            for one in model.tensors
        ]
        return model

    return build


NAN, ONE = b"\xff\x7e", b"\x00\x3c"


def blocks_with(kind: int) -> Iterable[tuple[str, int, bytes, bytes]]:
    """For one type: a sound row of 256 elements, and one with a scale that is no number."""
    from loopd.gguf_types import TENSOR_TYPES  # noqa: PLC0415 - the test's own table is made from the parser's

    form = TENSOR_TYPES[kind]
    for scale in form.scales:
        good = bytearray(b"\x11" * form.size)
        bad = bytearray(good)
        bad[scale : scale + 2] = NAN
        times = 256 // form.block
        yield f"{form.name}+{scale}", kind, bytes(good) * times, bytes(good) * (times - 1) + bytes(bad)


SCALED = [row for kind in (2, 3, 6, 7, 8, 9, *range(10, 15), *range(16, 24), 34, 35) for row in blocks_with(kind)]


@pytest.mark.parametrize(("kind", "good", "bad"), [row[1:] for row in SCALED], ids=[row[0] for row in SCALED])
def test_a_quantised_scale_that_is_no_number_is_found(tmp_path: Path, kind: int, good: bytes, bad: bytes) -> None:
    """Guards the table of block layouts: a wrong scale offset would pass bad weights or refuse good ones."""
    path = tmp_path / "quantised.gguf"
    build = quantised(kind, len(good))
    path.write_bytes(build(good).build())
    inspect(path)
    path.write_bytes(build(bad).build())
    with pytest.raises(GgufError) as caught:
        inspect(path)
    assert caught.value.code == "weights_not_finite"


HALVES = [
    (1, ONE, NAN),
    (1, ONE, b"\x00\x7c"),
    (30, b"\x80\x3f", b"\xc0\x7f"),
    (30, b"\x7f\x7f", b"\x80\xff"),
    (28, struct.pack("<d", 1), struct.pack("<d", float("inf"))),
]


@pytest.mark.parametrize(("kind", "good", "bad"), HALVES)
def test_a_float_that_is_no_number_is_found(tmp_path: Path, kind: int, good: bytes, bad: bytes) -> None:
    """Guards the 16-bit and 64-bit floats; a large finite bfloat16 is not taken for infinity."""
    path = tmp_path / "floats.gguf"
    build = quantised(kind, 256 * len(good))
    path.write_bytes(build(good * 256).build())
    inspect(path)
    path.write_bytes(build(good * 255 + bad).build())
    with pytest.raises(GgufError) as caught:
        inspect(path)
    assert caught.value.code == "weights_not_finite"


def test_special_scales_that_are_no_numbers_are_found(tmp_path: Path) -> None:
    """Q8_K has a 32-bit scale, MXFP4 an 8-bit exponent whose 255 is not a number."""
    for kind, good, bad in (
        (15, struct.pack("<f", 1.0) + b"\1" * 288, struct.pack("<f", float("nan")) + b"\1" * 288),
        (39, b"\x70" * 17 * 8, b"\xff" + b"\x70" * (17 * 8 - 1)),
    ):
        path = tmp_path / f"{kind}.gguf"
        build = quantised(kind, len(good))
        path.write_bytes(build(good).build())
        inspect(path)
        path.write_bytes(build(bad).build())
        with pytest.raises(GgufError) as caught:
            inspect(path)
        assert caught.value.code == "weights_not_finite"


def test_smaller_limits_are_obeyed(tmp_path: Path) -> None:
    """Guards that limits are read from the argument and not from the defaults."""
    path = tmp_path / "sound.gguf"
    path.write_bytes(sound().build())
    for limits, code in (
        (Limits(metadata_entries=5), "too_many_keys"),
        (Limits(tensors=3), "too_many_tensors"),
        (Limits(strings=10), "array_too_long"),
        (Limits(header_bytes=100), "header_too_big"),
        (Limits(blocks=1), "block_count_invalid"),
    ):
        with pytest.raises(GgufError) as caught:
            inspect(path, limits)
        assert caught.value.code == code
