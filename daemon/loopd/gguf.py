"""gguf: owns the verdict on a model file: a Summary, or the one defect that keeps it from being loaded.

Written for hostile and half-copied files: bounded memory and time, standard library only, nothing written. The daemon
never calls it in its own process; ``loopd.inspection`` runs it in a disposable one:
``python -m loopd.gguf PATH`` prints one JSON line and exits 0, or 65 with {"error": {"code", "message", …}}.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from loopd.gguf_adapter import AdapterSummary, check_adapter, is_adapter
from loopd.gguf_layout import Layout, Source, read_layout
from loopd.gguf_metadata import Metadata, check_kind, check_shape, check_vocabulary
from loopd.gguf_types import FILE_TYPES, GgufError, Limits
from loopd.gguf_weights import check_weights

__all__ = ["AdapterSummary", "GgufError", "Limits", "Summary", "examine", "inspect", "main"]

EXIT_REFUSED: Final = 65
EXIT_USAGE: Final = 64
_NAME_CHARACTERS: Final = 256
_TOKEN_BYTES: Final = 256
_TOKENIZER: Final = "tokenizer.ggml."


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a sound model file says of itself; sizes in bytes, lengths in tokens or elements."""

    architecture: str
    name: str
    context_length: int
    block_count: int
    embedding_length: int
    vocab_size: int
    tensor_count: int
    parameter_count: int
    file_type: str
    size_bytes: int
    tokenizer_model: str
    tokenizer_pre: str | None
    #: Jinja text as the model's maker wrote it; untrusted.
    chat_template: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    eot_token_id: int | None
    #: Texts of the end tokens, for stop words.
    eos_text: str | None
    eot_text: str | None


def inspect(path: Path, limits: Limits = Limits()) -> Summary:  # noqa: B008 - frozen, all fields are numbers
    """Read and check a model. Raises GgufError as ``examine`` does, and "not_a_model" for an adapter."""
    summary = examine(path, limits)
    if isinstance(summary, AdapterSummary):
        raise GgufError(
            "not_a_model", "general.type is 'adapter': not a model by itself; give it with the base it was trained on"
        )
    return summary


def examine(path: Path, limits: Limits = Limits()) -> Summary | AdapterSummary:  # noqa: B008 - as above
    """Read and check a GGUF file (version 2 or 3, little-endian), at most ``limits.samples`` places of its weights.

    Raises GgufError; its code is "truncated", with expected_bytes and actual_bytes, when the file may still be growing.
    """
    try:
        # Not blocking, so that a named pipe in the directory can't hold the reader.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise GgufError("unreadable", f"{path.name} can't be opened: {error}; check its owner and mode") from error
    try:
        return _inspect(fd, path.name, limits)
    except OSError as error:
        raise GgufError("unreadable", f"{path.name} can't be read: {error}; check the disk") from error
    finally:
        os.close(fd)


def _inspect(fd: int, file_name: str, limits: Limits) -> Summary | AdapterSummary:
    before = os.fstat(fd)
    if not stat.S_ISREG(before.st_mode):
        raise GgufError("not_a_file", f"{file_name} is not a regular file; copy the model itself into the directory")
    source = Source(fd, before.st_size, limits)
    metadata = Metadata(read_layout(source, limits), limits)
    summary = check_adapter(metadata) if is_adapter(metadata) else _model(source, metadata)
    check_weights(source, metadata.layout, limits)
    after = os.fstat(fd)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise GgufError("changed_while_read", f"{file_name} was written to while it was read; it is looked at again")
    return summary


def _model(source: Source, metadata: Metadata) -> Summary:
    check_kind(metadata)
    context, blocks, width = check_shape(metadata)
    vocabulary = check_vocabulary(metadata, source, width)
    layout = metadata.layout
    eos = metadata.find_count(f"{_TOKENIZER}eos_token_id")
    eot = metadata.find_count(f"{_TOKENIZER}eot_token_id")
    return Summary(
        architecture=metadata.architecture,
        name=(metadata.find_text("general.name") or "")[:_NAME_CHARACTERS],
        context_length=context,
        block_count=blocks,
        embedding_length=width,
        vocab_size=vocabulary,
        tensor_count=len(layout.tensors),
        parameter_count=sum(tensor.elements for tensor in layout.tensors),
        file_type=_file_type(metadata),
        size_bytes=layout.size,
        tokenizer_model=metadata.text(f"{_TOKENIZER}model"),
        tokenizer_pre=metadata.find_text(f"{_TOKENIZER}pre"),
        chat_template=metadata.find_text("tokenizer.chat_template"),
        bos_token_id=metadata.find_count(f"{_TOKENIZER}bos_token_id"),
        eos_token_id=eos,
        eot_token_id=eot,
        eos_text=_token(source, layout, eos),
        eot_text=_token(source, layout, eot),
    )


def _file_type(metadata: Metadata) -> str:
    number = metadata.find_count("general.file_type")
    return FILE_TYPES.get(number, "unknown") if number is not None else "unknown"


def _token(source: Source, layout: Layout, number: int | None) -> str | None:
    """Return a token's text, None where it has none that can be a stop word."""
    if number is None:
        return None
    offset = layout.token_offsets[number]
    length = int.from_bytes(source.at(offset, 8), "little")
    if not 0 < length <= _TOKEN_BYTES:
        return None
    try:
        text = source.at(offset + 8, length).decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def main(arguments: list[str] | None = None) -> int:
    """Print the verdict on one file as one JSON line; return the exit status."""
    paths = sys.argv[1:] if arguments is None else arguments
    if len(paths) != 1:
        sys.stderr.write("usage: python -m loopd.gguf PATH\n")
        return EXIT_USAGE
    try:
        answer: dict[str, object] = asdict(examine(Path(paths[0])))
        status = 0
    except GgufError as error:
        answer = {
            "error": {
                "code": error.code,
                "message": str(error),
                "expected_bytes": error.expected_bytes,
                "actual_bytes": error.actual_bytes,
            }
        }
        status = EXIT_REFUSED
    sys.stdout.write(json.dumps(answer) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
