"""unit_plan: owns the plan from observed to desired for units: which to start anew, when, and why. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from loopd.cause import NOTHING, SLACK, Cause, Code, Evidence, explain_end
from loopd.engine import Instance, InstanceState, Unit

BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 60.0
STABLE_S = 10.0  # an instance that ran this long is not part of a crash loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Bring a unit to running, for this reason."""

    unit: Unit
    cause: Cause
    restart: bool  #: it ran before: count it and write it down


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Too soon to restart: look again at this time."""

    unit: str
    until: datetime
    cause: Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """An instance of ours that nothing wants."""

    unit: str
    cause: str


UnitStep = Apply | Wait | Remove


def backoff(restarts: Sequence[datetime]) -> float:
    """Return the seconds to wait before the next restart: 0, then 0.1 doubling to 60.

    restarts: times of the restarts so far, oldest first. A gap of STABLE_S beyond the wait that was due ends
    the crash loop, so the count begins anew.
    """
    failures = 0
    for earlier, later in pairwise(restarts):
        within = (later - earlier).total_seconds() < STABLE_S + _delay(failures + 1)
        failures = failures + 1 if within else 0
    return _delay(failures + 1) if restarts else 0.0


def _delay(failures: int) -> float:
    return min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16))


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What is remembered of a unit."""

    crashes: Sequence[datetime] = ()  #: when it was started anew for its own fault, oldest first
    ran: bool = False  #: before, so that an absent one is a loss and not a first start
    evidence: Evidence = NOTHING
    looping: bool = False  #: it crashed too often: restarts go on, but seldom
    failed: bool = False  #: the last thing tried was a start, and it failed
    wait_until: datetime | None = None  #: it lacks something: no use to try before


def is_looping(crashes: Sequence[datetime], *, most: int, window_s: float, now: datetime) -> bool:
    """Tell whether a unit crashed ``most`` times or more within the last ``window_s`` seconds."""
    return sum((now - at).total_seconds() <= window_s for at in crashes) >= most


def plan_units(
    *, desired: Sequence[Unit], observed: Mapping[str, Instance], past: Mapping[str, Past], now: datetime
) -> tuple[UnitStep, ...]:
    """Return what to do to each unit that is not as desired."""
    steps: list[UnitStep] = []
    for unit in desired:
        instance, before = observed.get(unit.name), past.get(unit.name, Past())
        if instance is None and not before.ran:
            first = Cause(Code.UNKNOWN, "first start")
            due = due_at(before, instance, now)
            late = Wait(unit=unit.name, until=due, cause=first)
            steps.append(late if due > now else Apply(unit=unit, cause=first, restart=False))
            continue
        if (cause := _why(unit, instance, before)) is None:
            continue
        due = due_at(before, instance, now)
        if due > now:
            steps.append(Wait(unit=unit.name, until=due, cause=cause))
        else:
            steps.append(Apply(unit=unit, cause=cause, restart=True))
    wanted = {unit.name for unit in desired}
    steps += [Remove(unit=name, cause="nothing wants it") for name in observed if name not in wanted]
    return tuple(steps)


def _why(unit: Unit, instance: Instance | None, past: Past) -> Cause | None:
    """Say why a unit must be started anew, None when it is as desired."""
    if instance is None and past.failed:
        return Cause(Code.START_FAILED, "it could not be started the last time")
    if instance is None or instance.state is not InstanceState.RUNNING:
        return explain_end(instance, past.evidence)
    if instance.fingerprint != unit.fingerprint:
        return Cause(Code.CONFIGURATION, "its configuration changed")
    return None


def due_at(past: Past, instance: Instance | None, now: datetime) -> datetime:
    """Return when the next restart may be: at once after a long run, else after the back-off."""
    if past.wait_until is not None and past.wait_until > now:
        return past.wait_until
    if not past.crashes:
        return now
    last = past.crashes[-1]
    if past.looping:
        return last + timedelta(seconds=BACKOFF_MOST_S)
    # A long run counts only if it is the one that the last restart began: an old container that lies about, ended,
    # must not look like one.
    if instance and instance.started_at and instance.started_at + SLACK >= last:
        ran = (instance.finished_at or now) - instance.started_at
        if ran.total_seconds() > STABLE_S + BACKOFF_MOST_S:
            return now
    return last + timedelta(seconds=backoff(past.crashes))
