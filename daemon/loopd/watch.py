"""watch: owns noticing files in models/incoming: inotify tells at once, a look every few seconds misses nothing.

A file is looked at when neither it nor what lies beside it (sidecar, signature) has changed for ``settle_s``. One
that may still become whole (truncated, its base or adapter not there yet) is left alone until nothing has changed for
``stale_s``; then it is refused. So is a sidecar without its model. One that somebody has open for writing waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from loopd.errors import LoopdError
from loopd.gguf_types import GgufError
from loopd.intake import Intake
from loopd.sidecar import SUFFIX, Drop, find_drop, is_companion

LOOK_S = 5.0  # without any event; inotify's queue can overflow
MOST_FILES = 1000  # looked at in one go
# Names that copying tools use until a file is whole.
TEMPORARY = (".part", ".partial", ".tmp", ".crdownload", ".filepart", "~")
# Never stale: not looked at yet, somebody still writes to it, or it was not the file's fault.
_PATIENT = frozenset({"", "still_written", "postponed"})
Glance = tuple[str, int, int, int]  #: name, size, time and inode of a file

log = structlog.get_logger("loopd.watch")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a file and its companions looked like, and since when."""

    looks: tuple[Glance, ...]
    since: float  #: monotonic seconds
    waits: str = ""  #: code of why it was not taken yet, '' when not looked at
    reason: str = ""
    tried_at: float = 0.0


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
    look_s: float = LOOK_S
    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, Seen] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run_forever(self) -> None:
        """Look whenever something changed, and every ``look_s``."""
        loop = asyncio.get_running_loop()
        observer = self._observe(_Bell(lambda: loop.call_soon_threadsafe(self._changed.set)))
        try:
            while True:
                self._changed.clear()
                wait = await self.look()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
        finally:
            if observer is not None:
                observer.stop()
                await asyncio.to_thread(observer.join)

    def _observe(self, bell: FileSystemEventHandler) -> BaseObserver | None:
        observer = Observer()
        observer.schedule(bell, str(self.directory))
        try:
            observer.start()
        except OSError as error:
            # The host's inotify instances are all taken: looking every few seconds does it, too.
            log.warning("watch.without_inotify", error=str(error))
            return None
        return observer

    async def look(self) -> float:
        """Look at each file once; return the seconds after which to look again."""
        try:
            found = await asyncio.to_thread(self._list)
        except OSError as error:
            log.warning("watch.unreadable", error=str(error))
            return self.look_s
        self._seen = {name: seen for name, seen in self._seen.items() if name in found}
        wait = self.look_s
        owned = _owned(self.directory, found)
        for name in sorted(found, key=lambda name: found[name][2]):
            wait = min(wait, await self._consider(name, found, owned))
        return wait

    def _list(self) -> dict[str, Glance]:
        found: dict[str, Glance] = {}
        for path in self.directory.iterdir():
            if len(found) >= MOST_FILES:
                break
            with contextlib.suppress(FileNotFoundError):
                if not is_temporary(path.name):
                    status = path.lstat()
                    found[path.name] = (path.name, status.st_size, status.st_mtime_ns, status.st_ino)
        return found

    async def _consider(self, name: str, found: Mapping[str, Glance], owned: AbstractSet[str]) -> float:
        """Deal with one file if it is time to; return the seconds until it is."""
        path = self.directory / name
        if is_companion(name):
            return await self._consider_companion(path, found[name], owned=name in owned)
        drop, twice = Drop(path), None
        try:
            drop = find_drop(path, found) if path.suffix.lower() == SUFFIX else drop
        except GgufError as error:
            twice = str(error)
        seen = self._note(name, tuple(found[one.name] for one in (path, *drop.companions)))
        if (left := seen.since + self.settle_s - self.clock()) > 0:
            return min(left, self.look_s)
        if path.suffix.lower() != SUFFIX:
            await self._reject(drop, "not_gguf", f"{name} does not end in {SUFFIX}; only GGUF files are served")
        elif twice is not None:
            await self._reject(drop, "sidecar_twice", twice)
        elif seen.waits not in _PATIENT and seen.since + self.stale_s <= self.clock():
            await self._reject(drop, seen.waits, f"{seen.reason}; nothing changed for {self.stale_s:g} s")
        elif (pause := self._pause(seen)) > 0:
            return pause
        else:
            await self._admit(drop, seen)
        return self.look_s

    def _pause(self, seen: Seen) -> float:
        """Return the seconds until a file that waits is worth another try."""
        if seen.waits in ("", "still_written"):
            return 0.0
        if seen.waits == "truncated":  # it can only be whole when it has changed
            return max(0.01, min(seen.since + self.stale_s - self.clock(), self.look_s))
        # Each try reads it again, and another file's copy rings the bell many times a second.
        return seen.tried_at + self.look_s - self.clock()

    async def _consider_companion(self, path: Path, glance: Glance, *, owned: bool) -> float:
        """Refuse what lies beside nothing, when it has done so for long: its model may still be on its way."""
        if owned:
            self._seen.pop(path.name, None)
            return self.look_s
        seen = self._note(path.name, (glance,))
        if (left := seen.since + self.stale_s - self.clock()) > 0:
            return min(left, self.look_s)
        await self._reject(Drop(path), "sidecar_alone", f"no model came beside {path.name} for {self.stale_s:g} s")
        return self.look_s

    def _note(self, name: str, looks: tuple[Glance, ...]) -> Seen:
        seen = self._seen.get(name)
        if seen is None or seen.looks != looks:
            seen = self._seen[name] = Seen(looks, self.clock())
        return seen

    async def _admit(self, drop: Drop, seen: Seen) -> None:
        try:
            await self.intake.admit(drop)
        except GgufError as error:
            if not error.unfinished:
                await self._reject(drop, error.code, str(error))
                return
            await self._wait(drop, seen, error.code, str(error))
        except FileNotFoundError:
            log.info("candidate.vanished", file=drop.model.name)
        except (LoopdError, OSError, sqlite3.Error) as error:
            # Not the file's fault (engine down, disk): leave it where it is and look again.
            log.warning("candidate.postponed", file=drop.model.name, error=str(error))
            await self._wait(drop, seen, "postponed", str(error))

    async def _wait(self, drop: Drop, seen: Seen, code: str, reason: str) -> None:
        """Leave a file where it is; the ledger says why, once for each reason."""
        self._seen[drop.model.name] = replace(seen, waits=code, reason=reason, tried_at=self.clock())
        if seen.waits != code:
            with contextlib.suppress(sqlite3.Error):
                await self.intake.ledger.append("candidate.waits", drop.model.name, reason, code=code)

    async def _reject(self, drop: Drop, code: str, reason: str) -> None:
        self._seen.pop(drop.model.name, None)
        try:
            await self.intake.reject(drop.model, code, reason, drop)
        except (OSError, sqlite3.Error) as error:
            log.warning("candidate.not_moved", file=drop.model.name, error=str(error))


def _owned(directory: Path, names: Mapping[str, object]) -> set[str]:
    """Return the names that lie beside a model."""
    owned: set[str] = set()
    for name in names:
        if name.lower().endswith(SUFFIX):
            with contextlib.suppress(GgufError):
                owned |= {path.name for path in find_drop(directory / name, names).companions}
    return owned


class _Bell(FileSystemEventHandler):
    """Rings on whatever changes a file; which one, the look tells."""

    def __init__(self, ring: Callable[[], object]) -> None:
        self._ring = ring

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Ring, except for our own reading."""
        if event.event_type not in ("opened", "closed_no_write"):
            self._ring()
