"""registry: owns which releases there are, which one serves, and who gets which share of the traffic."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

from loopd.errors import ConflictError, NotFoundError
from loopd.release import SHORT, Release
from loopd.sidecar import Lineage
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
    lineage: Lineage = field(default_factory=Lineage)
    signer: str = ""  #: public key that its file's signature was held against, '' for none
    pinned: bool = False  #: never collected
    removed_at: str | None = None  #: when its weights were collected; None: they are here


class CollectedError(ConflictError):
    """The release's weights were collected: drop its file again."""

    code = "release_collected"


class Registry:
    """Releases and the serving row in state.db."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, release: Release, *, source: str, lineage: Lineage | None = None, signer: str = "") -> bool:
        """Record a release; False when it was known. Releases are never changed, but their weights may come back."""
        async with self._database.transaction():
            if await self._database.fetch_one("SELECT 1 FROM releases WHERE id = ?", (release.id,)):
                await self._database.execute("UPDATE releases SET removed_at = NULL WHERE id = ?", (release.id,))
                return False
            told = (lineage or Lineage()).model_dump_json(exclude_defaults=True)
            await self._database.execute(
                "INSERT INTO releases (id, manifest, source, created_at, lineage, signer) VALUES (?,?,?,?,?,?)",
                (release.id, release.to_json(), source, now(), told, signer),
            )
            return True

    async def releases(self, *, limit: int = 200) -> list[Listed]:
        """Return releases, newest first."""
        rows = await self._database.fetch_all(
            "SELECT * FROM releases ORDER BY created_at DESC, rowid DESC LIMIT ?", (limit,)
        )
        return [_listed(row) for row in rows]

    async def kept(self) -> list[Listed]:
        """Return every release whose weights are here, newest first."""
        rows = await self._database.fetch_all(
            "SELECT * FROM releases WHERE removed_at IS NULL ORDER BY created_at DESC, rowid DESC"
        )
        return [_listed(row) for row in rows]

    async def removed(self) -> list[Listed]:
        """Return every release whose weights were collected."""
        rows = await self._database.fetch_all("SELECT * FROM releases WHERE removed_at IS NOT NULL")
        return [_listed(row) for row in rows]

    async def listed(self, release_id: str) -> Listed:
        """Return a release by its whole id with what only the registry knows. Raises NotFoundError."""
        row = await self._database.fetch_one("SELECT * FROM releases WHERE id = ?", (release_id,))
        if row is None:
            raise NotFoundError(f"there is no release {release_id}; `loopctl releases list` shows them")
        return _listed(row)

    async def check_kept(self, release_id: str) -> None:
        """Raise CollectedError when the release's weights were collected."""
        listed = await self.listed(release_id)
        if listed.removed_at is not None:
            raise CollectedError(
                f"the weights of release {listed.release.short} were collected at {listed.removed_at}, because the "
                f"disk budget was passed. Nothing was changed; drop {listed.source} into models/incoming again"
            )

    async def pinned(self) -> frozenset[str]:
        """Return the ids that are never collected."""
        return frozenset(
            row["id"] for row in await self._database.fetch_all("SELECT id FROM releases WHERE pinned = 1")
        )

    async def set_pinned(self, release_id: str, *, pinned: bool) -> bool:
        """Keep a release from being collected, or no longer; False when it is so already."""
        async with self._database.transaction():
            if (await self.listed(release_id)).pinned is pinned:
                return False
            await self._database.execute("UPDATE releases SET pinned = ? WHERE id = ?", (int(pinned), release_id))
            return True

    async def mark_removed(self, release_id: str) -> bool:
        """Note that a release's weights are being removed; False when it was asked for again in the meantime."""
        async with self._database.transaction():
            await self._database.execute(
                "UPDATE releases SET removed_at = ?1 WHERE id = ?2 AND removed_at IS NULL AND pinned = 0"
                " AND NOT EXISTS (SELECT 1 FROM serving WHERE ?2 IN (champion, previous))"
                " AND NOT EXISTS (SELECT 1 FROM rollouts WHERE finished_at IS NULL AND ?2 IN (candidate, champion))",
                (now(), release_id),
            )
            return (await self.listed(release_id)).removed_at is not None

    async def find_weights(self, reference: str) -> Release | None:
        """Return the newest kept release of these weights, by ``sha256:…`` or the name of the file they came as."""
        digest = reference.removeprefix("sha256:")
        kept = [one for one in await self.kept() if not one.release.adapters]
        return next((one.release for one in kept if digest == one.release.gguf_sha256 or reference == one.source), None)

    async def get(self, release_id: str) -> Release:
        """Return a release by its whole id. Raises NotFoundError."""
        row = await self._database.fetch_one("SELECT manifest FROM releases WHERE id = ?", (release_id,))
        if row is None:
            raise NotFoundError(f"there is no release {release_id}; `loopctl releases list` shows them")
        return Release.from_json(row["manifest"])

    async def find(self, reference: str) -> Release:
        """Return the release whose id starts so, or the newest whose name is this.

        A name wins against the first few digits of an id, the digits that lists show win against a name. Raises
        NotFoundError, ConflictError when several ids start so.
        """
        named = await self._database.fetch_one(
            "SELECT manifest FROM releases WHERE json_extract(manifest, '$.name') = ?"
            " ORDER BY created_at DESC, rowid DESC LIMIT 1",
            (reference,),
        )
        if named is not None and len(reference) < SHORT:
            return Release.from_json(named["manifest"])
        rows = await self._database.fetch_all(
            "SELECT manifest FROM releases WHERE substr(id, 1, length(?1)) = ?1 LIMIT 2", (reference,)
        )
        if len(rows) == 1 and reference:
            return Release.from_json(rows[0]["manifest"])
        if named is not None:
            return Release.from_json(named["manifest"])
        if len(rows) > 1:
            raise ConflictError(f"{reference!r} fits several releases; give more digits of the id")
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


def _listed(row: sqlite3.Row) -> Listed:
    return Listed(
        release=Release.from_json(row["manifest"]),
        source=row["source"],
        created_at=row["created_at"],
        lineage=Lineage.model_validate_json(row["lineage"]),
        signer=row["signer"],
        pinned=bool(row["pinned"]),
        removed_at=row["removed_at"],
    )
