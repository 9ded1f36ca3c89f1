"""loading: owns bringing a release's engine container from nothing to loaded and checked."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Protocol

import aiohttp

from loopd import golden
from loopd.blobs import Blobs, lend, take_back
from loopd.config import Settings
from loopd.engine import Engine, Instance, InstanceState, StartFailedError
from loopd.ollama import EngineAnswerError, Ollama
from loopd.release import Release
from loopd.units import ENGINE_PORT, ENGINE_UID, engine_unit, layout_of

STILL_THERE_S = 0.5  # how often it is seen to that a container that is waited for still runs


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

    async def recheck(self, address: str, *, timeout_s: float) -> float:
        """Ask one short golden prompt while traffic flows; return tokens a second. Raises GoldenError.

        An engine that does not answer in time raises EngineAnswerError.
        """
        ...

    async def probe(self, address: str, *, timeout_s: float) -> float:
        """Generate one token; return the seconds it took. Raises EngineAnswerError, after ``timeout_s`` at the latest.

        The one sign of life that counts: an engine in a deadlock still answers its status pages.
        """
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
        waiting = asyncio.create_task(
            self._ollama(instance.address).wait_answering(timeout_s=self._settings.rollout.start_s)
        )
        try:
            while not (await asyncio.wait({waiting}, timeout=STILL_THERE_S))[0]:
                await self._require_same(instance, release)
            waiting.result()
        except EngineAnswerError as error:
            raise EngineAnswerError(f"{error}; it said: {await self._last_words(release)}") from error
        finally:
            waiting.cancel()
        return instance

    async def _require_same(self, instance: Instance, release: Release) -> None:
        """Raise StartFailedError when a container ended or was started anew while it was waited for."""
        for seen in await self._engine.observe():
            if (seen.id, seen.started_at, seen.state) == (instance.id, instance.started_at, InstanceState.RUNNING):
                return
        raise StartFailedError(f"{release.unit} ended while it started: {await self._last_words(release)}")

    async def load(self, release: Release, address: str) -> float:
        """Bring the weights into memory."""
        ollama = self._ollama(address)
        limit = self._settings.rollout.load_s
        alias = self._settings.model_alias
        if alias in await ollama.loaded(timeout_s=limit):
            return 0.0
        paths = [layout_of(self._settings).blob(sha256) for sha256, _ in release.blobs]
        # The engine sets the time of the blobs it makes a model of, for which it must own them; only for that moment.
        sealed = await asyncio.to_thread(lend, paths, ENGINE_UID)
        try:
            await ollama.create(alias, release, threads=self._settings.threads, timeout_s=limit)
        finally:
            await asyncio.to_thread(take_back, paths, sealed)
        return (await ollama.generate(alias, "Hello", tokens=1, timeout_s=limit)).tokens_per_s

    async def check(self, release: Release, address: str) -> float:
        """Ask the golden prompts."""
        del release
        return await self._ollama(address).golden(self._settings.model_alias, timeout_s=self._settings.rollout.check_s)

    async def recheck(self, address: str, *, timeout_s: float) -> float:
        """Ask one short golden prompt."""
        return await self._ollama(address).golden_probe(
            self._settings.model_alias, golden.PROBE, tokens=golden.PROBE_TOKENS, timeout_s=timeout_s
        )

    async def probe(self, address: str, *, timeout_s: float) -> float:
        """Generate one token."""
        begun = time.monotonic()
        await self._ollama(address).generate(self._settings.model_alias, "Hi", tokens=1, timeout_s=timeout_s)
        return time.monotonic() - begun

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
        home = layout.engines / release.short
        try:
            for directory in (home, home / "blobs"):
                directory.mkdir(mode=0o700, exist_ok=True)
                own(directory, ENGINE_UID)
            for sha256, size in release.blobs:
                blob = Blobs(layout).ensure(sha256, size, whose=release.short)
                target = home / "blobs" / f"sha256-{sha256}"
                if not target.exists() or not target.samefile(blob):
                    target.unlink(missing_ok=True)
                    os.link(blob, target)
        except OSError as error:
            raise StartFailedError(
                f"the engine's directory of release {release.short} cannot be made: {error}. What serves was not "
                "touched; free some disk (`loopctl releases gc`), then promote it"
            ) from error


def own(path: Path, uid: int) -> None:
    """Give a path to a container's user; where loopd is not root, containers run as its own user instead."""
    if os.geteuid() == 0:
        os.chown(path, uid, uid)
