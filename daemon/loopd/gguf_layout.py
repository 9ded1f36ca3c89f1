"""gguf_layout: owns reading the container: header, metadata and tensor table, into values that are safe to hold.

No length from the file is believed before it was held against a limit and the bytes that are left, and nothing is
kept whose size the file alone decides. Reads go through one window by pread, not mmap: a file that shrinks under
the reader gives an error, not SIGBUS.
"""

from __future__ import annotations

import os
import struct
from array import array
from dataclasses import dataclass, field, replace
from typing import Final

from loopd.gguf_types import (
    ARRAY,
    BOOL,
    COPY_AGAIN,
    MIB,
    SCALARS,
    STRING,
    TENSOR_TYPES,
    TENSOR_TYPES_TOO_NEW,
    TENSOR_TYPES_WITHDRAWN,
    UINT32,
    GgufError,
    Limits,
    TensorType,
)

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_WINDOW: Final = MIB
_LEAST_HEADER: Final = 24
#: Smallest possible metadata entry and tensor entry: a one-byte name, and a one-byte value or one dimension.
_LEAST_ENTRY: Final = 14
_LEAST_TENSOR: Final = 33
#: Longer strings are checked and dropped, unless their key is asked for; so the whole table stays small.
_KEPT_STRING: Final = 1024
_KEPT_KEY: Final = 256
_KEPT_NUMBERS: Final = 4096
_MAX_DIMENSIONS: Final = 4
#: GGML_MAX_NAME is 64 with the closing NUL.
_MAX_TENSOR_NAME: Final = 63
_DEFAULT_ALIGNMENT: Final = 32
_OLDEST, _NEWEST = 2, 3
_TOKENS: Final = "tokenizer.ggml.tokens"
_LONG_STRINGS: Final = frozenset({"tokenizer.chat_template"})

#: First bytes of what people drop by mistake.
_NOT_GGUF: Final[tuple[tuple[bytes, str], ...]] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the model itself: run `git lfs pull` and copy it again",
    ),
    (b"PK\x03\x04", "a zip or PyTorch file: convert it to GGUF"),
    (b"<", "a web page, not a model: the download failed, fetch it again"),
    (b"{", "JSON, not a model: give the .gguf file"),
    (b"FUGG", "GGUF with its bytes swapped: convert it again for little-endian machines"),
    (b"ggjt", "the format before GGUF: convert the model again"),
    (b"lmgg", "the format before GGUF: convert the model again"),
)


@dataclass(frozen=True, slots=True)
class ArrayValue:
    """An array in the metadata: where its elements lie; ``numbers`` is filled for short arrays of numbers."""

    element: int  #: value type
    count: int
    offset: int  #: bytes from the start of the file
    numbers: tuple[float, ...] | None = None


Scalar = int | float | bool | str
Value = Scalar | ArrayValue


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the tensor table; ``start`` counts bytes from the start of the file."""

    name: str
    dims: tuple[int, ...]
    kind: TensorType
    start: int
    size: int
    elements: int


@dataclass(slots=True)
class Layout:
    """All that the container says, before anything is made of it."""

    size: int
    metadata: dict[str, Value] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    #: Where each token's length field lies, so that the few texts wanted are read later.
    token_offsets: array[int] = field(default_factory=lambda: array("Q"))
    duplicate_token: int | None = None
    data_end: int = 0


class Source:
    """A file read through one window; every read is checked against the size that the file had when opened."""

    def __init__(self, fd: int, size: int, limits: Limits) -> None:
        self.fd = fd
        self.size = size
        self.position = 0
        self._limits = limits
        self._window = b""
        self._base = 0
        self._strings_left = limits.strings

    def at(self, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes at ``offset`` without moving. Raises GgufError when the file is shorter."""
        data = os.pread(self.fd, length, offset)
        if len(data) != length:
            raise truncated(offset + length, min(self.size, offset + len(data)), f"the read at byte {offset}")
        return data

    def need(self, length: int, what: str) -> int:
        """Have ``length`` bytes in the window; return their index in it, and leave the position alone."""
        end = self.position + length
        if end > self.size:
            raise truncated(end, self.size, what)
        if end > self._limits.header_bytes:
            raise GgufError(
                "header_too_big",
                f"{what} at byte {self.position}: the header passes {self._limits.header_bytes} bytes; {COPY_AGAIN}",
            )
        if self.position < self._base or end > self._base + len(self._window):
            self._base = self.position
            self._window = self.at(self.position, min(max(length, _WINDOW), self.size - self.position))
        return self.position - self._base

    def u32(self, what: str) -> int:
        """Read an unsigned 32-bit number."""
        index = self.need(4, what)
        self.position += 4
        value: int = _U32.unpack_from(self._window, index)[0]
        return value

    def u64(self, what: str) -> int:
        """Read an unsigned 64-bit number."""
        index = self.need(8, what)
        self.position += 8
        value: int = _U64.unpack_from(self._window, index)[0]
        return value

    def scalar(self, kind: int, what: str) -> int | float | bool:
        """Read one fixed-size value. Raises GgufError "bool_invalid" for a bool other than 0 and 1."""
        form = SCALARS[kind]
        index = self.need(form.size, what)
        self.position += form.size
        value: int | float = form.unpack_from(self._window, index)[0]
        if kind != BOOL:
            return value
        if value not in (0, 1):
            raise GgufError("bool_invalid", f"{what} is the bool {value}, neither 0 nor 1; {COPY_AGAIN}")
        return bool(value)

    def text(self, limit: int, what: str, code: str = "string") -> bytes:
        """Read a string of at most ``limit`` bytes as bytes. Raises GgufError "<code>_too_long"."""
        length = self.u64(f"the length of {what}")
        if length > limit:
            raise GgufError(
                f"{code}_too_long",
                f"{what} at byte {self.position} claims {length} bytes, more than {limit}; {COPY_AGAIN}",
            )
        index = self.need(length, what)
        self.position += length
        return self._window[index : index + length]

    def skim_strings(self, count: int, what: str, layout: Layout | None) -> None:
        """Pass over ``count`` strings; with a layout, note where each lies and the first that came before."""
        if count > self._strings_left:
            raise GgufError(
                "array_too_long",
                f"{what} claims {count} strings, more than {self._limits.strings} in all; {COPY_AGAIN}",
            )
        self._strings_left -= count
        longest = self._limits.element_bytes
        unpack = _U64.unpack_from
        seen: set[int] = set()
        done = 0
        while done < count:
            index = self.need(8, f"element {done} of {what}")
            window, base = self._window, self._base
            last = len(window) - 8
            while done < count and index <= last:
                (length,) = unpack(window, index)
                if length > longest:
                    raise GgufError(
                        "string_too_long",
                        f"element {done} of {what} at byte {base + index} claims {length} bytes, more than {longest}; "
                        f"{COPY_AGAIN}",
                    )
                after = index + 8 + length
                if after > len(window):
                    break
                if layout is not None:
                    layout.token_offsets.append(base + index)
                    if length:
                        mark = hash(window[index + 8 : after])
                        if mark in seen and layout.duplicate_token is None:
                            layout.duplicate_token = done
                        seen.add(mark)
                index = after
                done += 1
            self.position = base + index
            if done < count and index <= last:
                # This string does not fit into the window: move the window to it, or find that the file ends.
                (length,) = unpack(window, index)
                self.need(8 + length, f"element {done} of {what}")

    def skip(self, length: int, what: str) -> int:
        """Pass over ``length`` bytes; return where they began."""
        start = self.position
        if start + length > self.size:
            raise truncated(start + length, self.size, what)
        if start + length > self._limits.header_bytes:
            raise GgufError("header_too_big", f"{what} passes {self._limits.header_bytes} bytes; {COPY_AGAIN}")
        self.position += length
        return start


def truncated(expected: int, actual: int, what: str) -> GgufError:
    """The error for a file that ends too soon."""
    return GgufError(
        "truncated",
        f"the file ends inside {what}: {actual} bytes, at least {expected} expected; "
        "wait for the copy to finish, or copy it again",
        expected_bytes=expected,
        actual_bytes=actual,
    )


def read_layout(source: Source, limits: Limits) -> Layout:
    """Read the whole header. Raises GgufError naming the first thing that is wrong."""
    _read_magic(source)
    _check_holes(source, limits)
    layout = Layout(size=source.size)
    tensor_count = source.u64("the tensor count")
    entry_count = source.u64("the metadata count")
    if tensor_count > limits.tensors:
        raise GgufError("too_many_tensors", f"the file claims {tensor_count} tensors; {COPY_AGAIN}")
    if entry_count > limits.metadata_entries:
        raise GgufError("too_many_keys", f"the file claims {entry_count} metadata entries; {COPY_AGAIN}")
    least = source.position + entry_count * _LEAST_ENTRY + tensor_count * _LEAST_TENSOR
    if least > source.size:
        raise truncated(least, source.size, "its header")
    _read_metadata(source, layout, entry_count, limits)
    alignment = _alignment(layout, limits)
    if tensor_count == 0:
        raise GgufError(
            "no_tensors",
            "the file has a vocabulary but no weights (vocab-only); give the file with the tensors",
        )
    _read_tensors(source, layout, tensor_count, alignment, limits)
    return layout


def _read_magic(source: Source) -> None:
    head = source.at(0, min(source.size, _LEAST_HEADER))
    if head[:4] != b"GGUF":
        if b"GGUF".startswith(head):
            raise truncated(_LEAST_HEADER, source.size, "its first bytes")
        if not head.strip(b"\0"):
            raise truncated(source.size, 0, "a file of zeros so far")
        known = next((words for start, words in _NOT_GGUF if head.startswith(start)), f"no GGUF model; {COPY_AGAIN}")
        raise GgufError("bad_magic", f"the file begins with {head[:4]!r}: it is {known}")
    source.position = 4
    version = source.u32("the version")
    if version & 0xFFFF == 0:
        raise GgufError(
            "big_endian",
            f"the version reads {version:#x}: a big-endian file; convert it again for this machine",
        )
    if not _OLDEST <= version <= _NEWEST:
        raise GgufError("version_unsupported", f"GGUF version {version}; versions 2 and 3 are read, convert it again")


def _check_holes(source: Source, limits: Limits) -> None:
    """A long hole, or one that reaches the end, is a copy that has not arrived: its zeros must not be judged."""
    position = 0
    while position < source.size:
        try:
            hole = os.lseek(source.fd, position, os.SEEK_HOLE)
        except OSError:
            return  # a file system that knows no holes has none
        if hole >= source.size:
            return
        try:
            after = os.lseek(source.fd, hole, os.SEEK_DATA)
        except OSError:
            after = source.size  # ENXIO: no data follows
        if after >= source.size or after - hole >= limits.hole_bytes:
            raise truncated(source.size, hole, "a hole of bytes that were never written")
        position = after


def _read_metadata(source: Source, layout: Layout, count: int, limits: Limits) -> None:
    seen: set[int] = set()
    for number in range(count):
        raw = source.text(limits.key_bytes, f"metadata key {number}", "key")
        key = _name(raw, f"metadata key {number}", "key")
        if hash(raw) in seen:
            raise GgufError("duplicate_key", f"metadata key {key[:80]!r} comes twice; {COPY_AGAIN}")
        seen.add(hash(raw))
        kind = source.u32(f"the type of {key[:80]}")
        value = _read_value(source, layout, key, kind, limits)
        if value is not None and len(key) <= _KEPT_KEY:
            layout.metadata[key] = value
            layout.types[key] = kind


def _name(raw: bytes, what: str, code: str) -> str:
    if not raw:
        raise GgufError(f"{code}_empty", f"{what} is empty; {COPY_AGAIN}")
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise GgufError(f"{code}_not_utf8", f"{what} is not UTF-8: {raw[:40]!r}; {COPY_AGAIN}") from error
    if "\0" in name:
        raise GgufError(f"{code}_has_nul", f"{what} has a NUL inside: {name[:40]!r}; {COPY_AGAIN}")
    return name


def _read_value(source: Source, layout: Layout, key: str, kind: int, limits: Limits) -> Value | None:
    what = f"metadata key {key[:80]!r}"
    if kind == STRING:
        asked = key in _LONG_STRINGS
        raw = source.text(limits.chat_template_bytes if asked else limits.string_bytes, what)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise GgufError("string_not_utf8", f"{what} is not UTF-8: {raw[:40]!r}; {COPY_AGAIN}") from error
        if "\0" in text:
            raise GgufError("string_has_nul", f"{what} has a NUL inside; {COPY_AGAIN}")
        return text if asked or len(text) <= _KEPT_STRING else None
    if kind == ARRAY:
        return _read_array(source, layout, key, limits)
    if kind not in SCALARS:
        raise GgufError("unknown_value_type", f"{what} has the unknown type {kind}; {COPY_AGAIN}")
    return source.scalar(kind, what)


def _read_array(source: Source, layout: Layout, key: str, limits: Limits) -> ArrayValue:
    what = f"array {key[:80]!r}"
    element = source.u32(f"the element type of {what}")
    count = source.u64(f"the length of {what}")
    if element == ARRAY:
        raise GgufError("array_nested", f"{what} holds arrays; the engine reads flat ones only, {COPY_AGAIN}")
    if element != STRING and element not in SCALARS:
        raise GgufError("unknown_value_type", f"{what} has the unknown element type {element}; {COPY_AGAIN}")
    if count > limits.array_elements:
        raise GgufError("array_too_long", f"{what} claims {count} elements; {COPY_AGAIN}")
    start = source.position
    if element == STRING:
        if start + count * 8 > source.size:
            raise truncated(start + count * 8, source.size, what)
        source.skim_strings(count, what, layout if key == _TOKENS else None)
        return ArrayValue(element, count, start)
    form = SCALARS[element]
    source.skip(count * form.size, what)
    if element == BOOL:
        for offset in range(0, count, _WINDOW):
            if source.at(start + offset, min(_WINDOW, count - offset)).strip(b"\0\1"):
                raise GgufError("bool_invalid", f"{what} holds bools other than 0 and 1; {COPY_AGAIN}")
    if count > _KEPT_NUMBERS:
        return ArrayValue(element, count, start)
    numbers = struct.unpack(f"<{count}{form.format[1:]}", source.at(start, count * form.size))
    return ArrayValue(element, count, start, numbers)


def _alignment(layout: Layout, limits: Limits) -> int:
    value = layout.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if layout.types.get("general.alignment", UINT32) != UINT32 or not isinstance(value, int):
        raise GgufError("wrong_type", f"general.alignment must be an unsigned 32-bit number; {COPY_AGAIN}")
    if value < 8 or value & (value - 1) or value > limits.alignment:  # noqa: PLR2004 - the format's own word size
        raise GgufError(
            "alignment_invalid",
            f"general.alignment is {value}, not a power of two from 8 to {limits.alignment}; {COPY_AGAIN}",
        )
    return value


def _read_tensors(source: Source, layout: Layout, count: int, alignment: int, limits: Limits) -> None:
    seen: set[str] = set()
    offsets: list[int] = []
    for number in range(count):
        what = f"tensor {number}"
        raw = source.text(_MAX_TENSOR_NAME, f"the name of {what}", "tensor_name")
        name = _name(raw, f"the name of {what}", "tensor_name")
        if name in seen:
            raise GgufError("tensor_duplicate", f"tensor {name} comes twice; {COPY_AGAIN}")
        seen.add(name)
        rank = source.u32(f"the rank of {name}")
        if not 1 <= rank <= _MAX_DIMENSIONS:
            raise GgufError("dimension_count", f"tensor {name} claims {rank} dimensions, not 1 to 4; {COPY_AGAIN}")
        dims = tuple(source.u64(f"the shape of {name}") for _ in range(rank))
        kind = _tensor_type(source.u32(f"the type of {name}"), name)
        elements = _elements(name, dims, kind)
        offsets.append(source.u64(f"the offset of {name}"))
        layout.tensors.append(Tensor(name, dims, kind, 0, elements // kind.block * kind.size, elements))
    _place(layout, offsets, source.position, alignment, limits)


def _tensor_type(number: int, name: str) -> TensorType:
    kind = TENSOR_TYPES.get(number)
    if kind is not None:
        return kind
    if number in TENSOR_TYPES_TOO_NEW:
        raise GgufError(
            "tensor_type_too_new",
            f"tensor {name} is {TENSOR_TYPES_TOO_NEW[number]}, which this engine can't load; quantise to another type",
        )
    words = "a type that was withdrawn" if number in TENSOR_TYPES_WITHDRAWN else "no known type"
    raise GgufError("unknown_tensor_type", f"tensor {name} has type {number}, {words}; convert the model again")


def _elements(name: str, dims: tuple[int, ...], kind: TensorType) -> int:
    elements = 1
    for length in dims:
        if length < 1:
            raise GgufError("dimension_zero", f"tensor {name} has the shape {list(dims)}; {COPY_AGAIN}")
        elements *= length
    if elements >> 63 or elements // kind.block * kind.size >> 63:
        raise GgufError("dimension_overflow", f"tensor {name} has the shape {list(dims)}, past 2^63; {COPY_AGAIN}")
    if dims[0] % kind.block:
        raise GgufError(
            "row_not_whole_blocks",
            f"tensor {name}: rows of {dims[0]} don't divide into {kind.name} blocks of {kind.block}; {COPY_AGAIN}",
        )
    return elements


def _place(layout: Layout, offsets: list[int], header_end: int, alignment: int, limits: Limits) -> None:
    """Give each tensor its place; the engine wants them one after the other, each at the next aligned byte."""
    start = _aligned(header_end, alignment)
    expected = 0
    for number, (tensor, offset) in enumerate(zip(layout.tensors, offsets, strict=True)):
        if offset % alignment:
            raise GgufError(
                "offset_misaligned",
                f"tensor {tensor.name} lies at offset {offset}, not a multiple of {alignment}; {COPY_AGAIN}",
            )
        if offset < expected:
            raise GgufError(
                "tensor_overlap",
                f"tensor {tensor.name} at offset {offset} lies on {layout.tensors[number - 1].name}, "
                f"which ends at {expected}; {COPY_AGAIN}",
            )
        if offset > expected:
            raise GgufError(
                "tensor_gap",
                f"tensor {tensor.name} at offset {offset}, not at {expected} where the one before ends; {COPY_AGAIN}",
            )
        layout.tensors[number] = replace(tensor, start=start + offset)
        expected = offset + _aligned(tensor.size, alignment)
    # The padding after the last tensor may be missing: the engine does not ask for it.
    layout.data_end = layout.tensors[-1].start + layout.tensors[-1].size
    if layout.size < layout.data_end:
        raise truncated(layout.data_end, layout.size, "the tensors")
    if layout.size > start + expected + limits.trailing_bytes:
        raise GgufError(
            "trailing_bytes",
            f"{layout.size - start - expected} bytes follow the last tensor, which ends at {start + expected}; "
            f"{COPY_AGAIN}",
        )


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
