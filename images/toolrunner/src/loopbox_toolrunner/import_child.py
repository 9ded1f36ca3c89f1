"""import_child: owns the unpacking of a tar into the workspace, in a process with limits that can be killed.

All is unpacked beside what is there and only then put in its place, so that an archive which is broken, too big or
evil changes nothing. Standard library only. The tar comes on stdin; one JSON object goes to stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, cast

PREFIX = ".toolrunner-"
CHUNK = 256 << 10
MOST_NAME = 4096  # bytes of a path
MOST_PART = 255
MOST_DEPTH = 128
LATEST = 1 << 33  # seconds since 1970
SWAPPING = "swapping"  # said before anything is changed


class RefusedError(Exception):
    """The archive cannot be used; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Most of an import."""

    most_bytes: int  #: of the tar
    most_files: int
    seconds: float


class Counted:
    """A stream that ends with an error at a number of bytes."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream = stream
        self._left = most

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes. Raises RefusedError beyond the limit."""
        chunk = self._stream.read(size)
        self._left -= len(chunk)
        if self._left < 0:
            raise RefusedError("the archive has more bytes than are taken")
        return chunk


def unpack(stream: IO[bytes], into: str, bounds: Bounds) -> tuple[int, int]:
    """Unpack into an empty directory; return how many entries and bytes. Raises RefusedError, TarError, OSError."""
    deadline = time.monotonic() + bounds.seconds
    links: list[tuple[str, tarfile.TarInfo]] = []
    folders: dict[str, tarfile.TarInfo] = {}
    count = size = 0
    counted = Counted(stream, bounds.most_bytes)
    with tarfile.open(fileobj=cast(IO[bytes], counted), mode="r|", errorlevel=2, encoding="utf-8") as tar:
        for member in tar:
            count += 1
            size += member.size
            if count > bounds.most_files or size > bounds.most_bytes:
                raise RefusedError(f"more than {bounds.most_files} entries or {bounds.most_bytes} bytes")
            if time.monotonic() > deadline:
                raise RefusedError(f"not done after {bounds.seconds:g} s")
            tar.members = []  # type: ignore[attr-defined]  # it would keep every entry in memory
            name = checked(member.name)
            if name == ".":
                continue
            place = f"{into}/{name}"
            os.makedirs(os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120 many entries
            if member.isdir():
                os.makedirs(place, exist_ok=True)  # noqa: PTH103
                folders[place] = member
            elif member.issym():
                links.append((place, member))
            elif member.isreg() and not member.issparse():
                source = tar.extractfile(member)
                _fill(place, source, member)
            else:
                raise RefusedError(f"{name!r} is neither a file nor a directory nor a symbolic link")
    if counted.read(1) and count == 0:
        raise RefusedError("it is no tar")
    _link(into, links)
    for place, member in sorted(folders.items(), reverse=True):  # inner ones first; all stay open to their owner
        os.chmod(place, member.mode & 0o777 | 0o700)  # noqa: PTH101
        _date(place, member)
    return count, size


def checked(name: str) -> str:
    """Return a member's name as a plain relative path. Raises RefusedError."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise RefusedError(f"{name[:200]!r} leads out of the workspace")
    raw = os.fsencode(name)
    if len(raw) > MOST_NAME or len(parts) > MOST_DEPTH or any(len(os.fsencode(part)) > MOST_PART for part in parts):
        raise RefusedError(f"{name[:200]!r} is too long or too deep")
    if parts and parts[0].startswith(PREFIX):
        raise RefusedError(f"{name[:200]!r}: names of this form are the tool runner's own")
    return "/".join(parts) or "."


def _fill(place: str, source: IO[bytes] | None, member: tarfile.TarInfo) -> None:
    """Write one file. Anew where the archive has it twice; never through a link, since links come last."""
    if source is None:
        raise RefusedError("an entry has no content")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place)  # noqa: PTH108
    handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        shutil.copyfileobj(source, file, CHUNK)
        os.fchmod(handle, member.mode & 0o777 | 0o200)
        file.flush()
        _date(handle, member)


def _date(place: str | int, member: tarfile.TarInfo) -> None:
    """Set the time of a file, by handle, or of a directory or link itself."""
    with contextlib.suppress(OverflowError, ValueError):  # a time may be any number, or none
        at = max(0, min(int(member.mtime), LATEST))
        os.utime(place, (at, at), follow_symlinks=isinstance(place, int))


def _link(into: str, links: list[tuple[str, tarfile.TarInfo]]) -> None:
    """Make the links when all files are there, and look where each really leads when all links are."""
    root = os.path.realpath(into)
    for place, member in links:
        target = member.linkname
        if not target or target.startswith("/") or len(os.fsencode(target)) > MOST_NAME:
            raise RefusedError(f"the link {os.path.relpath(place, into)!r} leads out of the workspace")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)  # noqa: PTH108
        os.symlink(target, place)  # noqa: PTH211 as above
        _date(place, member)
    for place, _ in links:
        real = os.path.realpath(place)
        if real != root and not real.startswith(f"{root}/"):
            raise RefusedError(f"the link {os.path.relpath(place, into)!r} leads out of the workspace")


def swap(root: str, fresh: str, old: str) -> None:
    """Put what is in ``fresh`` in the place of all that is in ``root``; undo it where that fails. Raises OSError."""
    moved: list[tuple[str, str]] = []
    try:
        for name in os.listdir(root):  # noqa: PTH208
            if not name.startswith(PREFIX):
                _move(f"{root}/{name}", f"{old}/{name}", moved)
        for name in os.listdir(fresh):  # noqa: PTH208
            _move(f"{fresh}/{name}", f"{root}/{name}", moved)
    except BaseException:
        for source, target in reversed(moved):
            with contextlib.suppress(OSError):
                os.rename(target, source)  # noqa: PTH104
        raise


def _move(source: str, target: str, moved: list[tuple[str, str]]) -> None:
    os.rename(source, target)  # noqa: PTH104
    moved.append((source, target))


def sweep(root: str) -> None:
    """Remove what an import that was killed left."""
    for name in os.listdir(root):  # noqa: PTH208
        if name.startswith(PREFIX) and os.path.isdir(f"{root}/{name}"):  # noqa: PTH112
            shutil.rmtree(f"{root}/{name}", ignore_errors=True)


def run(root: str, stream: IO[bytes], bounds: Bounds, say: Callable[[str], None]) -> dict[str, object]:
    """Import a tar; return what came of it."""
    work = f"{root}/{PREFIX}{secrets.token_hex(8)}"
    try:
        os.makedirs(f"{work}/new")  # noqa: PTH103
        os.makedirs(f"{work}/old")  # noqa: PTH103
        count, size = unpack(stream, f"{work}/new", bounds)
        say(SWAPPING)
        swap(root, f"{work}/new", f"{work}/old")
    except Exception as error:  # noqa: BLE001 a stranger's archive brings much out of the library, RecursionError too
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return {"error": f"{why or type(error).__name__}. The workspace is as it was"[:500]}
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {"entries": count, "bytes": size}


def main() -> int:
    """Import from stdin."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves through what cleans up
    told = json.loads(sys.argv[1])
    root = told.pop("root")
    done = run(root, sys.stdin.buffer, Bounds(**told), say=lambda word: print(word, flush=True))  # noqa: T201 the answer
    print(json.dumps(done))  # noqa: T201 the answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
