"""workspaces: owns the files of a conversation between its runs: one tar archive each, replaced as a whole.

An archive is data here: nothing of it is unpacked outside of a sandbox, whose tool runner checks each member.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import os
import tarfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from loopbox_agent.errors import AgentError

PIECE = 384 << 10  #: bytes of an archive in one record of an export
MOST_EXPORTED = 4 << 30  #: bytes of all archives in one export


class NoArchiveError(AgentError):
    """What came is no tar archive; what was there stays."""

    code: ClassVar[str] = "validation"
    status: ClassVar[int] = 422


async def save_tar(path: Path, body: bytes) -> None:
    """Put an archive in the place of the one before. Raises NoArchiveError."""
    await asyncio.to_thread(_save, path, body)


async def records_of(archives: Iterable[Path], *, most: int = MOST_EXPORTED) -> AsyncIterator[dict[str, JsonValue]]:
    """Yield archives piece by piece: name, size in bytes, where the piece begins, the piece in base64.

    An archive that would make more than ``most`` bytes of them all is named and left out; one that is not there is not.
    """
    for path in archives:
        try:
            file = await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError:
            continue
        with file:  # the archive as it is now, whatever takes its place meanwhile
            size = os.fstat(file.fileno()).st_size
            if size > most:
                yield {"file": path.name, "size": size, "left_out": "too large for an export: take this one by itself"}
                continue
            most -= size
            begin = 0
            while piece := await asyncio.to_thread(file.read, PIECE):
                yield {"file": path.name, "size": size, "begin": begin, "base64": base64.b64encode(piece).decode()}
                begin += len(piece)


def remove_archives(archives: Iterable[Path]) -> int:
    """Remove archives; return how many were there. Blocks."""
    removed = 0
    for path in archives:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            removed += 1
    return removed


def _save(path: Path, body: bytes) -> None:
    try:
        with tarfile.open(fileobj=io.BytesIO(body), mode="r:") as archive:
            archive.next()
    except (tarfile.TarError, EOFError) as error:
        raise NoArchiveError(f"This is no plain tar archive ({error}); the files that were there stay.") from error
    draft = path.with_suffix(".new")
    try:
        with draft.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
