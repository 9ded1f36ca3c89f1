"""rollout: owns a rollout's record and the runner that brings one after the other to its end.

Only one is active. The runner observes, plans, does the first step through the journal, and observes again, so a
kill between any two steps needs no special case.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from dataclasses import dataclass, replace
from typing import Literal, assert_never

import structlog

from loopd.engine import Engine, EngineDownError, InstanceState
from loopd.errors import ConflictError, LoopdError, NotFoundError, UnavailableError
from loopd.gateway import Gateway, GatewayDownError
from loopd.journal import Journal, StaleEpochError
from loopd.ledger import Ledger
from loopd.loading import Loader
from loopd.metrics import Metrics
from loopd.plan import ENDED, Observed, Phase, plan_rollout
from loopd.policy import INSTANT, Policy
from loopd.registry import Registry
from loopd.release import Release, engine_unit
from loopd.routing import Routing
from loopd.state import Database, now
from loopd.steps import Check, Conclude, Drain, Load, Promote, Retire, Shift, Start, Step, kind

HOST = "local"
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
MOST_STARTS = 3  # a candidate whose container dies more often than this is given up

Kind = Literal["rollout", "rollback"]
Strategy = Literal["", "beside", "in_place"]  # '': not admitted yet

log = structlog.get_logger("loopd.rollout")


class NoRollbackError(ConflictError):
    """There is no earlier release to go back to."""

    code = "no_rollback"


class CandidateUnstableError(UnavailableError):
    """The candidate's container dies again and again."""

    code = "candidate_unstable"


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

    async def request_rollback(self) -> Rollout:
        """Queue the return to the release that served before. Raises NoRollbackError."""
        previous = (await self._registry.serving()).previous
        if previous is None:
            raise NoRollbackError("no other release has served before, so there is none to go back to")
        return await self.request(
            await self._registry.get(previous), kind="rollback", reason="asked for by the operator"
        )

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


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs rollouts to their end."""

    rollouts: Rollouts
    registry: Registry
    journal: Journal
    ledger: Ledger
    engine: Engine
    loader: Loader
    gateway: Gateway
    routing: Routing
    metrics: Metrics
    drain_s: float

    async def run_forever(self) -> None:
        """Run each rollout as it comes."""
        while True:
            self.rollouts.changed.clear()
            if (rollout := await self.rollouts.next()) is None:
                await self.rollouts.changed.wait()
                continue
            await self.run(rollout)

    async def run(self, rollout: Rollout) -> Rollout:
        """Bring one rollout to its end; return it ended. Raises StaleEpochError."""
        failures = 0
        while rollout.phase not in ENDED:
            with structlog.contextvars.bound_contextvars(rollout=rollout.id, release=rollout.candidate[:12]):
                try:
                    step = (await self.plan(rollout))[0]
                    await self._journaled(rollout, step)
                    failures = 0
                except StaleEpochError:
                    raise
                except (EngineDownError, GatewayDownError) as error:
                    # Not the candidate's fault: the same step again, when the part is back.
                    failures += 1
                    log.warning("rollout.retries", error=str(error), failures=failures)
                    await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S)) - 1])
                except LoopdError as error:
                    if await self._promoted(rollout) or rollout.phase is Phase.ABORTING:
                        failures += 1
                        log.warning("rollout.retries", error=str(error), failures=failures)
                        await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S)) - 1])
                    else:
                        await self.rollouts.abort(rollout, str(error))
            rollout = await self.rollouts.get(rollout.id)
        self.metrics.rollouts.labels(outcome=rollout.phase.value).inc()
        return rollout

    async def plan(self, rollout: Rollout) -> tuple[Step, ...]:
        """Return the steps a rollout still needs, from what is seen now."""
        serving = await self.registry.serving()
        concerned = {rollout.candidate, *serving.shares} | ({rollout.champion} if rollout.champion else set())
        units = {engine_unit(release): release for release in concerned}
        seen = {units[i.unit]: i for i in await self.engine.observe() if i.unit in units}
        return plan_rollout(
            candidate=rollout.candidate,
            champion=rollout.champion,
            phase=rollout.phase,
            observed=Observed(
                running={r: i.id for r, i in seen.items() if i.state is InstanceState.RUNNING},
                present=frozenset(seen),
                champion=serving.champion,
                shares=serving.shares,
                done=await self.journal.finished_keys(rollout.id),
            ),
            host=HOST,
        )

    async def _journaled(self, rollout: Rollout, step: Step) -> None:
        seq = await self.journal.begin(rollout.id, step)
        with self.metrics.rollout_step_seconds.labels(step=kind(step)).time():
            try:
                await self._do(rollout, step)
            except LoopdError as error:
                await self.journal.failed(seq, str(error))
                raise
        await self.journal.done(seq)

    async def _do(self, rollout: Rollout, step: Step) -> None:
        match step:
            case Start(release=release):
                await self._start(rollout, release)
            case Load(release=release):
                speed = await self.loader.load(await self.registry.get(release), await self._address(release))
                log.info("release.loaded", tokens_per_s=round(speed, 1))
            case Check(release=release):
                speed = await self.loader.check(await self.registry.get(release), await self._address(release))
                await self.ledger.append(
                    "release.checked",
                    release[:12],
                    "the golden prompts were answered",
                    tokens_per_s=round(speed, 1),
                )
            case Shift(shares=shares):
                await self.registry.set_shares(dict(shares))
                await self.routing.attach(rollout.candidate)
            case Promote(release=release):
                await self._promote(release)
            case Drain(release=release):
                await self._drain(release)
            case Retire(release=release):
                await self.registry.unroute(release)
                with contextlib.suppress(GatewayDownError):
                    await self.routing.converge()
                await self.loader.remove(release, engine_unit(release))
            case Conclude(phase=phase):
                await self.rollouts.conclude(rollout, Phase(phase))
            case _:
                assert_never(step)

    async def _start(self, rollout: Rollout, release: str) -> None:
        starts = [row for row in await self.journal.rows(rollout.id) if row.step == "start" and row.state == "done"]
        if len(starts) >= MOST_STARTS:
            raise CandidateUnstableError(f"its container died {len(starts)} times during the rollout")
        await self.loader.start(await self.registry.get(release))

    async def _promote(self, release: str) -> None:
        await self.registry.promote(release)
        applied = await self.routing.converge()
        self.metrics.flip_seconds.observe(applied.flip_s)
        await self.ledger.append(
            "release.promoted", release[:12], "it takes all traffic", flip_ms=round(applied.flip_s * 1000, 3)
        )

    async def _drain(self, release: str) -> None:
        await self.routing.converge()  # the flip may have been recorded and not applied, when the gateway was down
        if await self.gateway.wait_idle("engine", release[:12], deadline_s=self.drain_s):
            return
        await self.ledger.append(
            "release.drain_expired",
            release[:12],
            f"requests were still in flight after {self.drain_s:g} s; they were cut",
        )

    async def _address(self, release: str) -> str:
        unit = engine_unit(release)
        for instance in await self.engine.observe():
            if instance.unit == unit and instance.address:
                return instance.address
        raise CandidateUnstableError(f"{unit} does not run any more")

    async def _promoted(self, rollout: Rollout) -> bool:
        return (await self.registry.serving()).champion == rollout.candidate
