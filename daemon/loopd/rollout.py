"""rollout: owns the rollouts' records: which one waits, which one is under way, how each ended. Only one is active."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass, replace
from typing import Literal

from loopd.admission import Admission
from loopd.errors import ConflictError, NotFoundError
from loopd.ledger import Ledger
from loopd.plan import Phase, Strategy
from loopd.policy import INSTANT, Policy
from loopd.registry import Registry
from loopd.release import Release
from loopd.state import Database, now

Kind = Literal["rollout", "rollback"]


class NoRollbackError(ConflictError):
    """There is no earlier release to go back to."""

    code = "no_rollback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One replacement of the champion by a candidate."""

    id: int
    kind: Kind
    candidate: str  #: release id
    champion: str | None  #: release id that served when it began
    phase: Phase
    reason: str
    created_at: str
    finished_at: str | None
    policy: Policy
    strategy: Strategy


class Rollouts:
    """The rollouts in state.db."""

    def __init__(self, database: Database, registry: Registry, ledger: Ledger, *, policy: Policy = INSTANT) -> None:
        self._database = database
        self._policy = policy
        self._registry = registry
        self._ledger = ledger
        self.changed = asyncio.Event()  #: set when there may be something to run

    async def request(self, release: Release, *, kind: Kind, reason: str) -> Rollout:
        """Queue a rollout; it supersedes one that waits. Raises ConflictError when the release serves already."""
        async with self._database.transaction():
            serving = await self._registry.serving()
            active = await self.active()
            if active is None and serving.champion == release.id:
                raise ConflictError(f"release {release.short} serves already; nothing was changed")
            if active is not None and active.candidate == release.id and active.phase is Phase.ACTIVE:
                raise ConflictError(f"release {release.short} is being rolled out already (rollout {active.id})")
            for waiting in await self._select("phase = 'waiting'"):
                await self._end(waiting, Phase.SUPERSEDED, f"release {release.short} came while it waited")
            row = await self._database.execute(
                "INSERT INTO rollouts (candidate, kind, phase, reason, created_at, policy)"
                " VALUES (?,?,'waiting',?,?,?)",
                # What served before needs no second trial, and who rolls back is in a hurry.
                (release.id, kind, reason, now(), (INSTANT if kind == "rollback" else self._policy).to_json()),
            )
            await self._ledger.append("rollout.requested", release.short, reason, rollout=row, kind=kind)
        self.changed.set()
        return await self.get(row)

    async def request_rollback(self, reason: str = "asked for by the operator") -> Rollout:
        """Queue the return to the release that served before. Raises NoRollbackError."""
        previous = (await self._registry.serving()).previous
        if previous is None:
            raise NoRollbackError("no other release has served before, so there is none to go back to")
        return await self.request(await self._registry.get(previous), kind="rollback", reason=reason)

    async def next(self) -> Rollout | None:
        """Return the rollout to run: the active one, else the waiting one, which becomes active."""
        if (active := await self.active()) is not None:
            return active
        async with self._database.transaction():
            waiting = await self._select("phase = 'waiting'")
            if not waiting:
                return None
            champion = (await self._registry.serving()).champion
            if champion == waiting[0].candidate:
                await self._end(waiting[0], Phase.SUPERSEDED, "the release serves already")
                return None
            await self._database.execute(
                "UPDATE rollouts SET phase = 'active', champion = ? WHERE id = ?", (champion, waiting[0].id)
            )
            await self._ledger.append(
                "rollout.started", waiting[0].candidate[:12], waiting[0].reason, rollout=waiting[0].id
            )
        return await self.active()

    async def active(self) -> Rollout | None:
        """Return the one rollout under way."""
        found = await self._select("finished_at IS NULL AND phase <> 'waiting'")
        return found[0] if found else None

    async def get(self, rollout: int) -> Rollout:
        """Return a rollout by number. Raises NotFoundError."""
        found = await self._select("id = ?", rollout)
        if not found:
            raise NotFoundError(f"there is no rollout {rollout}; `loopctl rollouts list` shows them")
        return found[0]

    async def newest(self, limit: int = 50) -> list[Rollout]:
        """Return rollouts, newest first."""
        rows = await self._database.fetch_all("SELECT * FROM rollouts ORDER BY id DESC LIMIT ?", (limit,))
        return [_rollout(row) for row in rows]

    async def abort(self, rollout: Rollout, reason: str) -> Rollout:
        """Turn a rollout back, for this reason; only before its promotion."""
        async with self._database.transaction():
            await self._database.execute(
                "UPDATE rollouts SET phase = 'aborting', reason = ? WHERE id = ?", (reason[:2000], rollout.id)
            )
            await self._ledger.append("rollout.failed", rollout.candidate[:12], reason[:2000], rollout=rollout.id)
        return replace(rollout, phase=Phase.ABORTING, reason=reason)

    async def request_abort(self, rollout_id: int) -> Rollout:
        """Turn an active rollout back by hand; one that waits is dropped. Raises ConflictError when it is too late."""
        async with self._database.transaction():
            rollout = await self.get(rollout_id)
            promoted = (await self._registry.serving()).champion == rollout.candidate
            if rollout.phase is Phase.WAITING:
                await self._end(rollout, Phase.SUPERSEDED, "dropped by the operator")
            elif rollout.phase is Phase.ACTIVE and not promoted:
                await self.abort(rollout, "turned back by the operator")
            else:
                raise ConflictError(
                    f"rollout {rollout_id} is {rollout.phase.value if not promoted else 'past its promotion'}, "
                    "so there is nothing to turn back; `loopctl releases rollback` returns to the release before"
                )
        return await self.get(rollout_id)

    async def admit(self, rollout: Rollout, admission: Admission) -> None:
        """Write down how the candidate comes up."""
        async with self._database.transaction():
            await self._database.execute(
                "UPDATE rollouts SET strategy = ? WHERE id = ?", (admission.strategy, rollout.id)
            )
            await self._ledger.append(
                "rollout.admitted",
                rollout.candidate[:12],
                admission.reason,
                rollout=rollout.id,
                strategy=admission.strategy,
            )

    async def vacated(self) -> str | None:
        """Return the release whose engine has to stay away, because a candidate takes its room."""
        active = await self.active()
        in_place = active is not None and active.strategy == "in_place" and active.phase is Phase.ACTIVE
        return active.champion if active is not None and in_place else None

    async def conclude(self, rollout: Rollout, phase: Phase) -> None:
        """Close the record."""
        reason = rollout.reason if phase is Phase.ROLLED_BACK else "all steps done"
        async with self._database.transaction():
            await self._end(rollout, phase, reason)

    async def _end(self, rollout: Rollout, phase: Phase, reason: str) -> None:
        await self._database.execute(
            "UPDATE rollouts SET phase = ?, reason = ?, finished_at = ? WHERE id = ?",
            (phase.value, reason, now(), rollout.id),
        )
        await self._ledger.append(
            f"rollout.{phase.value}", rollout.candidate[:12], reason, rollout=rollout.id, kind=rollout.kind
        )

    async def _select(self, where: str, *values: int) -> list[Rollout]:
        rows = await self._database.fetch_all(
            f"SELECT * FROM rollouts WHERE {where} ORDER BY id",  # noqa: S608 our own literals only
            values,
        )
        return [_rollout(row) for row in rows]


def _rollout(row: sqlite3.Row) -> Rollout:
    return Rollout(**{**dict(row), "phase": Phase(row["phase"]), "policy": Policy.from_json(row["policy"])})
