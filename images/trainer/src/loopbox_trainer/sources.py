"""sources: owns reading records from files within limits: JSON lines, a JSON list, both also packed, and Parquet."""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, cast

import msgspec

from loopbox_trainer.errors import TrainerError
from loopbox_trainer.rows import MOST_ROW_BYTES, RowError

MOST_LIST_BYTES: Final = 64 << 20  #: of a file that is one JSON list, which is read whole
_MOST_LINE: Final = 64 << 20  #: of a dump of the agent
_PARQUET_BATCH: Final = 256
_PARQUET: Final = (".parquet", ".pq")


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it was read: its line, or its value where a file has no lines, or why there is none."""

    number: int  #: from 1
    line: bytes = b""
    value: Any = None  #: Any: JSON
    fault: RowError | None = None


@dataclass
class Room:
    """What may still be read, of all sources together."""

    rows: int
    bytes: int
    seconds: float
    clock: Callable[[], float] = time.monotonic
    _until: float = field(init=False)

    def __post_init__(self) -> None:
        self._until = self.clock() + self.seconds

    def take(self, size: int) -> None:
        """Count a record of a size in bytes. Raises TrainerError: too_many_rows, too_many_bytes, too_slow."""
        self.rows -= 1
        self.bytes -= size
        if self.rows < 0:
            raise TrainerError("too_many_rows", "The sources hold more rows than most_rows. Nothing was written.")
        if self.bytes < 0:
            raise TrainerError("too_many_bytes", "The sources hold more bytes than most_bytes. Nothing was written.")
        self.check_time()

    def check_time(self) -> None:
        """Raise TrainerError when the time is over."""
        if self.clock() > self._until:
            raise TrainerError(
                "too_slow", f"It takes more than {self.seconds:g} s (most_seconds). Nothing was written."
            )


def locate(root: Path, place: str) -> Path:
    """Return a file or folder below a root. Raises TrainerError: no_source."""
    path = (root / place).resolve()
    if not path.is_relative_to(root.resolve()) or not path.exists():
        raise TrainerError("no_source", f"There is no {place} among the data sets. Ingest it first.")
    return path


def read_records(path: Path, room: Room) -> Iterator[Record]:
    """Yield a file's records. Raises TrainerError: unreadable, and when a limit is passed."""
    try:
        if path.suffix.lower() in _PARQUET:
            yield from _parquet(path, room)
        else:
            with _opened(path) as file:
                yield from _records(file, path, room)
    except (OSError, EOFError, zlib.error) as error:
        raise TrainerError("unreadable", f"{path.name} cannot be read: {error}. Nothing was written.") from error


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(path, "rb")) if packed else path.open("rb")


def _records(file: IO[bytes], path: Path, room: Room) -> Iterator[Record]:
    head = file.read(64)
    file.seek(0)
    if head.lstrip().startswith(b"["):
        yield from _listed(file, path, room)
        return
    number = 0
    while line := file.readline(MOST_ROW_BYTES + 2):
        number += 1
        room.take(len(line))
        if len(line) > MOST_ROW_BYTES + 1:
            size = len(line)
            while not line.endswith(b"\n") and (line := file.readline(MOST_ROW_BYTES)):
                size += len(line)
                room.bytes -= len(line)
                if room.bytes < 0:
                    room.take(0)
            yield Record(number, fault=RowError("too_large", f"{size:,} bytes, may have {MOST_ROW_BYTES:,}"))
        elif line := line.strip():
            yield Record(number, line)
        else:
            room.rows += 1  # an empty line is nothing


def _listed(file: IO[bytes], path: Path, room: Room) -> Iterator[Record]:
    text = file.read(MOST_LIST_BYTES + 1)
    if len(text) > MOST_LIST_BYTES:
        raise TrainerError(
            "unreadable", f"{path.name} is one JSON list of more than {MOST_LIST_BYTES:,} bytes; use lines."
        )
    try:
        values = msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise TrainerError("unreadable", f"{path.name} is no JSON list: {error}. Nothing was written.") from error
    for number, value in enumerate(values, 1):
        line = bytes(value)
        room.take(len(line))
        yield Record(number, line)


def _parquet(path: Path, room: Room) -> Iterator[Record]:
    from pyarrow import (  # type: ignore[import-untyped]  # it ships no types  # noqa: PLC0415 slow, and seldom needed
        ArrowException,
        parquet,
    )

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
            if sum(group.total_byte_size for group in groups) > room.bytes:
                room.take(room.bytes + 1)
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                each = batch.nbytes // max(1, batch.num_rows)
                for value in batch.to_pylist():
                    number += 1
                    room.take(each)
                    yield Record(number, value=value)
    except ArrowException as error:
        raise TrainerError("unreadable", f"{path.name} is no Parquet file: {error}. Nothing was written.") from error


def read_packed_lines(path: Path, room: Room) -> Iterator[bytes]:
    """Yield the lines of a file of which few are records; each counts in bytes. Raises TrainerError: unreadable."""
    try:
        with _opened(path) as file:
            while line := file.readline(_MOST_LINE):
                room.rows += 1
                room.take(len(line))
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise TrainerError("unreadable", f"{path.name} cannot be read: {error}. Nothing was written.") from error
