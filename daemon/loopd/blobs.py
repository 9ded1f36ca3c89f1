"""blobs: owns the bytes of releases on disk: hashed once, stored once under their digest, checked before each load.

A file is linked, not copied, when its bytes can't change any more: one name, nobody has it open for writing. Else,
or from another file system, its bytes are copied while they are hashed, so that what is kept is what was hashed.

The check before a load is one stat: a kept file is sealed by setting its time to one that only its inode explains.
A write sets another time, a copy or a restore has another inode, and either is hashed again and sealed anew, or
refused. Measured on one core: 0.04 ms for the stat, 0.9 s for each GiB hashed. Bytes that a failing disk changes
without a write are not seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import signal
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loopd.errors import LoopdError
from loopd.gguf_types import GgufError
from loopd.units import Layout

CHUNK: Final = 4 << 20
_SEAL_S: Final = 1_000_000_000
_NS: Final = 1_000_000_000
#: Clones the extents of one file into another (linux/fs.h), which costs no space; btrfs, xfs, bcachefs.
_FICLONE: Final = 0x40049409
_COPYING: Final = ".copying-"


class BlobMissingError(LoopdError):
    """The release's weights are not on this host any more."""

    code = "blob_missing"
    status = 409


class BlobDamagedError(LoopdError):
    """The release's weights are not the bytes that were checked."""

    code = "blob_damaged"


@dataclass(frozen=True, slots=True)
class Look:
    """What tells whether a file is still the one that was looked at."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    links: int

    @classmethod
    def of(cls, status: os.stat_result) -> Look:
        """Take it from a stat."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_nlink)


@dataclass(frozen=True, slots=True)
class Blobs:
    """The store."""

    layout: Layout
    #: Held while a file becomes a release, and while files are collected: a blob is never seen without its release.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def take(self, path: Path, seen: Look, approve: Callable[[str], None]) -> str:
        """Hash a file and keep it; return the digest. ``approve`` may refuse it by its digest. Blocks.

        The name stays. Raises GgufError: changed_while_read, still_written; what ``approve`` raises; OSError.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            _same(fd, seen, path.name)
            private = has_no_writer(fd, path)
            if private and seen.links == 1 and seen.device == self.layout.blobs.stat().st_dev:
                sha256 = _hash(fd)
                _same(fd, seen, path.name)
                if not has_no_writer(fd, path):
                    raise _written(path.name)
                approve(sha256)
                self._keep(fd, sha256)
                return sha256
            return self._copy(fd, seen, path.name, approve)
        finally:
            os.close(fd)

    def ensure(self, sha256: str, size: int, *, whose: str) -> Path:
        """Return the path of a kept file whose bytes are as they were hashed. Blocks.

        whose: the release, for the message. Raises BlobMissingError, BlobDamagedError.
        """
        path = self.layout.blob(sha256)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise BlobMissingError(
                f"the weights of release {whose} are gone ({path.name}). What serves was not touched; "
                "drop the file into models/incoming again"
            ) from error
        try:
            status = os.fstat(fd)
            if is_sealed(status, size):
                return path
            if status.st_size != size or _hash(fd) != sha256:
                raise BlobDamagedError(
                    f"the weights of release {whose} changed on disk ({path.name} has {status.st_size} bytes of "
                    f"{size}, or others). They were not loaded and what serves was not touched; "
                    "check the disk, then drop the file into models/incoming again"
                )
            _seal(fd)
        finally:
            os.close(fd)
        return path

    def _keep(self, fd: int, sha256: str) -> None:
        """Give the open file its name in the store, by its inode: its old name may mean another file by now."""
        blob = self.layout.blob(sha256)
        own = os.fstat(fd)
        with contextlib.suppress(FileNotFoundError):
            kept = blob.stat()
            if is_sealed(kept, own.st_size) or kept.st_ino == own.st_ino:
                return
        # A seal must not survive a power cut that its bytes did not.
        os.fsync(fd)
        os.fchmod(fd, 0o444)
        if os.geteuid() == 0:
            os.fchown(fd, 0, 0)
        _seal(fd)
        name = f"{_COPYING}{secrets.token_hex(8)}"
        directory = os.open(blob.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # A directory given makes Python call linkat, which can follow the descriptor's own link.
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)
            os.replace(name, blob.name, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
            os.close(directory)

    def _copy(self, fd: int, seen: Look, name: str, approve: Callable[[str], None]) -> str:
        target = self.layout.blobs / f"{_COPYING}{secrets.token_hex(8)}"
        out = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.ioctl(out, _FICLONE, fd)
                sha256 = _hash(out)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EPERM):
                    raise
                sha256 = _hash(fd, copy_to=out)
            _same(fd, seen, name)
            approve(sha256)
            self._keep(out, sha256)
        finally:
            os.close(out)
            target.unlink(missing_ok=True)
        return sha256

    def sweep(self) -> None:
        """Remove what a kill in the middle of a copy left. Not while one is under way: hold the lock."""
        for path in self.layout.blobs.glob(f"{_COPYING}*"):
            path.unlink(missing_ok=True)


def is_sealed(status: os.stat_result, size: int) -> bool:
    """Tell whether a kept file is as it was when it was hashed."""
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_size == size
        and status.st_mtime_ns == _SEAL_S * _NS + status.st_ino % _NS
    )


def _seal(fd: int | Path) -> None:
    time_ns = _SEAL_S * _NS + os.stat(fd).st_ino % _NS  # noqa: PTH116 - a descriptor or a path
    os.utime(fd, ns=(time_ns, time_ns))


def lend(paths: Sequence[Path], uid: int) -> tuple[Path, ...]:
    """Give kept files to a container's user, which may then set their times; return those that were sealed.

    Raises BlobMissingError.
    """
    try:
        sealed = tuple(path for path in paths if is_sealed(status := path.stat(), status.st_size))
    except FileNotFoundError as error:
        raise BlobMissingError(f"{error.filename} is gone; drop the file into models/incoming again") from error
    _own(paths, uid)
    return sealed


def take_back(paths: Sequence[Path], sealed: Sequence[Path]) -> None:
    """Take lent files back, and seal those that were sealed: who had them set their time, and no more."""
    _own(paths, 0)
    for path in sealed:
        _seal(path)


def _own(paths: Sequence[Path], uid: int) -> None:
    if os.geteuid() == 0:
        for path in paths:
            os.chown(path, uid, uid)


def has_no_writer(fd: int, path: Path) -> bool:
    """Tell whether nobody can write to an open file; False where the file system can't say.

    Raises GgufError "still_written" when somebody has it open for writing: a copy under way, however long it paused.
    """
    try:
        _lease(fd)
    except OSError as error:
        if error.errno == errno.EAGAIN and _leases_work(path.parent):
            raise _written(path.name) from error
        return False
    return True


def _lease(fd: int) -> None:
    # The kernel grants a read lease only while no one has the file open for writing, or mapped so. It is given back at
    # once; the signal is one that does nothing, for the moment between.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _leases_work(directory: Path) -> bool:
    """Try it on a file that nobody has: NFS gives the same answer for a file that is written and for one that is not.

    The file has no name, so the watcher hears nothing of it.
    """
    try:
        writable = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fd = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(writable)
        try:
            _lease(fd)
        finally:
            os.close(fd)
    except OSError:
        return False
    return True


def _written(name: str) -> GgufError:
    return GgufError("still_written", f"{name} is open for writing; it is looked at again when it has been closed")


def _same(fd: int, seen: Look, name: str) -> None:
    if Look.of(os.fstat(fd)) != seen:
        raise GgufError("changed_while_read", f"{name} changed while it was read; it is looked at again")


def _hash(fd: int, *, copy_to: int | None = None) -> str:
    digest = hashlib.sha256()
    offset = 0
    while chunk := os.pread(fd, CHUNK, offset):
        digest.update(chunk)
        if copy_to is not None:
            _write(copy_to, chunk)
        offset += len(chunk)
    return digest.hexdigest()


def _write(fd: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]
