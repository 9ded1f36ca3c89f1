"""files: owns what the file tools do inside the jail. Blocking: call it in a thread."""

from __future__ import annotations

import os
import stat

from pydantic import BaseModel, ConfigDict, Field

from loopbox_toolrunner.jail import FileError, Jail, explain

MAX_ENTRIES = 1000
MAX_LINES = 2000
SNIFF_BYTES = 8192


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True)


class FileText(_Result):
    """Lines of a file."""

    content: str
    total_lines: int
    truncated: bool = Field(description="there is more of the file than content holds")


class Written(_Result):
    """A file written."""

    path: str
    size: int = Field(description="bytes of the whole file now")


class Entry(_Result):
    """One file or directory."""

    path: str
    kind: str = Field(description="file, directory, link or other")
    size: int = Field(description="bytes")


class Listing(_Result):
    """What is in a directory."""

    entries: list[Entry]
    truncated: bool = Field(description=f"there are more than {MAX_ENTRIES}")


class Files:
    """The file tools' work. Every method raises FileError, and then has changed nothing."""

    def __init__(self, jail: Jail, *, max_read_bytes: int, max_write_bytes: int, output_bytes: int) -> None:
        self._jail = jail
        self._max_read_bytes = max_read_bytes
        self._max_write_bytes = max_write_bytes
        self._output_bytes = output_bytes

    def read(self, path: str, offset: int, limit: int) -> FileText:
        """Return ``limit`` lines from line ``offset`` (0 is the first), fewer where they are long."""
        lines = self._text(path).splitlines(keepends=True)
        chosen = lines[offset : offset + limit]
        kept: list[str] = []
        room = self._output_bytes
        for line in chosen:
            size = len(line.encode())
            if size > room:
                if not kept:  # one line longer than all that may be shown
                    kept.append(line.encode()[:room].decode(errors="ignore"))
                break
            kept.append(line)
            room -= size
        content = "".join(kept)
        whole = offset == 0 and sum(map(len, lines)) == len(content)
        return FileText(content=content, total_lines=len(lines), truncated=not whole)

    def write(self, path: str, content: str) -> Written:
        """Make or replace a file, and the directories above it."""
        raw = self._encoded(content)
        self._jail.make_parents(path)
        with self._jail.open(path, os.O_WRONLY | os.O_CREAT) as handle:
            return self._replace(path, handle, raw)

    def edit(self, path: str, old: str, new: str) -> Written:
        """Replace the one place where ``old`` stands."""
        if not old:
            raise FileError("old is empty; give the text to replace, or use write_file")
        text = self._text(path)
        count = text.count(old)
        if count != 1:
            raise FileError(
                f"old is not in {path!r}; read_file shows what is"
                if count == 0
                else f"old is in {path!r} {count} times; add lines around it until it is there once"
            )
        raw = self._encoded(text.replace(old, new))
        with self._jail.open(path, os.O_WRONLY) as handle:
            return self._replace(path, handle, raw)

    def list(self, path: str) -> Listing:
        """Return a directory's entries, by name."""
        real = self._jail.resolve(path)
        found: list[Entry] = []
        truncated = False
        try:
            with os.scandir(real) as entries:
                for entry in entries:
                    if len(found) == MAX_ENTRIES:
                        truncated = True
                        break
                    info = entry.stat(follow_symlinks=False)
                    name = printable(self._jail.name(real / entry.name))
                    found.append(Entry(path=name, kind=_kind(info.st_mode), size=info.st_size))
        except OSError as error:
            raise FileError(f"{path!r} cannot be listed: {explain(error)}") from error
        return Listing(entries=sorted(found, key=lambda e: e.path), truncated=truncated)

    def _text(self, path: str) -> str:
        with self._jail.open(path, os.O_RDONLY) as handle:
            size = os.fstat(handle).st_size
            if size > self._max_read_bytes:
                raise FileError(
                    f"{path!r} has {size} bytes, more than the {self._max_read_bytes} that file tools take; "
                    "use bash with head, tail or sed"
                )
            raw = _read(handle, self._max_read_bytes)
        if b"\0" in raw[:SNIFF_BYTES]:
            raise FileError(f"{path!r} is not text; use bash with od or xxd")
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise FileError(f"{path!r} is not UTF-8 text (byte {error.start}); use bash with iconv or od") from error

    def _encoded(self, content: str) -> bytes:
        try:
            raw = content.encode()
        except UnicodeEncodeError as error:
            raise FileError(f"the text holds half a character (surrogate) at {error.start}") from error
        if len(raw) > self._max_write_bytes:
            raise FileError(f"the text has {len(raw)} bytes, the limit is {self._max_write_bytes}")
        return raw

    def _replace(self, path: str, handle: int, raw: bytes) -> Written:
        before = os.fstat(handle).st_size
        try:
            # Room first: on a full disk the old content then stays as it was.
            if len(raw) > before:
                os.posix_fallocate(handle, 0, len(raw))
            written = 0
            while written < len(raw):
                written += os.pwrite(handle, raw[written:], written)
            os.ftruncate(handle, len(raw))
        except OSError:
            if os.fstat(handle).st_size > before:
                os.ftruncate(handle, before)
            raise
        return Written(path=self._jail.name(self._jail.resolve(path)), size=len(raw))


def printable(name: str) -> str:
    """Return a file name as text: names are bytes, and some are no UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "other"


def _read(handle: int, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while size <= most and (chunk := os.read(handle, 1 << 20)):
        parts.append(chunk)
        size += len(chunk)
    return b"".join(parts)
