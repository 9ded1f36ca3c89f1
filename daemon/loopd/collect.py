"""collect: owns which releases' weights are removed when the disk budget is passed, and removing them.

Never removed is what serves, what a rollback needs, what a rollout concerns, what is pinned, and the newest few. The
record of a collected release stays: it says where its traffic came from, and dropping the file again revives it.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import structlog

from loopd.blobs import Blobs
from loopd.config import RegistrySettings
from loopd.ledger import Ledger
from loopd.registry import Registry
from loopd.rejected import trim
from loopd.release import SHORT, Release
from loopd.rollout import Rollouts
from loopd.units import Layout

ENDS = ("rollout.promoted", "rollout.rolled_back", "rollout.superseded")

log = structlog.get_logger("loopd.collect")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One release's claim on the disk."""

    id: str
    blobs: tuple[tuple[str, int], ...]  #: digest, bytes; several releases may hold one


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What is to go."""

    releases: tuple[str, ...]  #: ids, oldest first
    blobs: tuple[str, ...]  #: digests that no kept release holds
    freed_bytes: int
    kept_bytes: int
    budget_bytes: int


def plan_collection(newest_first: Sequence[Holding], *, protected: AbstractSet[str], keep: int, budget: int) -> Removal:
    """Choose the oldest releases that may go until the rest fits the budget, in bytes. Pure.

    A release whose weights another that stays holds, too, is left: its going would free nothing.
    """
    fixed = {one.id for one in newest_first[:keep]} | set(protected)
    sizes = {sha256: size for one in newest_first for sha256, size in one.blobs}
    holders = Counter(sha256 for one in newest_first for sha256 in dict(one.blobs))
    total = sum(sizes.values())
    going: list[Holding] = []
    for one in reversed(newest_first):
        if total <= budget:
            break
        if one.id in fixed:
            continue
        going.append(one)
        for sha256 in dict(one.blobs):
            holders[sha256] -= 1
            total -= 0 if holders[sha256] else sizes[sha256]
    freed = {sha256 for sha256 in sizes if not holders[sha256]}
    gone = [one for one in going if freed.intersection(dict(one.blobs))]
    return Removal(
        releases=tuple(one.id for one in gone),
        blobs=tuple(sorted(freed)),
        freed_bytes=sum(sizes[sha256] for sha256 in freed),
        kept_bytes=total,
        budget_bytes=budget,
    )


@dataclass(frozen=True, kw_only=True)
class Collector:
    """Plans and removes, after each rollout and by command."""

    layout: Layout
    blobs: Blobs
    registry: Registry
    rollouts: Rollouts
    ledger: Ledger
    settings: RegistrySettings

    async def run_forever(self) -> None:
        """Collect at the start and after each rollout."""
        newest = await self.ledger.newest()
        await self._once()
        async for entry in self.ledger.follow(newest):
            if entry.event in ENDS:
                await self._once()

    async def collect(self, *, dry_run: bool = False, unknown: bool = False) -> Removal:
        """Remove what is beyond the budget; return what went, or would go.

        unknown: also files of which nothing is written down. Only when a person asks: after the loss of state.db they
        are all that is left.
        """
        async with self.blobs.lock:
            plan = await self._plan()
            if not dry_run:
                await self._remove(plan, unknown=unknown)
        return plan

    async def _once(self) -> None:
        try:
            await self.collect()
        except (OSError, sqlite3.Error) as error:
            # The disk's trouble is told and tried again after the next rollout; it must not end loopd.
            log.warning("releases.not_collected", error=str(error))

    async def _plan(self) -> Removal:
        kept = [listed.release for listed in await self.registry.kept()]
        budget = self.settings.budget_bytes or (await asyncio.to_thread(shutil.disk_usage, self.layout.home)).total // 2
        return plan_collection(
            [Holding(id=release.id, blobs=release.blobs) for release in kept],
            protected=await self._protected(),
            keep=self.settings.keep,
            budget=budget,
        )

    async def _protected(self) -> frozenset[str]:
        serving = await self.registry.serving()
        under_way = [rollout for rollout in await self.rollouts.newest() if rollout.finished_at is None]
        named = {serving.champion, serving.previous, *serving.shares}
        named |= {release for rollout in under_way for release in (rollout.candidate, rollout.champion)}
        return frozenset(release for release in named if release) | await self.registry.pinned()

    async def _remove(self, plan: Removal, *, unknown: bool = False) -> None:
        """Write down first what goes: after a kill between, the next collection removes its files."""
        for release_id in plan.releases:
            release = await self.registry.get(release_id)
            if not await self.registry.mark_removed(release_id):
                continue
            await self.ledger.append(
                "release.collected",
                release.short,
                "the disk budget was passed; its record stays, its weights went",
                size_bytes=sum(size for _, size in release.blobs),
                budget_bytes=plan.budget_bytes,
            )
        kept = [listed.release for listed in await self.registry.kept()]
        removed = [listed.release for listed in await self.registry.removed()]
        await asyncio.to_thread(self._sweep, kept, removed, unknown=unknown and bool(kept))

    def _sweep(self, kept: Sequence[Release], removed: Sequence[Release], *, unknown: bool) -> None:
        """Remove the files of removed releases that no kept one holds; hold the lock."""
        self.blobs.sweep()
        wanted = {self.layout.blob(sha256).name for release in kept for sha256, _ in release.blobs}
        gone = {self.layout.blob(sha256).name for release in removed for sha256, _ in release.blobs}
        for path in self.layout.blobs.glob("*.gguf"):
            if path.name not in wanted and (unknown or path.name in gone):
                path.unlink(missing_ok=True)
        homes, gone_homes = {release.short for release in kept}, {release.short for release in removed}
        for home in self.layout.engines.glob("[0-9a-f]" * SHORT):
            if home.name not in homes and (unknown or home.name in gone_homes):
                shutil.rmtree(home, ignore_errors=True)  # its hard links would keep the bytes
        trim(self.layout.rejected)
