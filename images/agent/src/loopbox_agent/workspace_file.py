"""workspace_file: owns moving a sandbox's whole workspace to and from a tar file, never whole in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import httpx2

from loopbox_agent.errors import AgentError

MAX_BYTES = 1 << 30  # of one workspace
CHUNK = 256 << 10
TIMEOUT = httpx2.Timeout(10.0, read=60.0, write=60.0)


class WorkspaceError(AgentError):
    """A workspace could not be moved; the text says what was not harmed."""

    code: ClassVar[str] = "workspace_not_moved"
    status: ClassVar[int] = 502


class Workspace:
    """The files of one sandbox."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    async def export(self, to: Path, *, most: int = MAX_BYTES) -> int:
        """Write the workspace as a tar file that appears whole; return its bytes. Raises WorkspaceError."""
        part = to.with_name(to.name + ".part")
        size = 0
        try:
            with await asyncio.to_thread(part.open, "wb") as file:
                async with self._http.stream("GET", "/workspace", timeout=TIMEOUT) as response:
                    response.raise_for_status()
                    async for chunk in response.aiter_raw(CHUNK):
                        size += len(chunk)
                        if size > most:
                            raise WorkspaceError(
                                f"The workspace has more than {most} bytes; nothing was kept of it. Remove files in it."
                            )
                        await asyncio.to_thread(file.write, chunk)
            await asyncio.to_thread(part.replace, to)
        except (httpx2.HTTPError, OSError) as error:
            raise WorkspaceError(
                f"The workspace could not be exported ({_why(error)}); {to.name} is as it was."
            ) from error
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)
        return size

    async def import_(self, from_: Path) -> int:
        """Fill the workspace from a tar file; return its bytes. Raises WorkspaceError."""
        size = 0

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal size
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                size += len(chunk)
                yield chunk

        try:
            with await asyncio.to_thread(from_.open, "rb") as file:
                headers = {"Content-Type": "application/x-tar"}
                response = await self._http.put("/workspace", content=chunks(), headers=headers, timeout=TIMEOUT)
                response.raise_for_status()
        except (httpx2.HTTPError, OSError) as error:
            raise WorkspaceError(
                f"The workspace could not be filled from {from_.name} ({_why(error)}); that file is unchanged. "
                "Use another sandbox: this one may hold a part of it."
            ) from error
        return size


def _why(error: Exception) -> str:
    if isinstance(error, httpx2.HTTPStatusError):
        return f"the tool runner answered {error.response.status_code}"
    return str(error) or type(error).__name__
