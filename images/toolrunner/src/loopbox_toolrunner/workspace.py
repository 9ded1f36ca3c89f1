"""workspace: owns the routes that give out the workspace as a tar and take one in its place."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterable
from dataclasses import asdict
from pathlib import Path

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from loopbox_toolrunner import import_child
from loopbox_toolrunner.export import Bounds, ExportError, pack, plan_export
from loopbox_toolrunner.runner import Outcome, RefusedError, Runner
from loopbox_toolrunner.settings import Settings

CHILD = Path(import_child.__file__)
TYPE = "application/x-tar"
SLACK = 64 << 20  # beyond the limit, before the connection is cut
REST_S = 5.0  # for the rest of a body that is not wanted

log = structlog.get_logger("toolrunner.workspace")


class Workspace:
    """GET and PUT of the whole workspace."""

    def __init__(self, settings: Settings, runner: Runner) -> None:
        self._root = Path(os.path.realpath(settings.workspace))
        self._runner = runner
        self._bounds = Bounds(settings.transfer_bytes, settings.transfer_files, settings.transfer_s)
        self._importing = asyncio.Lock()

    def routes(self) -> list[Route]:
        """Return what the application serves."""
        return [
            Route("/workspace", self._export, methods=["GET"]),
            Route("/workspace", self._import, methods=["PUT"]),
        ]

    async def _export(self, request: Request) -> Response:
        outputs = request.query_params.get("outputs", "1") != "0"
        try:
            items = await asyncio.to_thread(plan_export, self._root, self._bounds, outputs=outputs)
        except ExportError as error:
            return _refusal(413, str(error))
        return StreamingResponse(
            pack(self._root, items, self._bounds), media_type=TYPE, headers={"X-Entries": str(len(items))}
        )

    async def _import(self, request: Request) -> Response:
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._bounds.most_bytes:
            return _refusal(413, f"the archive has {length} bytes, {self._bounds.most_bytes} are taken at most")
        if self._importing.locked():
            return _refusal(409, "another import is under way; ask again when it has ended")
        async with self._importing:
            try:
                outcome = await self._unpack(request.stream())
            except RefusedError as error:
                return _refusal(503, str(error))
            finally:
                await asyncio.shield(asyncio.to_thread(import_child.sweep, str(self._root)))
        return _answer(outcome)

    async def _unpack(self, body: AsyncIterable[bytes]) -> Outcome:
        """Feed the body to the child that unpacks it. Whoever cancels this ends the child, which then changes nothing.

        Raises RefusedError.
        """
        ours, theirs = socket.socketpair()
        asked = json.dumps({"root": str(self._root), **asdict(self._bounds)})
        argv = [sys.executable, "-I", "-S", str(CHILD), asked]
        running = asyncio.create_task(
            self._runner.run(argv, self._bounds.seconds, stdin=theirs.detach()), name="import"
        )
        feeding = asyncio.create_task(_feed(body, ours, self._bounds.most_bytes), name="feed")
        try:
            await asyncio.wait({running, feeding}, return_when=asyncio.FIRST_COMPLETED)
            if feeding.done():
                feeding.result()
            outcome = await running
            await asyncio.wait({feeding}, timeout=REST_S)
            return outcome
        finally:
            for task in (feeding, running):
                task.cancel()
            await asyncio.gather(feeding, return_exceptions=True)


async def _feed(body: AsyncIterable[bytes], end: socket.socket, most: int) -> None:
    """Pass the body on; what comes when the child wants no more is dropped, so that the client hears the answer."""
    _, writer = await asyncio.open_connection(sock=end)
    taken = 0
    try:
        async for chunk in body:
            taken += len(chunk)
            if taken > most + SLACK:
                break
            if not writer.is_closing():
                writer.write(chunk)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    await writer.drain()
        if not writer.is_closing():
            writer.write_eof()
    except (BrokenPipeError, ConnectionResetError):
        pass  # between two looks
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _answer(outcome: Outcome) -> Response:
    said = outcome.stdout.split("\n")
    done: dict[str, object] = {}
    with contextlib.suppress(ValueError, IndexError):
        done = json.loads(said[-2])
    if "entries" in done:
        log.info("workspace.imported", **done)
        return JSONResponse(done)
    if "error" in done:
        return _refusal(400, f"the archive was refused: {done['error']}")
    changed = import_child.SWAPPING in said
    why = outcome.stderr.strip()[-300:] or f"exit code {outcome.exit_code}"
    what = "the workspace may hold a part of the archive" if changed else "the workspace is as it was"
    return _refusal(400, f"the import was ended ({why}); {what}", changed=changed)


def _refusal(status: int, why: str, *, changed: bool = False) -> JSONResponse:
    return JSONResponse({"error": why, "changed": changed}, status_code=status)
