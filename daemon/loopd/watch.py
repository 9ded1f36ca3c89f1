"""watch: owns noticing files in models/incoming: inotify tells at once, a look every few seconds misses nothing.

A file is looked at when it has not changed for ``settle_s``. One that is truncated but may still grow is left
alone until it has not changed for ``stale_s``; then it is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from loopd.errors import LoopdError
from loopd.gguf_types import GgufError
from loopd.intake import Intake

LOOK_S = 5.0  # without any event; inotify's queue can overflow
MOST_FILES = 1000  # looked at in one go
SUFFIX = ".gguf"
# Names that copying tools use until a file is whole.
TEMPORARY = (".part", ".partial", ".tmp", ".crdownload", ".filepart", "~")

log = structlog.get_logger("loopd.watch")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a file looked like, and since when."""

    size: int
    mtime_ns: int
    inode: int
    since: float  #: monotonic seconds
    truncated: str = ""  #: why it was not whole, '' when not looked at yet


def is_temporary(name: str) -> bool:
    """Tell whether a name belongs to a copy under way (rsync begins them with a dot)."""
    return name.startswith(".") or name.endswith(TEMPORARY)


@dataclass(kw_only=True)
class Watcher:
    """Watches one directory and hands whole files to the intake."""

    directory: Path
    intake: Intake
    settle_s: float
    stale_s: float
    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, Seen] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run_forever(self) -> None:
        """Look whenever something changed, and every LOOK_S."""
        loop = asyncio.get_running_loop()
        observer = Observer()
        observer.schedule(_Bell(lambda: loop.call_soon_threadsafe(self._changed.set)), str(self.directory))
        observer.start()
        try:
            while True:
                self._changed.clear()
                wait = await self.look()
                try:
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
                except TimeoutError:
                    pass
        finally:
            observer.stop()
            await asyncio.to_thread(observer.join)

    async def look(self) -> float:
        """Look at each file once; return the seconds after which to look again."""
        found = {entry.name: entry for entry in await asyncio.to_thread(self._list)}
        self._seen = {name: seen for name, seen in self._seen.items() if name in found}
        wait = LOOK_S
        for name in sorted(found, key=lambda name: self._order(found[name])):
            wait = min(wait, await self._consider(found[name]))
        return wait

    def _list(self) -> list[Path]:
        entries = (entry for entry in self.directory.iterdir() if not is_temporary(entry.name))
        return [entry for _, entry in zip(range(MOST_FILES), entries, strict=False)]

    @staticmethod
    def _order(path: Path) -> float:
        try:
            return path.lstat().st_mtime
        except OSError:
            return 0.0

    async def _consider(self, path: Path) -> float:
        """Deal with one file if it is time to; return the seconds until it is."""
        try:
            status = path.lstat()
        except FileNotFoundError:
            return LOOK_S
        now = self.clock()
        seen = self._seen.get(path.name)
        if seen is None or (seen.size, seen.mtime_ns, seen.inode) != (
            status.st_size,
            status.st_mtime_ns,
            status.st_ino,
        ):
            seen = Seen(status.st_size, status.st_mtime_ns, status.st_ino, now)
            self._seen[path.name] = seen
        limit = self.stale_s if seen.truncated else self.settle_s
        if (left := seen.since + limit - now) > 0:
            return min(left, LOOK_S)
        if seen.truncated:
            await self._reject(path, "truncated", f"{seen.truncated}; it did not change for {self.stale_s:g} s")
            return LOOK_S
        return await self._admit(path, seen)

    async def _admit(self, path: Path, seen: Seen) -> float:
        if path.suffix.lower() != SUFFIX:
            await self._reject(path, "not_gguf", f"{path.name} does not end in {SUFFIX}; only GGUF files are served")
            return LOOK_S
        try:
            await self.intake.admit(path)
        except GgufError as error:
            if error.unfinished:
                self._seen[path.name] = Seen(seen.size, seen.mtime_ns, seen.inode, seen.since, truncated=str(error))
                log.info("candidate.incomplete", file=path.name, reason=str(error))
                return self.settle_s
            await self._reject(path, error.code, str(error))
        except FileNotFoundError:
            log.info("candidate.vanished", file=path.name)
        except (LoopdError, OSError) as error:
            # Not the file's fault (engine down, disk): leave it where it is and look again.
            log.warning("candidate.postponed", file=path.name, error=str(error))
        return LOOK_S

    async def _reject(self, path: Path, code: str, reason: str) -> None:
        self._seen.pop(path.name, None)
        try:
            await self.intake.reject(path, code, reason)
        except OSError as error:
            log.warning("candidate.not_moved", file=path.name, error=str(error))


class _Bell(FileSystemEventHandler):
    """Rings on whatever changes a file; which one, the look tells."""

    def __init__(self, ring: Callable[[], object]) -> None:
        self._ring = ring

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Ring, except for our own reading."""
        if event.event_type not in ("opened", "closed_no_write"):
            self._ring()
