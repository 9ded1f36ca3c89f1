"""job_plan: owns what is done next about the trainer's jobs, from what was asked for and what is seen. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from loopd.engine import Instance, InstanceState
from loopd.job import Ending, Figure, Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the trainer wrote as its last word."""

    status: Ending
    code: str = ""
    message: str = ""
    figures: Mapping[str, Figure]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a job may take."""

    starts: int = 3  #: of its container, for a fault that may pass
    longest: timedelta = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Begin:
    """Start the job's container."""

    job: Job


@dataclass(frozen=True, slots=True)
class Stop:
    """Have the container end in its own time, then for good."""

    job: Job


@dataclass(frozen=True, slots=True)
class Finish:
    """Write down how the job ended."""

    job: Job
    result: Result


@dataclass(frozen=True, slots=True)
class Sweep:
    """Remove a container that belongs to no job that runs."""

    unit: str


Step = Begin | Stop | Finish | Sweep


def plan_jobs(
    jobs: Sequence[Job],
    seen: Mapping[str, Instance],
    results: Mapping[str, Result],
    *,
    bounds: Bounds,
    now: datetime,
) -> list[Step]:
    """Return what is to be done now.

    jobs: the open ones, the running one first. seen: the trainer's containers by unit. results: by job, where it has
    written one.
    """
    running = next((job for job in jobs if job.status == "running"), None)
    steps: list[Step] = [Sweep(unit) for unit in seen if running is None or unit != unit_of(running.id)]
    if running is None:
        return [*steps, *(Begin(job) for job in jobs[:1])]
    step = _about(running, seen.get(unit_of(running.id)), results.get(running.id), bounds, now)
    return [*steps, *([step] if step else [])]


def unit_of(job_id: str) -> str:
    """Return the name of a job's container."""
    return f"trainer-{job_id.removeprefix('job-')}"


def _about(job: Job, instance: Instance | None, result: Result | None, bounds: Bounds, now: datetime) -> Step | None:
    if instance is not None and instance.state is InstanceState.RUNNING:
        overdue = job.started_at is not None and now - job.started_at > bounds.longest
        return Stop(job) if job.stopping or overdue else None
    if result is None and job.stopping:
        result = Result(status="cancelled", message=job.stopping, figures={})
    if result is not None:
        return Finish(job, result)
    if instance is None or instance.state is InstanceState.CREATED:
        return Begin(job) if job.starts < bounds.starts else _gave_up(job)
    if instance.exit_code != 1 and job.starts < bounds.starts:  # 1: a bug, which comes again
        return Begin(job)
    return _too_big(job) if instance.oom_killed else _gave_up(job, instance)


def _gave_up(job: Job, instance: Instance | None = None) -> Finish:
    how = f" with code {instance.exit_code}" if instance and instance.exit_code is not None else ""
    words = (
        f"The trainer ended{how} and left no word, {job.starts} times. Its checkpoints stay, and nothing was handed "
        f"on; `loopctl train show {job.id}` shows what it told last."
    )
    return Finish(job, Result(status="failed", code="crashed", message=words, figures={}))


def _too_big(job: Job) -> Finish:
    words = (
        f"The trainer ran out of the memory it may have, {job.starts} times. Nothing was handed on, and its "
        "checkpoints stay. Raise training.memory_bytes, or train with fewer tokens, a smaller batch, a smaller model."
    )
    return Finish(job, Result(status="failed", code="out_of_memory", message=words, figures={}))
