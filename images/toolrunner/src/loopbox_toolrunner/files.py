"""files: owns what the file tools do inside the jail. Blocking: call it in a thread."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from loopbox_toolrunner.jail import NEW_FILE_MODE, FileError, Jail, explain

ABSENT = "absent"  #: instead of a hash: no such file
TEMPORARY = ".toolrunner-"  #: how the names of files begin that become others whole
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
    sha256: str = Field(description="of the whole file, for expected_sha256")


class Written(_Result):
    """A file written, or left alone because it was not the expected one."""

    path: str
    size: int = Field(description="bytes of the whole file now")
    sha256: str = Field(description=f"of the whole file now, or {ABSENT!r}")
    conflict: bool | None = Field(default=None, description="the file is not the expected one; nothing was changed")
    code: str | None = Field(default=None, description="conflict, where there is one")


class ConflictError(FileError):
    """The file is another than the caller expects; nothing was changed."""

    def __init__(self, found: Written, expected: str) -> None:
        what = "is not there" if found.sha256 == ABSENT else f"has the SHA-256 {found.sha256}"
        if expected == ABSENT:
            what = "is there already"
        super().__init__(
            f"{found.path!r} {what}, which is not expected_sha256: it was changed since you read it. "
            "Nothing was changed now; read_file shows what is there"
        )
        self.found = found


class Locks:
    """One lock for each file in use, by where it really is."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[Path, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def hold(self, path: Path) -> Iterator[None]:
        """Wait for the file, and have it alone."""
        with self._guard:
            lock, users = self._locks.get(path, (threading.Lock(), 0))
            self._locks[path] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._locks[path]
                if users > 1:
                    self._locks[path] = lock, users - 1
                else:
                    del self._locks[path]


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
        self._locks = Locks()
        self._max_read_bytes = max_read_bytes
        self._max_write_bytes = max_write_bytes
        self._output_bytes = output_bytes

    def read(self, path: str, offset: int, limit: int) -> FileText:
        """Return ``limit`` lines from line ``offset`` (0 is the first), fewer where they are long."""
        text, sha256 = self._text(path)
        lines = text.splitlines(keepends=True)
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
        return FileText(content=content, total_lines=len(lines), truncated=not whole, sha256=sha256)

    def write(self, path: str, content: str | bytes, expected: str = "") -> Written:
        """Make or replace a file, and the directories above it.

        expected: SHA-256 of what is there, ABSENT for nothing, "" for whatever it is. Raises ConflictError.
        """
        raw = self._limited(content if isinstance(content, bytes) else _encoded(content))
        real = self._jail.resolve(path)
        with self._locks.hold(real):
            if expected:
                self._expect(path, real, expected)
            self._jail.make_parents(path)
            return self._replace(path, real, raw)

    def edit(self, path: str, old: str, new: str, expected: str = "") -> Written:
        """Replace the one place where ``old`` stands. expected: as for ``write``. Raises ConflictError."""
        if not old:
            raise FileError("old is empty; give the text to replace, or use write_file")
        real = self._jail.resolve(path)
        with self._locks.hold(real):
            if expected:
                self._expect(path, real, expected)
            text, _ = self._text(path)
            count = text.count(old)
            if count != 1:
                raise FileError(
                    f"old is not in {path!r}; read_file shows what is"
                    if count == 0
                    else f"old is in {path!r} {count} times; add lines around it until it is there once"
                )
            return self._replace(path, real, self._limited(_encoded(text.replace(old, new))))

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

    def _expect(self, path: str, real: Path, expected: str) -> None:
        size, found = 0, ABSENT
        if os.path.lexists(real):  # not exists(): a link to itself is no file, and is not replaced by one
            with self._jail.open(path, os.O_RDONLY) as handle:
                size, found = os.fstat(handle).st_size, _digest(handle)
        if found != expected:
            name = self._jail.name(real)
            raise ConflictError(Written(path=name, size=size, sha256=found, conflict=True, code="conflict"), expected)

    def _text(self, path: str) -> tuple[str, str]:
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
            return raw.decode(), hashlib.sha256(raw).hexdigest()
        except UnicodeDecodeError as error:
            raise FileError(f"{path!r} is not UTF-8 text (byte {error.start}); use bash with iconv or od") from error

    def _limited(self, raw: bytes) -> bytes:
        if len(raw) > self._max_write_bytes:
            raise FileError(f"the text has {len(raw)} bytes, the limit is {self._max_write_bytes}")
        return raw

    def _replace(self, path: str, real: Path, raw: bytes) -> Written:
        """Put a whole new file in the old one's place: who reads meanwhile, or a crash, meets either."""
        mode = NEW_FILE_MODE
        if os.path.lexists(real):  # not exists(): a link to itself is no file, and is not replaced by one
            with self._jail.open(path, os.O_WRONLY) as handle:  # what may not be written is not replaced either
                mode = stat.S_IMODE(os.fstat(handle).st_mode) & 0o777
        fresh = f"{TEMPORARY}{secrets.token_hex(8)}"
        with self._jail.open_folder(real.parent) as folder:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                handle = os.open(fresh, flags, mode, dir_fd=folder)
                try:
                    os.fchmod(handle, mode)
                    _write(handle, raw)
                finally:
                    os.close(handle)
                os.rename(fresh, real.name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.unlink(fresh, dir_fd=folder)
                raise FileError(f"{path!r} cannot be written: {explain(error)}; it is as it was") from error
        return Written(path=self._jail.name(real), size=len(raw), sha256=hashlib.sha256(raw).hexdigest())


def _encoded(content: str) -> bytes:
    try:
        return content.encode()
    except UnicodeEncodeError as error:
        raise FileError(f"the text holds half a character (surrogate) at {error.start}") from error


def _write(handle: int, raw: bytes) -> None:
    left = memoryview(raw)
    while left:
        left = left[os.write(handle, left) :]


def _digest(handle: int) -> str:
    digest = hashlib.sha256()
    while chunk := os.read(handle, 1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


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
