"""trainer: owns the carrying out of the trainer's jobs: their folders, their container, and what they leave.

What runs is told by the container engine and by files, never remembered: a loopd started anew goes on where the last
one was, and a container that outlived it is simply watched again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, BinaryIO

import structlog
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError

from loopd.config import TrainingSettings
from loopd.engine import Engine, ImageMissingError, Instance, Relist, Unit
from loopd.errors import LoopdError, UnavailableError
from loopd.host import write_atomically
from loopd.job import Ending, Job, Jobs, Kind
from loopd.job_plan import Begin, Bounds, Finish, Result, Step, Stop, Sweep, plan_jobs, unit_of
from loopd.loading import own
from loopd.units import TRAINER_PREFIX, TRAINER_UID, Layout

BUILD = "`loopctl images build --only trainer`"
GRACE_S = 30  # for a checkpoint when a job is stopped
LOOK_S = 30.0  # between two looks without an event
RETRY_S = 2.0
MOST_RESULT_BYTES = 256 << 10
MOST_LINE_BYTES = 64 << 10  # of one event
CURATED = ("train.jsonl", "valid.jsonl", "test.jsonl", "pairs.jsonl", "bad.jsonl", "rejected.jsonl")
MOST_EVENTS = 1000  # read at once

log = structlog.get_logger("loopd.trainer")


class NoTrainerError(UnavailableError):
    """The trainer's image is not on this host."""

    code = "no_trainer"


_Name = Annotated[str, Field(max_length=100)]


class _Told(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    status: Ending
    code: Annotated[str, Field(max_length=100)] = ""
    message: Annotated[str, Field(max_length=4000)] = ""
    figures: Annotated[
        dict[_Name, bool | int | FiniteFloat | Annotated[str, Field(max_length=500)] | None],
        Field(max_length=200),
    ] = {}


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One line that the trainer told."""

    number: int  #: from 1
    body: Mapping[str, JsonValue]


@dataclass(kw_only=True)
class Trainer:
    """Runs the jobs, one at a time."""

    jobs: Jobs
    engine: Engine
    layout: Layout
    settings: TrainingSettings
    image: str | None
    unit: Callable[[str, Job], Unit]  #: of an image and a job
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def submit(self, kind: Kind, name: str, spec: Mapping[str, JsonValue], cause: str) -> Job:
        """Put a job into the queue. Raises NoTrainerError, QueueFullError."""
        if self.image is None:
            raise NoTrainerError(f"this host's images name no trainer; nothing was queued: `make up`, then {BUILD}")
        job = await self.jobs.add(kind, name, spec, cause)
        self._wake.set()
        return job

    async def stop(self, job_id: str, why: str) -> Job:
        """Have a job end. Raises NotFoundError, JobEndedError."""
        job = await self.jobs.stop(job_id, why)
        self._wake.set()
        return job

    async def resume(self, job_id: str, why: str) -> Job:
        """Have a job go on from its last checkpoint. Raises NotFoundError, ConflictError."""
        job = await self.jobs.resume(job_id, why)
        self._wake.set()
        return job

    async def run_forever(self) -> None:
        """Look after the jobs until cancelled."""
        watcher = asyncio.create_task(self._watch(), name="trainer-events")
        try:
            while True:
                self._wake.clear()
                delay = LOOK_S
                try:
                    await self.reconcile()
                except LoopdError as error:
                    log.warning("jobs.failed", error=str(error))
                    delay = RETRY_S
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), delay)
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def reconcile(self) -> None:
        """Look once, plan once, do it. Raises EngineDownError, StateError."""
        jobs = await self.jobs.open()
        seen = {one.unit: one for one in await self.engine.observe() if one.unit.startswith(TRAINER_PREFIX)}
        if not jobs and not seen:
            return
        results = {
            job.id: told
            for job in jobs
            if job.status == "running" and (told := await asyncio.to_thread(read_result, self.work(job.id)))
        }
        bounds = Bounds(longest=timedelta(seconds=self.settings.longest_s))
        for step in plan_jobs(jobs, seen, results, bounds=bounds, now=self.clock()):
            await self._do(step, seen)

    async def _do(self, step: Step, seen: Mapping[str, Instance]) -> None:
        match step:
            case Begin(job=job):
                await self._begin(job)
            case Stop(job=job):
                await self.engine.remove(unit_of(job.id), grace_s=GRACE_S)
                self._wake.set()  # what it left is looked at in the next round
            case Finish(job=job, result=result):
                if unit_of(job.id) in seen:
                    await self.engine.remove(unit_of(job.id), grace_s=0)
                if result.status == "done":
                    result = await self._handed(job, result)
                await self.jobs.finish(
                    job, result.status, code=result.code, reason=result.message, figures=result.figures
                )
                await asyncio.to_thread(self._trim, [one.id for one in await self.jobs.newest(self.settings.keep)])
                self._wake.set()  # the next one's turn
            case Sweep(unit=unit):
                await self.engine.remove(unit, grace_s=GRACE_S)

    async def _begin(self, job: Job) -> None:
        if self.image is None:  # it was there when the job was asked for
            words = "The trainer's image is not on this host any more."
            await self.jobs.finish(job, "failed", code="image_missing", reason=words)
            return
        try:
            await asyncio.to_thread(self._prepare, job)
            await self.jobs.started(job)
            await self.engine.apply(self.unit(self.image, job))
        except ImageMissingError:
            words = f"The trainer's image, {self.image}, is not on this host; nothing was trained: {BUILD}."
            await self.jobs.finish(job, "failed", code="image_missing", reason=words)
        except OSError as error:
            words = f"Its folder could not be made: {error.strerror}. Nothing was started."
            await self.jobs.finish(job, "failed", code="disk", reason=words)

    def _prepare(self, job: Job) -> None:
        work = self.work(job.id)
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        own(work, TRAINER_UID)
        # Beside what the trainer may write, so that nothing in there can lead this elsewhere.
        write_atomically(work.parent / "spec.json", json.dumps(dict(job.spec), sort_keys=True), mode=0o644)
        (work / "result.json").unlink(missing_ok=True)  # of an earlier start

    def work(self, job_id: str) -> Path:
        """Return the folder that a job's container writes to."""
        return self.layout.jobs / job_id / "work"

    async def _handed(self, job: Job, result: Result) -> Result:
        """Hand on what a job made; return its result, a failure where that cannot be."""
        try:
            files = await asyncio.to_thread(self._hand_on, job)
        except OSError as error:
            words = f"What it made stays in {self.work(job.id)}: {error.filename2 or error.filename}: {error.strerror}."
            return Result(status="failed", code="not_handed_on", message=words, figures=result.figures)
        log.info("job.handed_on", job=job.id, files=files)
        return result

    def _hand_on(self, job: Job) -> list[str]:
        out = self.work(job.id) / "out"
        if job.kind == "curate":
            return hand_data(out, self.layout.datasets / job.name)
        return hand_model(out, self.layout.incoming, f"{job.name}-{job.id.removeprefix('job-')}")

    def _trim(self, kept: list[str]) -> None:
        """Remove the folders of jobs that nobody lists any more."""
        with contextlib.suppress(OSError):
            for folder in self.layout.jobs.iterdir():
                if folder.name not in kept:
                    shutil.rmtree(folder, ignore_errors=True)

    async def _watch(self) -> None:
        while True:
            try:
                async for event in self.engine.watch():
                    if isinstance(event, Relist) or event.unit.startswith(TRAINER_PREFIX):
                        self._wake.set()
            except LoopdError as error:
                log.warning("jobs.unwatched", error=str(error))
            await asyncio.sleep(RETRY_S)


def hand_model(out: Path, incoming: Path, name: str) -> list[str]:
    """Move what a job made into the model directory, its sidecar first, and return the names. Blocks. Raises OSError.

    May be done again: what was moved before is not there any more.
    """
    handed: list[str] = []
    for kind in ("adapter", "model"):
        model, sidecar = out / f"{kind}.gguf", out / f"{kind}.toml"
        if out.is_symlink() or model.is_symlink() or sidecar.is_symlink() or not model.is_file():
            continue
        for source, suffix in ((sidecar, ".toml"), (model, ".gguf")):
            if source.is_file():
                own(source, 0)
                source.replace(incoming / f"{name}{suffix}")
                handed.append(f"{name}{suffix}")
    return handed


def hand_data(out: Path, folder: Path) -> list[str]:
    """Move curated data into its data set, the manifest last, and return the names. Blocks. Raises OSError."""
    handed: list[str] = []
    if out.is_symlink() or not out.is_dir():
        return handed
    folder.mkdir(mode=0o755, exist_ok=True)
    for name in (*CURATED, "manifest.json"):
        source = out / name
        if source.is_file() and not source.is_symlink():
            own(source, 0)
            source.chmod(0o644)
            source.replace(folder / name)
            handed.append(name)
    return handed


def read_result(work: Path) -> Result | None:
    """Return the trainer's last word, None when there is none; one that is unfit is a failure. Blocks."""
    try:
        with _open(work / "result.json") as file:
            told = _Told.model_validate_json(file.read(MOST_RESULT_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        return Result(status="failed", code="result_unread", message=f"result.json: {error.strerror}", figures={})
    except ValidationError as error:
        words = f"The trainer's result has another form: {error.errors()[0]['msg']}. Nothing was handed on."
        return Result(status="failed", code="result_unfit", message=words, figures={})
    return Result(status=told.status, code=told.code, message=told.message, figures=told.figures)


def read_events(work: Path, *, after: int = 0, most: int = MOST_EVENTS) -> list[JobEvent]:
    """Return the events after a number, in order; a line that is no JSON object is passed over. Blocks."""
    events: list[JobEvent] = []
    with contextlib.suppress(OSError), _open(work / "events.jsonl") as file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_LINE_BYTES), b""), 1):
            if not line.endswith(b"\n") or len(events) >= most:
                break  # half a line is read once it is whole
            if number <= after:
                continue
            with contextlib.suppress(ValueError):
                body = json.loads(line)
                if isinstance(body, dict):
                    events.append(JobEvent(number, body))
    return events


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a file that the trainer wrote: never through a link, never what is no file. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no file")
        yield file
