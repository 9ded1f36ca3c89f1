"""jail: owns the workspace's border: a path, once opened here, is a regular file or a directory inside it.

The border keeps mistakes in, not attackers out: commands run under the same user. The container is the boundary.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

MAX_PATH = 1024
NEW_FILE_MODE = 0o644


class FileError(Exception):
    """A file tool refused; nothing was changed. The text says why and what to do."""


class Jail:
    """The workspace. Blocking: call it in a thread."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))

    def resolve(self, path: str) -> Path:
        """Return where a path really leads, links followed. Raises FileError when that is outside."""
        if not path or len(path) > MAX_PATH or "\0" in path:
            raise FileError(f"the path must have 1 to {MAX_PATH} characters and no NUL")
        try:
            real = Path(os.path.realpath(self.root / path))
        except (OSError, ValueError) as error:
            raise FileError(f"{path!r} cannot be followed: {error}") from error
        if not real.is_relative_to(self.root):
            raise FileError(f"{path!r} lies outside {self.root}; file tools work inside it only")
        return real

    def name(self, real: Path) -> str:
        """Return a resolved path as the caller knows it."""
        return real.relative_to(self.root).as_posix()

    @contextlib.contextmanager
    def open(self, path: str, flags: int) -> Iterator[int]:
        """Open a regular file without waiting, closing it at the end. Raises FileError.

        Never with O_TRUNC: what was opened is looked at before anything is changed.
        """
        real = self.resolve(path)
        try:
            handle = os.open(real, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, NEW_FILE_MODE)
        except OSError as error:
            raise FileError(f"{path!r} cannot be opened: {explain(error)}") from error
        try:
            self._check(path, handle)
            yield handle
        except OSError as error:
            raise FileError(f"{path!r}: {explain(error)}") from error
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def open_folder(self, real: Path) -> Iterator[int]:
        """Open a directory that ``resolve`` gave, closing it at the end. Raises FileError."""
        try:
            handle = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise FileError(f"{self.name(real)!r} cannot be opened: {explain(error)}") from error
        try:
            if not Path(f"/proc/self/fd/{handle}").readlink().is_relative_to(self.root):
                raise FileError(f"{self.name(real)!r} lies outside {self.root}; file tools work inside it only")
            yield handle
        finally:
            os.close(handle)

    def make_parents(self, path: str) -> None:
        """Make the directories above a path. Raises FileError."""
        real = self.resolve(path)
        try:
            real.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"the directory of {path!r} cannot be made: {explain(error)}") from error

    def _check(self, path: str, handle: int) -> None:
        """Look at what was opened, not at what the path says by now."""
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise FileError(f"{path!r} is a directory; list_files shows what is in it")
        if not stat.S_ISREG(mode):
            raise FileError(f"{path!r} is no regular file")
        if not Path(f"/proc/self/fd/{handle}").readlink().is_relative_to(self.root):
            raise FileError(f"{path!r} lies outside {self.root}; file tools work inside it only")


def explain(error: OSError) -> str:
    """Return the cause alone, without the path that the caller gave."""
    return (error.strerror or str(error)).lower()
