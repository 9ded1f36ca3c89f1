"""workspaces: owns the files of a conversation between its runs: one tar archive each, replaced as a whole.

An archive is data here: nothing of it is unpacked outside of a sandbox, whose tool runner checks each member.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import tarfile
from pathlib import Path
from typing import ClassVar

from loopbox_agent.errors import AgentError


class NoArchiveError(AgentError):
    """What came is no tar archive; what was there stays."""

    code: ClassVar[str] = "validation"
    status: ClassVar[int] = 422


async def save_tar(path: Path, body: bytes) -> None:
    """Put an archive in the place of the one before. Raises NoArchiveError."""
    await asyncio.to_thread(_save, path, body)


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
