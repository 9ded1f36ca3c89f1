"""unit_plan: owns the plan from observed to desired for units: which to start anew, when, and why. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from loopd.engine import Instance, InstanceState, Unit

BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 60.0
STABLE_S = 10.0  # an instance that ran this long is not part of a crash loop

SIGNAL_BASE = 128  # a shell's way of saying "ended by signal n" is exit code 128 + n
SIGNALS = {1: "SIGHUP", 2: "SIGINT", 6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Bring a unit to running, for this reason."""

    unit: Unit
    cause: str
    restart: bool  #: it ran before: count it and write it down


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Too soon to restart: look again at this time."""

    unit: str
    until: datetime
    cause: str


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


def plan_units(
    *,
    desired: Sequence[Unit],
    observed: Mapping[str, Instance],
    restarts: Mapping[str, Sequence[datetime]],
    known: frozenset[str],
    now: datetime,
) -> tuple[UnitStep, ...]:
    """Return what to do to each unit that is not as desired.

    restarts: by unit, oldest first. known: units that ran before, as the ledger tells, so that an absent one is a
    loss and not a first start.
    """
    steps: list[UnitStep] = []
    for unit in desired:
        instance = observed.get(unit.name)
        if instance is None and unit.name not in known:
            steps.append(Apply(unit=unit, cause="first start", restart=False))
            continue
        if (cause := _why(unit, instance)) is None:
            continue
        due = _due(restarts.get(unit.name, ()), instance, now)
        if due > now:
            steps.append(Wait(unit=unit.name, until=due, cause=cause))
        else:
            steps.append(Apply(unit=unit, cause=cause, restart=True))
    wanted = {unit.name for unit in desired}
    steps += [Remove(unit=name, cause="nothing wants it") for name in observed if name not in wanted]
    return tuple(steps)


def _why(unit: Unit, instance: Instance | None) -> str | None:
    """Say why a unit must be started anew, None when it is as desired."""
    if instance is None or instance.state is not InstanceState.RUNNING:
        return explain_end(instance)
    return "its configuration changed" if instance.fingerprint != unit.fingerprint else None


def _due(history: Sequence[datetime], instance: Instance | None, now: datetime) -> datetime:
    """Return when the next restart may be: at once after a long run, else after the back-off."""
    ran_from = instance.started_at if instance else None
    if not history or (ran_from and (now - ran_from).total_seconds() > STABLE_S + BACKOFF_MOST_S):
        return now
    return history[-1] + timedelta(seconds=backoff(history))


def explain_end(instance: Instance | None) -> str:
    """Say why an instance does not run."""
    if instance is None:
        return "its container was removed by someone else"
    if instance.oom_killed:
        return "out of memory (its limit was reached)"
    if instance.state is InstanceState.CREATED:
        return "its container was made but never started" + (f": {instance.error}" if instance.error else "")
    if instance.exit_code is None:
        return "it is not running"
    if (name := SIGNALS.get(instance.exit_code - SIGNAL_BASE)) is not None:
        return f"ended by {name} (exit code {instance.exit_code})"
    return f"exited with code {instance.exit_code}"
