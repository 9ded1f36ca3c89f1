"""loading: owns bringing a release's engine container from nothing to loaded and checked."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Protocol

import aiohttp

from loopd.config import Settings
from loopd.engine import Engine, Instance, StartFailedError
from loopd.errors import LoopdError
from loopd.ollama import EngineAnswerError, Ollama
from loopd.release import Release
from loopd.units import ENGINE_PORT, ENGINE_UID, engine_unit, layout_of


class BlobMissingError(LoopdError):
    """The release's weights are not on this host any more."""

    code = "blob_missing"


class Loader(Protocol):
    """What rollouts and supervision need of engines. Every call may be repeated."""

    async def start(self, release: Release) -> Instance:
        """Run the release's container until its engine answers.

        Raises BlobMissingError, StartFailedError, EngineAnswerError, EngineDownError.
        """
        ...

    async def load(self, release: Release, address: str) -> float:
        """Make the model under the alias, bring it into memory, generate one token; return tokens a second.

        An engine that has it in memory already is left alone: it serves.
        """
        ...

    async def check(self, release: Release, address: str) -> float:
        """Ask the golden prompts; return tokens a second. Raises GoldenError."""
        ...

    async def remove(self, release_id: str, unit: str) -> None:
        """Remove the release's container; its files stay."""
        ...


class OllamaLoader:
    """Loads releases into Ollama containers."""

    def __init__(self, settings: Settings, engine: Engine, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._engine = engine
        self._session = session

    async def start(self, release: Release) -> Instance:
        """Run the container until the engine answers."""
        await asyncio.to_thread(self._prepare, release)
        instance = await self._engine.apply(engine_unit(self._settings, release))
        if instance.address is None:
            raise StartFailedError(f"{release.unit} ended right after its start: {await self._last_words(release)}")
        try:
            await self._ollama(instance.address).wait_answering(timeout_s=self._settings.rollout.start_s)
        except EngineAnswerError as error:
            raise EngineAnswerError(f"{error}; it said: {await self._last_words(release)}") from error
        return instance

    async def load(self, release: Release, address: str) -> float:
        """Bring the weights into memory."""
        ollama = self._ollama(address)
        limit = self._settings.rollout.load_s
        alias = self._settings.model_alias
        if alias in await ollama.loaded(timeout_s=limit):
            return 0.0
        blob = layout_of(self._settings).blob(release.gguf_sha256)
        # The engine sets the time of the blob it makes a model of, for which it must own it; only for that moment.
        await asyncio.to_thread(own, blob, ENGINE_UID)
        try:
            await ollama.create(alias, release, threads=self._settings.threads, timeout_s=limit)
        finally:
            await asyncio.to_thread(own, blob, 0)
        return (await ollama.generate(alias, "Hello", tokens=1, timeout_s=limit)).tokens_per_s

    async def check(self, release: Release, address: str) -> float:
        """Ask the golden prompts."""
        del release
        ollama = self._ollama(address)
        answer = await ollama.golden(self._settings.model_alias, timeout_s=self._settings.rollout.check_s)
        return answer.tokens_per_s

    async def remove(self, release_id: str, unit: str) -> None:
        """Remove the container."""
        del release_id
        await self._engine.remove(unit, grace_s=5)

    def _ollama(self, address: str) -> Ollama:
        return Ollama(self._session, f"http://{address}:{ENGINE_PORT}")

    async def _last_words(self, release: Release) -> str:
        lines = (await self._engine.logs(release.unit, tail=5)).strip().splitlines()
        return " | ".join(lines)[-600:] or "nothing"

    def _prepare(self, release: Release) -> None:
        """Make the engine's directory with the weights hard-linked into its blob store.

        The link is root's and read-only: the engine reads it and cannot change it. Directories are the engine's.
        """
        layout = layout_of(self._settings)
        blob = layout.blob(release.gguf_sha256)
        home = layout.engines / release.short
        target = home / "blobs" / f"sha256-{release.gguf_sha256}"
        for directory in (home, home / "blobs"):
            directory.mkdir(mode=0o700, exist_ok=True)
            own(directory, ENGINE_UID)
        if not blob.is_file():
            raise BlobMissingError(
                f"the weights of release {release.short} are gone ({blob}). What serves was not touched; "
                "drop the file into models/incoming again"
            )
        if not target.exists():
            target.unlink(missing_ok=True)
            os.link(blob, target)


def own(path: Path, uid: int) -> None:
    """Give a path to a container's user; where loopd is not root, containers run as its own user instead."""
    if os.geteuid() == 0:
        os.chown(path, uid, uid)
