"""intake: owns the way of one file from models/incoming to a release, or to models/rejected with its reason.

Order matters for a kill at any point: the bytes are linked into the blob store first, then the release is written
down, and only then does the incoming name go. Seen again after a kill, the same file ends in the same release.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from loopd.blobs import Blobs, Look, has_no_writer
from loopd.draft import draft_adapter, draft_model, put_on
from loopd.errors import ConflictError, NotFoundError, UnavailableError
from loopd.gguf import Summary
from loopd.gguf_adapter import AdapterSummary
from loopd.gguf_types import GgufError
from loopd.inspection import Inspected
from loopd.ledger import Ledger
from loopd.metrics import Metrics
from loopd.registry import CollectedError, Registry
from loopd.rejected import put_away, trim
from loopd.release import Release
from loopd.rollout import Rollouts
from loopd.sidecar import SIGNATURE_SUFFIX, Drop, Sidecar, parse_sidecar, read_small
from loopd.signature import check_signature
from loopd.units import Layout

FREE_BYTES = 512 << 20  # left for state, logs and engines


class DiskFullError(UnavailableError):
    """There is no room to take a file in; it stays where it is and is looked at again."""

    code = "disk_full"


@dataclass(frozen=True, kw_only=True)
class Found:
    """One file with what was seen of it before it was read."""

    path: Path
    look: Look
    summary: Inspected
    sidecar: bytes | None
    signature: bytes | None


@dataclass(frozen=True, kw_only=True)
class Intake:
    """Turns files into releases."""

    layout: Layout
    registry: Registry
    rollouts: Rollouts
    ledger: Ledger
    metrics: Metrics
    engine_image: Callable[[], Awaitable[str]]  #: digest of the image that new releases run on
    inspect: Callable[[Path], Awaitable[Inspected]]
    num_ctx: int
    max_model_bytes: int
    blobs: Blobs
    public_key: str = ""  #: Ed25519 in base64; '': unsigned is fine
    free_bytes: int = FREE_BYTES

    async def admit(self, drop: Drop) -> Release:
        """Check a whole file, record its release, ask for its rollout; the incoming names are gone afterwards.

        Raises GgufError, ``unfinished`` when the file may still become whole; DiskFullError.
        """
        raw = await asyncio.to_thread(read_small, drop.sidecar) if drop.sidecar else None
        sidecar = Sidecar()
        if drop.sidecar is not None and raw is not None:
            parse = functools.partial(parse_sidecar, drop.sidecar.name, raw, model=drop.model.name)
            sidecar = await asyncio.to_thread(parse)  # half a megabyte takes up to a second
        main = await self._find(drop.model, raw, drop.signature)
        extra = [await self._find_adapter(drop.model.with_name(one.file)) for one in sidecar.adapters]
        async with self.blobs.lock:
            release = await self._draft(main, extra, sidecar)
            await self._record(release, drop.model.name, sidecar)
        try:
            await self.rollouts.request(release, kind="rollout", reason=f"{drop.model.name} came in")
        except ConflictError as error:
            await self.ledger.append("candidate.ignored", drop.model.name, str(error), release=release.short)
        self.metrics.candidates.labels(verdict="accepted").inc()
        for path in (*drop.companions, *(_signature_of(one.path) for one in extra), *(one.path for one in extra)):
            path.unlink(missing_ok=True)
        drop.model.unlink(missing_ok=True)
        return release

    async def reject(self, path: Path, code: str, reason: str, drop: Drop | None = None) -> None:
        """Move a file, and what came with it, to models/rejected beside a file that says why."""
        companions = drop.companions if drop else ()
        moved = await asyncio.to_thread(put_away, self.layout.rejected, path, code, reason, companions)
        self.metrics.candidates.labels(verdict=code).inc()
        await self.ledger.append("candidate.rejected", path.name, reason, code=code, moved_to=moved)
        await asyncio.to_thread(trim, self.layout.rejected)

    async def _find(self, path: Path, sidecar: bytes | None, signature: Path | None) -> Found:
        look = await asyncio.to_thread(self._look, path)
        return Found(
            path=path,
            look=look,
            summary=await self.inspect(path),
            sidecar=sidecar,
            signature=await asyncio.to_thread(read_small, signature) if signature else None,
        )

    async def _find_adapter(self, path: Path) -> Found:
        signature = _signature_of(path)
        try:
            found = await self._find(path, None, signature if os.path.lexists(signature) else None)
        except FileNotFoundError as error:
            raise GgufError("adapter_missing", f"{path.name}, which the sidecar names, is not beside it") from error
        if not isinstance(found.summary, AdapterSummary):
            raise GgufError("adapter_is_model", f"{path.name} is a whole model, no adapter; drop it alone")
        return found

    async def _draft(self, main: Found, extra: list[Found], sidecar: Sidecar) -> Release:
        """Take the files in and return their release; what can be refused without their digests is refused first."""
        image = await self.engine_image()
        name = main.path.stem
        if isinstance(main.summary, AdapterSummary):
            base = await self._base(main.path.name, sidecar)
            release = put_on(draft_adapter(name, base, sidecar, engine_image=image), main.summary, sha256="")
            return put_on(release, main.summary, sha256=await self._take(main))
        summary: Summary = main.summary
        release = draft_model(name, summary, sidecar, sha256="", engine_image=image, num_ctx=self.num_ctx)
        adapters = [(one, one.summary) for one in extra if isinstance(one.summary, AdapterSummary)]
        for _, adapter in adapters:
            put_on(release, adapter, sha256="")
        release = replace(release, gguf_sha256=await self._take(main))
        for found, adapter in adapters:
            release = put_on(release, adapter, sha256=await self._take(found))
        return release

    async def _base(self, name: str, sidecar: Sidecar) -> Release:
        if not sidecar.base:
            raise GgufError(
                "adapter_without_base",
                f"{name} is a LoRA adapter, and nothing beside it names its base: drop it with a sidecar whose `base` "
                "is a release, or name it in the sidecar of its base",
            )
        try:
            base = await self.registry.find_weights(sidecar.base) or await self.registry.find(sidecar.base)
            await self.registry.check_kept(base.id)
        except (NotFoundError, ConflictError, CollectedError) as error:
            raise GgufError("base_missing", f"{name} is an adapter of {sidecar.base!r}: {error}") from error
        return base

    async def _take(self, found: Found) -> str:
        def approve(sha256: str) -> None:
            if self.public_key:
                check_signature(self.public_key, sha256, found.sidecar, found.signature, name=found.path.name)

        return await asyncio.to_thread(functools.partial(self.blobs.take, found.path, found.look, approve))

    async def _record(self, release: Release, file: str, sidecar: Sidecar) -> None:
        if await self.registry.add(release, source=file, lineage=sidecar.lineage, signer=self.public_key):
            event, cause = "release.added", f"{file} is a valid {release.architecture} model"
        else:
            event, cause = "release.known", f"{file} makes the same release as before"
        await self.ledger.append(
            event,
            release.short,
            cause,
            file=file,
            size_bytes=sum(size for _, size in release.blobs),
            gguf_sha256=release.gguf_sha256,
        )

    def _look(self, path: Path) -> Look:
        """Return what is seen of a regular file that may be read at all, and that nobody writes to."""
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise GgufError("not_a_file", f"{path.name} is not a regular file; copy the model itself, not a link")
        if status.st_size > self.max_model_bytes:
            raise GgufError(
                "too_large",
                f"{path.name} has {status.st_size} bytes, the limit is {self.max_model_bytes} (max_model_bytes)",
            )
        if shutil.disk_usage(self.layout.home).free < self.free_bytes:
            raise DiskFullError(
                f"less than {self.free_bytes >> 20} MiB are free below {self.layout.home.name}; {path.name} waits. "
                "What serves is not touched; free some, `loopctl releases gc` removes old releases"
            )
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            has_no_writer(fd, path)
        finally:
            os.close(fd)
        return Look.of(status)


def _signature_of(path: Path) -> Path:
    return path.with_name(path.name + SIGNATURE_SUFFIX)
