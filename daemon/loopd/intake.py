"""intake: owns the way of one file from models/incoming to a release, or to models/rejected with its reason.

Order matters for a kill at any point: the bytes are linked into the blob store first, then the release is written
down, and only then does the incoming name go. Seen again after a kill, the same file ends in the same release.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from loopd.errors import ConflictError
from loopd.gguf import Summary
from loopd.gguf_types import GgufError
from loopd.ledger import Ledger
from loopd.metrics import Metrics
from loopd.registry import Registry
from loopd.release import Release
from loopd.rollout import Rollouts
from loopd.state import now
from loopd.template import chat_format
from loopd.units import Layout

CHUNK = 4 << 20
FREE_BYTES = 512 << 20  # left for state, logs and engines
LEAST_CTX = 256
# An agent that calls tools wants the likely word; small models drift off at the engine's own default of 0.8.
SAMPLING = (("temperature", 0.2), ("top_p", 0.9))

log = structlog.get_logger("loopd.intake")


@dataclass(frozen=True, kw_only=True)
class Intake:
    """Turns files into releases."""

    layout: Layout
    registry: Registry
    rollouts: Rollouts
    ledger: Ledger
    metrics: Metrics
    engine_image: Callable[[], Awaitable[str]]  #: digest of the image that new releases run on
    inspect: Callable[[Path], Awaitable[Summary]]
    num_ctx: int
    max_model_bytes: int

    async def admit(self, path: Path) -> Release:
        """Check a whole file, record its release, ask for its rollout; the incoming name is gone afterwards.

        Raises GgufError, ``unfinished`` when the file may still grow.
        """
        size = self._look(path)
        summary = await self.inspect(path)
        sha256 = await asyncio.to_thread(self._store, path, size)
        release = self._release(path, summary, sha256, await self.engine_image())
        if await self.registry.add(release, source=path.name):
            await self.ledger.append(
                "release.added",
                release.short,
                f"{path.name} is a valid {summary.architecture} model",
                file=path.name,
                size_bytes=size,
                gguf_sha256=sha256,
            )
        try:
            await self.rollouts.request(release, kind="rollout", reason=f"{path.name} came in")
        except ConflictError as error:
            await self.ledger.append("candidate.ignored", path.name, str(error), release=release.short)
        self.metrics.candidates.labels(verdict="accepted").inc()
        path.unlink(missing_ok=True)
        return release

    async def reject(self, path: Path, code: str, reason: str) -> None:
        """Move a file to models/rejected beside a file that says why."""
        moved = await asyncio.to_thread(self._move_away, path, code, reason)
        self.metrics.candidates.labels(verdict=code).inc()
        await self.ledger.append("candidate.rejected", path.name, reason, code=code, moved_to=moved)

    def _look(self, path: Path) -> int:
        """Return the size of a regular file that may be read at all."""
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise GgufError("not_a_file", f"{path.name} is not a regular file; copy the model itself, not a link")
        if status.st_size > self.max_model_bytes:
            raise GgufError(
                "too_large",
                f"{path.name} has {status.st_size} bytes, the limit is {self.max_model_bytes} (max_model_bytes)",
            )
        if shutil.disk_usage(self.layout.home).free < FREE_BYTES:
            raise GgufError(
                "disk_full",
                f"less than {FREE_BYTES >> 20} MiB are free below {self.layout.home.name}; free some and drop it again",
            )
        return status.st_size

    def _store(self, path: Path, size: int) -> str:
        """Hash the bytes once and link them into the blob store, read-only; return the digest."""
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
            if os.fstat(file.fileno()).st_size != size:
                raise GgufError("changed_while_read", f"{path.name} grew while it was read; it is looked at again")
        sha256 = digest.hexdigest()
        blob = self.layout.blob(sha256)
        if not blob.exists():
            path.chmod(0o444)
            if os.geteuid() == 0:
                os.chown(path, 0, 0)
            os.link(path, blob)
        return sha256

    def _release(self, path: Path, summary: Summary, sha256: str, engine_image: str) -> Release:
        chat = chat_format(summary.chat_template, eos_text=summary.eos_text, eot_text=summary.eot_text)
        return Release(
            name=path.stem[:80],
            engine_image=engine_image,
            gguf_sha256=sha256,
            size_bytes=summary.size_bytes,
            architecture=summary.architecture,
            template=chat.template,
            stop=chat.stop,
            sampling=SAMPLING,
            num_ctx=max(LEAST_CTX, min(self.num_ctx, summary.context_length)),
        )

    def _move_away(self, path: Path, code: str, reason: str) -> str:
        name = path.name[:200]
        target = self.layout.rejected / name
        for number in range(1, 1000):
            if not os.path.lexists(target):
                break
            target = self.layout.rejected / f"{name}.{number}"
        path.rename(target)
        note = {"file": path.name, "code": code, "reason": reason, "at": now()}
        target.with_name(f"{target.name}.reason.json").write_text(json.dumps(note, indent=2) + "\n")
        return target.name
