"""downloads: owns what the browser downloads: its name, its place in the workspace, and how much may come."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

MOST_BYTES = 32 << 20
MOST_FILES = 50
NAME_CHARS = 100
_ODD = re.compile(r"[^\w.\- ]+")


def plain(name: str) -> str:
    """Return a name that is one, whatever a server calls its file."""
    made = _ODD.sub("_", name.replace("\\", "/").rsplit("/", 1)[-1]).strip(". ")
    stem, dot, end = made.rpartition(".")
    if dot and len(end) <= 10:  # noqa: PLR2004 as extensions are
        return f"{stem[: NAME_CHARS - len(end) - 1]}.{end}"
    return made[:NAME_CHARS] or "download"


class Downloads:
    """The folder of downloads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def keep(self, download: Any) -> str:
        """Put a finished download in the folder; return what to tell of it. Any: Playwright's."""
        name = plain(str(download.suggested_filename))
        if fault := await download.failure():
            return f"the download of {name} failed: {fault}"
        came = Path(await download.path())
        try:
            return self._keep(came, name)
        except OSError as error:
            return f"the download of {name} was not kept: {(error.strerror or str(error)).lower()}"
        finally:
            await download.delete()

    def _keep(self, came: Path, name: str) -> str:
        size = came.stat().st_size
        if size > MOST_BYTES:
            return f"the download of {name} was not kept: it has {size} bytes, the limit is {MOST_BYTES}"
        self._folder.mkdir(exist_ok=True)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            there = set(os.listdir(folder))  # noqa: PTH208 by handle
            if len(there) >= MOST_FILES:
                return f"the download of {name} was not kept: {self._folder.name} holds {MOST_FILES} files already"
            name = next(made for made in _numbered(name) if made not in there)
            handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder)
            with os.fdopen(handle, "wb") as kept, came.open("rb") as content:
                shutil.copyfileobj(content, kept)
        finally:
            os.close(folder)
        return f"downloaded {self._folder.name}/{name}, {size} bytes"


def _numbered(name: str) -> list[str]:
    stem, dot, end = name.rpartition(".")
    return [name, *(f"{stem}-{n}.{end}" if dot else f"{name}-{n}" for n in range(1, MOST_FILES + 1))]
