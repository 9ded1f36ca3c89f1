"""jobs: owns the control API's endpoints about the trainer's jobs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from aiohttp import web
from pydantic import JsonValue

from loopd.api.schema import (
    CurateRequest,
    DataList,
    DataView,
    JobEventList,
    JobEventView,
    JobList,
    JobView,
    TrainRequest,
)
from loopd.api.web import PRINCIPAL, Endpoint, Query, json_response, read_body, read_query
from loopd.config import TrainingSettings
from loopd.errors import ConflictError
from loopd.job import Job, Jobs
from loopd.registry import Registry
from loopd.release import Release
from loopd.trainer import MOST_EVENTS, Trainer, read_events

SHOWN = 100
MOST_FILES = 10_000  # looked at
AFTER = Query(name="after", description="the number of the last event that is known")
ID = "/v1/finetune/jobs/{job:job-[0-9a-f]{12}}"


class NothingToCurateError(ConflictError):
    """Nothing was named to make a data set of; nothing was queued."""

    code = "no_source"


class NothingToTrainError(ConflictError):
    """There is no model to train; nothing was queued."""

    code = "no_base"


@dataclass(frozen=True, kw_only=True)
class JobRoutes:
    """Handlers over the trainer's jobs."""

    trainer: Trainer
    jobs: Jobs
    registry: Registry
    settings: TrainingSettings
    num_ctx: int

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints."""
        return (
            Endpoint(
                method="GET",
                path="/v1/finetune/jobs",
                handler=self.list_jobs,
                summary="The newest jobs of the trainer",
                answer=JobList,
            ),
            Endpoint(
                method="POST",
                path="/v1/finetune/jobs",
                handler=self.create_job,
                summary="Train on data sets, and hand what comes of it to the model directory",
                body=TrainRequest,
                answer=JobView,
                status=201,
                errors=(404, 409, 503, 507),
            ),
            Endpoint(
                method="GET",
                path="/v1/data",
                handler=self.list_data,
                summary="The files that the trainer can read",
                answer=DataList,
            ),
            Endpoint(
                method="POST",
                path="/v1/data/curations",
                handler=self.curate_data,
                summary="Make a data set of files",
                body=CurateRequest,
                answer=JobView,
                status=201,
                errors=(409, 503, 507),
            ),
            Endpoint(method="GET", path=ID, handler=self.get_job, summary="One job", answer=JobView, errors=(404,)),
            Endpoint(
                method="GET",
                path=f"{ID}/events",
                handler=self.list_job_events,
                summary="What a job told, from a number on",
                query=(AFTER,),
                answer=JobEventList,
                errors=(404,),
            ),
            Endpoint(
                method="POST",
                path=f"{ID}/cancel",
                handler=self.cancel_job,
                summary="End a job, with a checkpoint to go on from",
                answer=JobView,
                errors=(404, 409, 507),
            ),
            Endpoint(
                method="POST",
                path=f"{ID}/resume",
                handler=self.resume_job,
                summary="Have a job that failed or was cancelled go on from its last checkpoint",
                answer=JobView,
                errors=(404, 409, 507),
            ),
        )

    async def list_jobs(self, _: web.Request) -> web.Response:
        """List them."""
        return json_response(JobList(jobs=[job_view(job) for job in await self.jobs.newest(SHOWN)]))

    async def create_job(self, request: web.Request) -> web.Response:
        """Queue one."""
        asked = await read_body(request, TrainRequest)
        base = await self._base(asked.base)
        spec = spec_of(asked, base, self.settings, num_ctx=self.num_ctx)
        job = await self.trainer.submit("train", asked.name, spec, f"{request[PRINCIPAL].user} asked for it")
        return json_response(job_view(job), 201)

    async def list_data(self, _: web.Request) -> web.Response:
        """List the files there are."""
        return json_response(await asyncio.to_thread(data_of, self.trainer.layout.datasets))

    async def curate_data(self, request: web.Request) -> web.Response:
        """Queue a curation."""
        asked = await read_body(request, CurateRequest)
        if not asked.sources and not asked.synthetic:
            raise NothingToCurateError("there is neither a source nor a row to make up; nothing was queued")
        who = f"{request[PRINCIPAL].user} asked for it"
        return json_response(job_view(await self.trainer.submit("curate", asked.name, curation_of(asked), who)), 201)

    async def get_job(self, request: web.Request) -> web.Response:
        """Show one."""
        return json_response(job_view(await self.jobs.get(request.match_info["job"])))

    async def list_job_events(self, request: web.Request) -> web.Response:
        """Show what one told."""
        job = await self.jobs.get(request.match_info["job"])
        after = read_query(request, AFTER)
        told = await asyncio.to_thread(read_events, self.trainer.work(job.id), after=after, most=MOST_EVENTS)
        events = [JobEventView(number=one.number, body=dict(one.body)) for one in told]
        return json_response(JobEventList(job=job_view(job), events=events))

    async def cancel_job(self, request: web.Request) -> web.Response:
        """End one."""
        why = f"{request[PRINCIPAL].user} asked for it"
        return json_response(job_view(await self.trainer.stop(request.match_info["job"], why)))

    async def resume_job(self, request: web.Request) -> web.Response:
        """Let one go on."""
        why = f"{request[PRINCIPAL].user} asked for it"
        return json_response(job_view(await self.trainer.resume(request.match_info["job"], why)))

    async def _base(self, reference: str | None) -> Release:
        if reference is not None:
            return await self.registry.find(reference)
        champion = (await self.registry.serving()).champion
        if champion is None:
            raise NothingToTrainError("no release serves, so there is nothing to train; nothing was queued")
        return await self.registry.get(champion)


def spec_of(asked: TrainRequest, base: Release, settings: TrainingSettings, *, num_ctx: int) -> dict[str, JsonValue]:
    """Return what the trainer reads (its `TrainSpec`), with paths as its container sees them. Pure."""

    def paths(names: list[str]) -> list[JsonValue]:
        return [str(PurePosixPath("/data") / name) for name in names]

    return {
        "command": "train",
        "name": asked.name,
        "base": f"/models/{base.gguf_sha256}.gguf",
        "train": paths(asked.train),
        "evaluate": paths(asked.evaluate),
        "lora": {"r": asked.r, "alpha": asked.alpha, "dropout": asked.dropout, "targets": [*asked.targets]},
        "steps": {
            "tokens": min(asked.tokens, num_ctx),
            "batch": asked.batch,
            "accumulation": asked.accumulation,
            "epochs": asked.epochs,
            "learning_rate": asked.learning_rate,
            "seed": asked.seed,
        },
        "machine": {
            "threads": settings.threads or 1,
            "quantise": asked.quantise,
            "gradient_checkpointing": asked.gradient_checkpointing,
        },
        "handover": {
            "adapter": asked.hand_over == "adapter",
            "model": asked.hand_over == "model",
            "base": base.name,
        },
    }


def curation_of(asked: CurateRequest) -> dict[str, JsonValue]:
    """Return what the trainer reads (its `CurateSpec`). Pure."""
    sources: list[JsonValue] = [
        {
            "name": f"{place}-{source.path.replace('/', '-')}"[:64],
            "path": source.path,
            "form": source.form,
            "weight": source.weight,
            "held_out": source.held_out,
        }
        for place, source in enumerate(asked.sources)
    ]
    made: JsonValue = {"rows": asked.synthetic, "held_out": asked.synthetic_held_out} if asked.synthetic else None
    return {"sources": sources, "synthetic": made, "seed": asked.seed, "total": asked.total}


def data_of(folder: Path) -> DataList:
    """Return the files in the data folder and one level below. Blocks."""
    files: list[DataView] = []
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")])[:MOST_FILES]:
        if path.is_file() and not path.is_symlink():
            info = path.stat()
            changed = datetime.fromtimestamp(info.st_mtime, UTC)
            name = str(path.relative_to(folder))
            files.append(DataView(path=name, size_bytes=info.st_size, changed_at=changed))
    return DataList(folder=str(folder), files=files)


def job_view(job: Job) -> JobView:
    """Return one as the API shows it."""
    return JobView(
        id=job.id,
        kind=job.kind,
        status=job.status,
        cause=job.cause,
        name=job.name,
        spec=dict(job.spec),
        starts=job.starts,
        stopping=job.stopping,
        code=job.code,
        reason=job.reason,
        figures=dict(job.figures),
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
    )
