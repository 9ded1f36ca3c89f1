"""export: owns the workspace as a tar: what goes in, in which order, and its bytes.

Regular files, directories and links that stay inside; sockets, pipes and devices are left out. Names sorted, owners and
groups zero: the same content gives the same bytes.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loopbox_toolrunner.files import TEMPORARY
from loopbox_toolrunner.outputs import FOLDER as OUTPUTS

BLOCK = 512
CHUNK = 256 << 10
HEADERS = 3 * BLOCK  # what a long name or an odd one takes at most besides itself


class ExportError(Exception):
    """The workspace cannot be given out; the text says why."""


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of the tar."""

    name: str  #: in the workspace
    info: tarfile.TarInfo


@dataclass(frozen=True, slots=True)
class Bounds:
    """Most of a transfer."""

    most_bytes: int
    most_files: int
    seconds: float


def plan_export(root: Path, bounds: Bounds, *, outputs: bool = True) -> list[Item]:
    """Return what a tar of the workspace holds. Blocking. outputs: kept outputs too. Raises ExportError."""
    items: list[Item] = []
    size = 2 * BLOCK
    deadline = time.monotonic() + bounds.seconds
    base = str(root)
    for folder, folders, files in os.walk(base):
        folders[:] = sorted(f for f in folders if not (folder == base and _left_out(f, outputs=outputs)))
        links = {f for f in folders if os.path.islink(os.path.join(folder, f))}  # noqa: PTH114, PTH118 many entries
        for name in sorted({*folders, *files}):
            if (item := _item(base, folder, name)) is None:
                continue
            items.append(item)
            size += HEADERS + _padded(item.info.size) + 2 * len(os.fsencode(item.name))
            if len(items) > bounds.most_files or size > bounds.most_bytes:
                raise ExportError(
                    f"the workspace has more than {bounds.most_files} entries or {bounds.most_bytes >> 20} MiB; "
                    "remove what is not needed, then ask again"
                )
        if time.monotonic() > deadline:
            raise ExportError(f"the workspace could not be looked through in {bounds.seconds:g} s")
        folders[:] = [f for f in folders if f not in links]
    return sorted(items, key=lambda item: item.name.split("/"))


def pack(root: Path, items: list[Item], bounds: Bounds) -> Iterator[bytes]:
    """Yield the tar's bytes. Blocking. A file that changes meanwhile keeps its size, cut or filled with zeros.

    Raises ExportError when the time is over: the tar then ends without its closing blocks.
    """
    deadline = time.monotonic() + bounds.seconds
    ready = bytearray()  # small files together: each piece given out is a change of threads
    for item in items:
        for piece in _entry(root, item):
            ready += piece
            if len(ready) >= CHUNK:
                yield bytes(ready)
                ready.clear()
        if time.monotonic() > deadline:
            raise ExportError(f"the workspace could not be packed in {bounds.seconds:g} s")
    yield bytes(ready) + bytes(2 * BLOCK)


def _left_out(name: str, *, outputs: bool) -> bool:
    return name.startswith(TEMPORARY) or (name == OUTPUTS and not outputs)


def _item(base: str, folder: str, name: str) -> Item | None:
    """Return a tar entry; None for what has none, or is gone by now."""
    path = f"{folder}/{name}"
    try:
        info = os.lstat(path)
        inside = os.path.relpath(path, base)
        entry = tarfile.TarInfo(inside)
        entry.mode = stat.S_IMODE(info.st_mode) & 0o777
        entry.mtime = int(info.st_mtime)
        if stat.S_ISDIR(info.st_mode):
            entry.type = tarfile.DIRTYPE
        elif stat.S_ISREG(info.st_mode) and not name.startswith(TEMPORARY):
            entry.size = info.st_size
        elif stat.S_ISLNK(info.st_mode) and (target := inner_target(base, path)) is not None:
            entry.type = tarfile.SYMTYPE
            entry.linkname = target
        else:
            return None
    except OSError:
        return None
    return Item(inside, entry)


def inner_target(base: str, path: str) -> str | None:
    """Return where a link leads, relative to its folder; None when that is outside ``base``, or in a circle."""
    try:
        os.stat(path)  # noqa: PTH116 as above
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
    target = os.readlink(path)  # noqa: PTH115 as above
    real = os.path.realpath(path)
    if real != base and not real.startswith(f"{base}/"):
        return None
    folder = os.path.dirname(path)  # noqa: PTH120 as above
    if _is_plain(base, folder, target):
        return target
    # Right in this place only: absolute, out and back by the workspace's name, or through a link that may stay behind.
    return os.path.relpath(real, folder)


def _is_plain(base: str, folder: str, target: str) -> bool:
    """Tell whether a target never leaves the workspace on its way, and its way leads through no other link."""
    depth = 0 if folder == base else os.path.relpath(folder, base).count("/") + 1
    for part in target.split("/"):
        depth += -1 if part == ".." else part not in {"", "."}
        if depth < 0:
            return False
    way = os.path.join(folder, os.path.dirname(target))  # noqa: PTH118, PTH120 as above
    return not target.startswith("/") and os.path.realpath(way) == os.path.normpath(way)


def _entry(root: Path, item: Item) -> Iterator[bytes]:
    """Yield header and content of one entry; nothing of a file that is gone, or may not be read."""
    if not item.info.isreg():
        yield _header(item)
        return
    try:
        handle = os.open(root / item.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    with os.fdopen(handle, "rb", buffering=0) as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            return
        left = item.info.size = min(found.st_size, item.info.size)
        yield _header(item)
        while left and (chunk := file.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk
    while left:  # it was cut meanwhile
        filler = bytes(min(CHUNK, left))
        left -= len(filler)
        yield filler
    yield bytes(-item.info.size % BLOCK)


def _header(item: Item) -> bytes:
    return item.info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return size + -size % BLOCK
