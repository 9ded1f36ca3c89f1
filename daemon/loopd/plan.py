"""plan: owns the plan of a rollout, from observed to desired. Pure: no I/O, no clock, no log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from loopd.steps import Check, Conclude, Drain, Load, Promote, Retire, Shift, Start, Step, key


class Phase(StrEnum):
    """Where a rollout is."""

    WAITING = "waiting"  #: another one is under way
    ACTIVE = "active"
    ABORTING = "aborting"  #: failed before promotion: the candidate goes, the champion never moved
    PROMOTED = "promoted"  #: ended: the candidate serves
    ROLLED_BACK = "rolled_back"  #: ended: the champion of before serves
    SUPERSEDED = "superseded"  #: ended while waiting: a newer candidate came


ENDED = frozenset({Phase.PROMOTED, Phase.ROLLED_BACK, Phase.SUPERSEDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One snapshot of what a rollout depends on."""

    running: Mapping[str, str]  #: release id -> id of its running container
    present: frozenset[str]  #: release ids that have a container, running or not
    champion: str | None
    shares: Mapping[str, int]  #: release id -> percent, as recorded
    done: frozenset[str]  #: keys of this rollout's finished steps


def plan_rollout(
    *, candidate: str, champion: str | None, phase: Phase, observed: Observed, host: str
) -> tuple[Step, ...]:
    """Return the missing steps of a rollout in order; never empty, since the last one concludes.

    candidate, champion: release ids, the champion being what served when the rollout began. A rollout may be
    planned again at any point: what is seen or journaled as done is left out. Until Promote the champion's
    traffic is not touched. Source: docs/decisions/0003-plan-then-execute.md
    """
    if phase is Phase.ABORTING:
        return (*_retire([candidate], observed, host), Conclude(phase=Phase.ROLLED_BACK, host=host))
    prepare = _prepare(candidate, observed, host) if observed.champion != candidate else []
    leaving = sorted((({champion} if champion else set()) | set(observed.shares)) - {candidate})
    drain = [Drain(release=old, host=host) for old in leaving if old in observed.shares]
    return (
        *prepare,
        *(step for step in drain if key(step) not in observed.done),
        *_retire(leaving, observed, host),
        Conclude(phase=Phase.PROMOTED, host=host),
    )


def _retire(leaving: Sequence[str], observed: Observed, host: str) -> list[Step]:
    return [Retire(release=old, host=host) for old in leaving if old in observed.shares or old in observed.present]


def _prepare(candidate: str, observed: Observed, host: str) -> list[Step]:
    """Return what brings the candidate to serving."""
    instance = observed.running.get(candidate)
    # Attached at no share before the flip, so that the flip is nothing but two weights.
    attached = {other: share for other, share in observed.shares.items() if other != candidate} | {candidate: 0}
    steps: tuple[Step, ...] = (
        Start(release=candidate, host=host),
        Load(release=candidate, host=host, instance=instance),
        Check(release=candidate, host=host, instance=instance),
        Shift(shares=tuple(sorted(attached.items())), host=host, instance=instance),
        Promote(release=candidate, host=host),
    )
    if instance is None:
        return list(steps)
    # The keys hold the container's id, so what was done in one that died is not taken for done.
    return [step for step in steps if key(step) not in observed.done]
