"""cause: owns why a unit has to be started anew: a word for programs, a sentence for people. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from loopd.engine import Event, Instance, InstanceState

SIGNAL_BASE = 128  # a shell's way of saying "ended by signal n" is exit code 128 + n
SIGNALS = {number: signal.Signals(number).name for number in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}
# Docker tells whole seconds of a container's times here, and ends containers one after the other when it stops.
SLACK = timedelta(seconds=2)
ENGINE_END = timedelta(seconds=60)
ENDING = frozenset({2, 3, 6, 9, 10, 15})  # 10, SIGUSR1, is what HAProxy is stopped with; units live through others
GRACE = timedelta(seconds=30)  # from `docker stop` to the end, at most


class Code(StrEnum):
    """Why, for programs; part of the ledger's detail."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    OUT_OF_MEMORY = "out_of_memory"
    OPERATOR = "operator"  #: somebody used the container engine on it
    REMOVED = "removed"
    IMAGE_GONE = "image_gone"  #: it waits until the image is there again
    NEVER_STARTED = "never_started"
    UNHEALTHY = "unhealthy"
    WEDGED = "wedged"
    DEVICE_LOST = "device_lost"
    CONFIGURATION = "configuration"
    HOST_REBOOT = "host_reboot"
    ENGINE_RESTART = "engine_restart"
    START_FAILED = "start_failed"
    UNKNOWN = "unknown"


#: What the unit did by itself: these count towards a crash loop, and later restarts wait longer for them.
CRASHES = frozenset(
    {
        Code.EXITED,
        Code.SIGNALLED,
        Code.OUT_OF_MEMORY,
        Code.NEVER_STARTED,
        Code.UNHEALTHY,
        Code.WEDGED,
        Code.DEVICE_LOST,
        Code.START_FAILED,
        Code.UNKNOWN,
    }
)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why."""

    code: Code
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known beside the container itself."""

    touched: Event | None = None  #: the last thing somebody did to the unit through the container engine
    booted_at: datetime | None = None  #: the host
    engine_back_at: datetime | None = None  #: the container engine, after it was away or when it was started


NOTHING = Evidence()


def explain_end(instance: Instance | None, evidence: Evidence = NOTHING) -> Cause:
    """Say why an instance does not run."""
    if instance is None:
        return Cause(Code.REMOVED, "its container was removed by someone else")
    if instance.oom_killed:
        return Cause(Code.OUT_OF_MEMORY, "out of memory (its limit was reached)")
    if instance.state is InstanceState.CREATED:
        why = f": {instance.error}" if instance.error else ""
        return Cause(Code.NEVER_STARTED, f"its container was made but never started{why}")
    began, ended = instance.started_at, instance.finished_at
    if began and evidence.booted_at and began + SLACK < evidence.booted_at:
        return Cause(Code.HOST_REBOOT, "the host was started anew")
    back = evidence.engine_back_at
    if began and ended and back and began < back and back - ENGINE_END < ended <= back + SLACK:
        return Cause(Code.ENGINE_RESTART, "the container engine was restarted and ended it")
    return _by_code(instance, evidence.touched)


def _by_code(instance: Instance, touched: Event | None) -> Cause:
    if touched is not None and touched.container == instance.id and _during(instance, touched):
        name = SIGNALS.get(touched.signal or 0, f"signal {touched.signal}")
        return Cause(Code.OPERATOR, f"ended by someone with the container engine ({name})")
    if instance.exit_code is None:
        return Cause(Code.UNKNOWN, "it is not running")
    if (name_of := SIGNALS.get(instance.exit_code - SIGNAL_BASE)) is not None:
        return Cause(Code.SIGNALLED, f"ended by {name_of} (exit code {instance.exit_code})")
    return Cause(Code.EXITED, f"exited with code {instance.exit_code}")


def _during(instance: Instance, touched: Event) -> bool:
    """Tell whether it can have ended this run of the instance."""
    if touched.signal not in ENDING or (instance.started_at and touched.at < instance.started_at - SLACK):
        return False
    return instance.finished_at is None or touched.at >= instance.finished_at - GRACE
