"""whole_files: owns writing files and folders whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written."""

    sha256: str
    size: int  #: bytes
    lines: int


def write_lines(path: Path, lines: Iterable[bytes]) -> Written:
    """Write lines and make them durable. Raises OSError."""
    digest, size, count = hashlib.sha256(), 0, 0
    with path.open("xb") as file:
        for line in lines:
            whole = line + b"\n"
            digest.update(whole)
            size += len(whole)
            count += 1
            file.write(whole)
        file.flush()
        os.fsync(file.fileno())
    return Written(digest.hexdigest(), size, count)


def write_whole(path: Path, text: bytes) -> None:
    """Replace a file. Raises OSError; then the old one is there as it was."""
    draft = path.with_name(f".{path.name}.new")
    try:
        with draft.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def fresh_folder(path: Path) -> Path:
    """Return an empty folder; what was there goes."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def publish_folder(draft: Path, path: Path) -> None:
    """Put a finished folder in the place of another one."""
    sync_folder(draft)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    draft.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Return a file's hash. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
