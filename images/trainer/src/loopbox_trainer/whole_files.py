"""whole_files: owns writing a folder of files whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loopbox_trainer.files import sync_folder


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
