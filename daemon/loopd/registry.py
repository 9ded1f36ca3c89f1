"""registry: owns which releases there are, which one serves, and who gets which share of the traffic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from loopd.errors import ConflictError, NotFoundError
from loopd.release import Release
from loopd.state import Database, now


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What traffic should go to."""

    champion: str | None  #: release id
    previous: str | None  #: release id a rollback returns to
    shares: Mapping[str, int]  #: release id -> whole percent; a release at 0 drains or waits
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A release with what only the registry knows of it."""

    release: Release
    source: str
    created_at: str


class Registry:
    """Releases and the serving row in state.db."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, release: Release, *, source: str) -> bool:
        """Record a release; False when it was known. Releases are never changed."""
        async with self._database.transaction():
            if await self._database.fetch_one("SELECT 1 FROM releases WHERE id = ?", (release.id,)):
                return False
            await self._database.execute(
                "INSERT INTO releases (id, manifest, source, created_at) VALUES (?,?,?,?)",
                (release.id, release.to_json(), source, now()),
            )
            return True

    async def releases(self, *, limit: int = 200) -> list[Listed]:
        """Return releases, newest first."""
        rows = await self._database.fetch_all(
            "SELECT * FROM releases ORDER BY created_at DESC, rowid DESC LIMIT ?", (limit,)
        )
        return [
            Listed(release=Release.from_json(r["manifest"]), source=r["source"], created_at=r["created_at"])
            for r in rows
        ]

    async def get(self, release_id: str) -> Release:
        """Return a release by its whole id. Raises NotFoundError."""
        row = await self._database.fetch_one("SELECT manifest FROM releases WHERE id = ?", (release_id,))
        if row is None:
            raise NotFoundError(f"there is no release {release_id}; `loopctl releases list` shows them")
        return Release.from_json(row["manifest"])

    async def find(self, reference: str) -> Release:
        """Return the one release whose id starts so or whose name is this (the newest of that name).

        Raises NotFoundError, ConflictError when several ids start so.
        """
        rows = await self._database.fetch_all(
            "SELECT manifest FROM releases WHERE substr(id, 1, length(?1)) = ?1 LIMIT 2", (reference,)
        )
        if len(rows) > 1:
            raise ConflictError(f"{reference!r} fits several releases; give more digits of the id")
        if rows and reference:
            return Release.from_json(rows[0]["manifest"])
        for listed in await self.releases():
            if listed.release.name == reference:
                return listed.release
        raise NotFoundError(f"there is no release {reference!r}; `loopctl releases list` shows them")

    async def serving(self) -> Serving:
        """Return what should serve."""
        row = await self._database.fetch_one("SELECT * FROM serving")
        if row is None:
            raise NotFoundError("state.db has no serving row; restore a copy of it")
        return Serving(
            champion=row["champion"],
            previous=row["previous"],
            shares=json.loads(row["shares"]),
            epoch=row["epoch"],
        )

    async def set_shares(self, shares: Mapping[str, int]) -> None:
        """Set who gets which whole percent of the traffic."""
        await self._database.execute("UPDATE serving SET shares = ?", (json.dumps(dict(shares), sort_keys=True),))

    async def promote(self, release_id: str) -> None:
        """Make a release the champion with all traffic; the old one stays at 0 until it is retired."""
        async with self._database.transaction():
            serving = await self.serving()
            if serving.champion == release_id:
                return
            shares = dict.fromkeys(serving.shares, 0) | {release_id: 100}
            await self._database.execute(
                "UPDATE serving SET champion = ?, previous = ?, shares = ?",
                (release_id, serving.champion, json.dumps(shares, sort_keys=True)),
            )

    async def unroute(self, release_id: str) -> None:
        """Take a release out of the shares. It must not be the champion."""
        async with self._database.transaction():
            serving = await self.serving()
            if serving.champion == release_id:
                raise ConflictError(f"release {release_id[:12]} is the champion; it keeps its traffic")
            await self.set_shares({key: value for key, value in serving.shares.items() if key != release_id})

    async def raise_epoch(self) -> int:
        """Begin a new epoch: steps of an older one are refused from now on."""
        async with self._database.transaction():
            await self._database.execute("UPDATE serving SET epoch = epoch + 1")
            return (await self.serving()).epoch
