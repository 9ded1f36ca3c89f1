"""outputs: owns long outputs kept as files in the workspace: which there are, how long, and that old ones go."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

FOLDER = ".outputs"
MAX_TRIES = 1000  # numbers that may be taken already, by an imported workspace for one
_OURS = re.compile(r"([0-9]{1,9})\.(out|err)\.txt")


class Outputs:
    """The folder. Writing blocks for as long as memory takes: the workspace of a sandbox is a tmpfs."""

    def __init__(self, workspace: Path, *, most_files: int, most_bytes: int) -> None:
        self._workspace = workspace
        self._most_files = most_files
        self._most_bytes = most_bytes
        self._last = 0

    def spool(self, kind: str, inline: int) -> Spool:
        """Return what takes one stream and makes it a file once it is longer than ``inline`` bytes.

        kind: "out" or "err".
        """
        return Spool(self, kind, inline, self._most_bytes)

    def create(self, kind: str) -> tuple[str, int]:
        """Make a fresh file, removing the oldest; return its name in the workspace and a handle. Raises OSError."""
        with self._open_folder() as folder:
            names = os.listdir(folder)  # noqa: PTH208 by handle, not by name
            numbers = sorted((int(m[1]), m[0]) for name in names if (m := _OURS.fullmatch(name)))
            for _, name in numbers[: max(0, len(numbers) - self._most_files + 1)]:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            for number in range(self._last + 1, self._last + 1 + MAX_TRIES):
                name = f"{number}.{kind}.txt"
                with contextlib.suppress(FileExistsError):
                    handle = os.open(name, flags, 0o644, dir_fd=folder)
                    self._last = number
                    return f"{FOLDER}/{name}", handle
        raise FileExistsError(f"no free name in {FOLDER}")

    @contextlib.contextmanager
    def _open_folder(self) -> Iterator[int]:
        """Open the folder itself, never what a link in its place leads to."""
        with contextlib.suppress(FileExistsError):
            (self._workspace / FOLDER).mkdir()
        handle = os.open(self._workspace / FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield handle
        finally:
            os.close(handle)


class Spool:
    """One stream on its way to a file. What cannot be written is not: the call itself goes on."""

    def __init__(self, outputs: Outputs, kind: str, inline: int, most: int) -> None:
        self._outputs = outputs
        self._kind = kind
        self._inline = inline
        self._room = most
        self._early: bytearray | None = bytearray()  #: what came before a file was needed
        self._handle: int | None = None
        self.name = ""  #: in the workspace; "" while there is none
        self.saved = 0  #: bytes in the file

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        if self._early is not None:
            self._early += chunk
            if len(self._early) <= self._inline:
                return
            chunk, self._early = bytes(self._early), None
            with contextlib.suppress(OSError):
                self.name, self._handle = self._outputs.create(self._kind)
        if self._handle is not None:
            try:
                self._write(self._handle, chunk[: self._room])
            except OSError:  # the workspace is full; what is there stays
                self._room = 0
            if self._room == 0:
                self.close()

    def close(self) -> None:
        """End the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _write(self, handle: int, chunk: bytes) -> None:
        while chunk:
            written = os.write(handle, chunk)
            self.saved += written
            self._room -= written
            chunk = chunk[written:]
