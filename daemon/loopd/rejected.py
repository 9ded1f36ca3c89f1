"""rejected: owns models/rejected: what was refused, beside the reason, and how much of it is kept."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loopd.state import now

MOST_FILES: Final = 100
MOST_BYTES: Final = 20 << 30
NOTE: Final = ".reason.json"
_MOST_NAME: Final = 200


@dataclass(frozen=True, slots=True)
class Refused:
    """One refused file as it lies there."""

    path: Path
    size: int  #: bytes on disk
    at: float  #: when it was refused, seconds


def put_away(directory: Path, path: Path, code: str, reason: str, companions: Sequence[Path] = ()) -> str:
    """Move a file and its companions into the directory; return its name there. Raises OSError."""
    name = path.name[:_MOST_NAME]
    target = next(
        free
        for number in range(10 * MOST_FILES)
        if not os.path.lexists(free := directory / (f"{name}.{number}" if number else name))
    )
    path.rename(target)
    for companion in companions:
        with contextlib.suppress(OSError):
            companion.rename(directory / f"{target.name}.with.{companion.name[:_MOST_NAME]}"[:_MOST_NAME])
    note = {"file": path.name, "code": code, "reason": reason, "at": now()}
    # On a full disk the file is moved all the same, and the ledger tells the reason.
    with contextlib.suppress(OSError):
        target.with_name(f"{target.name}{NOTE}").write_text(json.dumps(note, indent=2) + "\n")
    return target.name


def plan_trim(refused: Sequence[Refused], *, files: int, size: int) -> tuple[Refused, ...]:
    """Return what must go, oldest first, so that at most so many files and bytes stay. Pure."""
    ordered = sorted(refused, key=lambda one: (one.at, one.path.name))
    kept = sum(one.size for one in ordered)
    going: list[Refused] = []
    for one in ordered:
        if len(ordered) - len(going) <= files and kept <= size:
            break
        going.append(one)
        kept -= one.size
    return tuple(going)


def trim(directory: Path, *, files: int = MOST_FILES, size: int = MOST_BYTES) -> int:
    """Remove the oldest beyond the bounds; return the bytes that came free."""
    going = plan_trim(list(_refused(directory)), files=files, size=size)
    for one in going:
        remove(one.path)
        note = one.path.with_name(f"{one.path.name}{NOTE}")
        note.unlink(missing_ok=True)
    return sum(one.size for one in going)


def remove(path: Path) -> None:
    """Remove a file or a folder; a link itself, never what it names."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _refused(directory: Path) -> list[Refused]:
    found: list[Refused] = []
    for path in directory.iterdir():
        if path.name.endswith(NOTE) and os.path.lexists(path.with_name(path.name.removesuffix(NOTE))):
            continue  # goes with its file
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        # The time of the move: a renamed file keeps the time of its content, and changes that of its status.
        found.append(Refused(path, status.st_blocks * 512, status.st_ctime))
    return found
