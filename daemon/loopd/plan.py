"""plan: owns the plan of a rollout, from observed to desired. Pure: no I/O, no clock, no log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from loopd.policy import Policy
from loopd.steps import Admit, Bake, Check, Conclude, Drain, Load, Promote, Retire, Shift, Start, Step, Vacate, key

Strategy = Literal["", "beside", "in_place"]  # '': not admitted yet


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a rollout is to reach, and how."""

    candidate: str  #: release id
    champion: str | None  #: release id that served when it began
    phase: Phase
    policy: Policy
    strategy: Strategy
    host: str


def plan_rollout(goal: Goal, observed: Observed) -> tuple[Step, ...]:
    """Return the missing steps of a rollout in order; never empty, since the last one concludes.

    A rollout may be planned again at any point: what is seen or journaled as done is left out. Beside the champion,
    nothing touches its traffic before the first Shift that says so. Source: docs/decisions/0003-plan-then-execute.md
    """
    if goal.phase is Phase.ABORTING:
        return (*_turn_back(goal, observed), Conclude(phase=Phase.ROLLED_BACK, host=goal.host))
    prepare: list[Step] = []
    if observed.champion != goal.candidate:
        if not goal.strategy:
            prepare.append(Admit(release=goal.candidate, host=goal.host))
        if goal.strategy == "in_place":
            prepare += _vacate(goal, observed)
        prepare += _prepare(goal, observed)
    leaving = sorted((({goal.champion} if goal.champion else set()) | set(observed.shares)) - {goal.candidate})
    return (
        *prepare,
        *_drain([old for old in leaving if old in observed.shares], observed, goal.host),
        *_retire(leaving, observed, goal.host),
        Conclude(phase=Phase.PROMOTED, host=goal.host),
    )


def _drain(leaving: Sequence[str], observed: Observed, host: str) -> list[Step]:
    drains = [Drain(release=old, host=host) for old in leaving]
    return [step for step in drains if key(step) not in observed.done]


def _retire(leaving: Sequence[str], observed: Observed, host: str) -> list[Step]:
    return [Retire(release=old, host=host) for old in leaving if old in observed.shares or old in observed.present]


def _prepare(goal: Goal, observed: Observed) -> list[Step]:
    """Return what brings the candidate to serving."""
    candidate, host = goal.candidate, goal.host
    instance = observed.running.get(candidate)
    # Attached at no share before any flip, so that a flip is nothing but weights.
    others = {other: share for other, share in observed.shares.items() if other != candidate}
    before = _before(goal, others) | {candidate: 0}
    steps: list[Step] = [
        Start(release=candidate, host=host),
        Load(release=candidate, host=host, instance=instance),
        Check(release=candidate, host=host, instance=instance),
        Shift(shares=_shares(before), host=host, attach=candidate, instance=instance),
    ]
    if goal.champion and goal.strategy != "in_place":
        for stage in goal.policy.stages:
            split = dict.fromkeys(others, 0) | {goal.champion: 100 - stage.percent, candidate: stage.percent}
            steps += [
                Shift(shares=_shares(split), host=host, attach=candidate, instance=instance),
                Bake(
                    release=candidate,
                    champion=goal.champion,
                    percent=stage.percent,
                    seconds=stage.seconds,
                    requests=stage.requests,
                    host=host,
                    instance=instance,
                ),
            ]
    steps.append(Promote(release=candidate, host=host))
    if instance is None:
        return steps
    # The keys hold the container's id, so what was done in one that died is not taken for done. Whether it was promoted
    # is seen, not remembered.
    return [step for step in steps if isinstance(step, Promote) or key(step) not in observed.done]


def _before(goal: Goal, others: Mapping[str, int]) -> dict[str, int]:
    """Return the shares before the first stage, the same however far the stages have gone."""
    if goal.strategy == "in_place" or goal.champion is None:
        return dict.fromkeys(others, 0)
    return dict.fromkeys(others, 0) | {goal.champion: 100}


def _vacate(goal: Goal, observed: Observed) -> list[Step]:
    """Return what makes room: requests are held, those in flight end, the champion's container goes."""
    if goal.champion is None or goal.champion not in observed.present:
        return []
    hold = Shift(shares=(), host=goal.host)
    return [
        *([hold] if key(hold) not in observed.done else []),
        *_drain([goal.champion], observed, goal.host),
        Vacate(release=goal.champion, host=goal.host),
    ]


def _turn_back(goal: Goal, observed: Observed) -> list[Step]:
    """Return what gives the champion all traffic again and removes the candidate."""
    champion, host = goal.champion, goal.host
    retire = _retire([goal.candidate], observed, host)
    if champion is None:
        return retire
    back = dict.fromkeys(observed.shares, 0) | {champion: 100}
    if goal.strategy == "in_place":
        # There is no room for both, so the candidate goes first; requests are held until the champion is loaded.
        instance = observed.running.get(champion)
        back.pop(goal.candidate, None)
        restore: list[Step] = [
            Load(release=champion, host=host, instance=instance),
            Shift(shares=_shares(back), host=host, attach=champion, instance=instance),
        ]
        start: list[Step] = [] if instance else [Start(release=champion, host=host)]
        return [*retire, *start, *(step for step in restore if instance is None or key(step) not in observed.done)]
    if goal.candidate not in observed.shares:
        return retire
    shift = Shift(shares=_shares(back), host=host)
    return [
        *([shift] if key(shift) not in observed.done else []),
        *_drain([goal.candidate], observed, host),
        *retire,
    ]


def _shares(shares: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(shares.items()))
