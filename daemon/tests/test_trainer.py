"""Jobs carried out: on the engine in memory, with the files that a trainer writes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from loopd.config import Settings, TrainingSettings
from loopd.engine import InMemoryEngine, InstanceState
from loopd.errors import ConflictError, NotFoundError
from loopd.job import Job, JobEndedError, Jobs, QueueFullError
from loopd.job_plan import unit_of
from loopd.ledger import Ledger
from loopd.state import open_database
from loopd.trainer import NoTrainerError, Trainer, read_events, read_result
from loopd.units import layout_of, trainer_unit

IMAGE = "loopbox/trainer:test"
Make = Callable[..., Trainer]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    settings = Settings(home=tmp_path / "home", run_dir=Path("/run/lbjobs"), training=TrainingSettings(keep=2))
    layout = layout_of(settings)
    layout.jobs.mkdir(parents=True)
    engine = InMemoryEngine(images={IMAGE: "sha256:1"})
    async with open_database(layout.home / "state.db") as database:
        ledger = Ledger(database)

        def made(image: str | None = IMAGE) -> Trainer:
            return Trainer(
                jobs=Jobs(database, ledger),
                engine=engine,
                layout=layout,
                settings=settings.training,
                image=image,
                unit=lambda image, job: trainer_unit(settings, image, job.id, job.kind),
            )

        yield made


def says(trainer: Trainer, job: Job, **result: object) -> None:
    """Let the job's container write its last word and end."""
    (trainer.work(job.id) / "result.json").write_text(json.dumps({"status": "done", "figures": {}, **result}))
    memory(trainer).die(unit_of(job.id), exit_code=0)


def memory(trainer: Trainer) -> InMemoryEngine:
    assert isinstance(trainer.engine, InMemoryEngine)
    return trainer.engine


async def test_jobs_run_one_after_the_other(make: Make) -> None:
    trainer = make()
    first = await trainer.submit("train", "mine", {"steps": 3}, "anna asked for it")
    second = await trainer.submit("curate", "mine", {}, "the loop")
    await trainer.reconcile()
    assert list(memory(trainer).instances) == [unit_of(first.id)]
    spec = trainer.work(first.id).parent / "spec.json"
    assert json.loads(spec.read_bytes()) == {"steps": 3}
    says(trainer, first, figures={"loss": 0.25})
    await trainer.reconcile()
    done = await trainer.jobs.get(first.id)
    assert (done.status, done.figures) == ("done", {"loss": 0.25})
    await trainer.reconcile()
    assert list(memory(trainer).instances) == [unit_of(second.id)]
    assert [job.status for job in await trainer.jobs.newest()] == ["running", "done"]


async def test_a_killed_container_goes_on_with_the_same_folder(make: Make) -> None:
    trainer = make()
    job = await trainer.submit("train", "mine", {}, "test")
    await trainer.reconcile()
    (trainer.work(job.id) / "checkpoint").write_text("7")
    memory(trainer).die(unit_of(job.id), exit_code=137)
    await make().reconcile()  # a loopd started anew, too
    assert memory(trainer).instances[unit_of(job.id)].state is InstanceState.RUNNING
    assert (trainer.work(job.id) / "checkpoint").read_text() == "7"
    assert (await trainer.jobs.get(job.id)).starts == 2


async def test_stop_and_resume(make: Make) -> None:
    trainer = make()
    job = await trainer.submit("train", "mine", {}, "test")
    await trainer.reconcile()
    waiting = await trainer.submit("train", "mine", {}, "test")
    assert (await trainer.stop(waiting.id, "anna asked for it")).status == "cancelled"
    await trainer.stop(job.id, "anna asked for it")
    await trainer.reconcile()
    await trainer.reconcile()
    ended = await trainer.jobs.get(job.id)
    assert (ended.status, ended.reason) == ("cancelled", "anna asked for it")
    assert memory(trainer).instances == {}
    with pytest.raises(JobEndedError):
        await trainer.stop(job.id, "again")
    (trainer.work(job.id) / "result.json").write_text(json.dumps({"status": "cancelled"}))
    assert (await trainer.resume(job.id, "anna")).status == "queued"
    with pytest.raises(ConflictError, match="queued"):
        await trainer.resume(job.id, "anna")
    await trainer.reconcile()
    assert not (trainer.work(job.id) / "result.json").exists()  # the old word is not taken for the new one
    assert (await trainer.jobs.get(job.id)).status == "running"


async def test_what_cannot_be_is_refused(make: Make) -> None:
    with pytest.raises(NoTrainerError):
        await make(image=None).submit("train", "mine", {}, "test")
    trainer = make()
    with pytest.raises(NotFoundError):
        await trainer.stop("job-000000000000", "test")
    for _ in range(32):
        await trainer.submit("curate", "mine", {}, "test")
    with pytest.raises(QueueFullError):
        await trainer.submit("curate", "mine", {}, "test")


async def test_an_image_that_went_away_fails_the_job(make: Make) -> None:
    trainer = make()
    job = await trainer.submit("train", "mine", {}, "test")
    memory(trainer).images.clear()
    await trainer.reconcile()
    ended = await trainer.jobs.get(job.id)
    assert (ended.status, ended.code) == ("failed", "image_missing")


async def test_what_cannot_be_handed_on_stays_and_is_told(make: Make) -> None:
    trainer = make()
    trainer.layout.datasets.mkdir(parents=True)
    (trainer.layout.datasets / "mine").write_text("a file of that name")
    job = await trainer.submit("curate", "mine", {}, "test")
    await trainer.reconcile()
    out = trainer.work(job.id) / "out"
    out.mkdir()
    (out / "train.jsonl").write_text("{}\n")
    says(trainer, job)
    await trainer.reconcile()
    ended = await trainer.jobs.get(job.id)
    assert (ended.status, ended.code) == ("failed", "not_handed_on")
    assert (out / "train.jsonl").is_file()


async def test_folders_of_old_jobs_go(make: Make) -> None:
    trainer = make()
    made = []
    for _ in range(4):
        job = await trainer.submit("curate", "mine", {}, "test")
        made.append(job.id)
        await trainer.reconcile()
        says(trainer, job)
        await trainer.reconcile()
    assert sorted(folder.name for folder in trainer.layout.jobs.iterdir()) == sorted(made[-2:])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "result_unfit"),
        ("[]", "result_unfit"),
        ('{"status": "won"}', "result_unfit"),
        ('{"status": "done", "figures": {"x": NaN}}', "result_unfit"),
        ("{" * 300_000, "result_unfit"),
        ('{"status": "failed", "code": "empty", "extra": 1}', "empty"),
    ],
)
def test_a_last_word_is_parsed_at_the_door(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "result.json").write_text(text)
    result = read_result(tmp_path)
    assert result is not None
    assert (result.status, result.code) == ("failed", code)


def test_what_a_trainer_wrote_is_never_read_through_a_link(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    secret = tmp_path / "secret"
    secret.write_text('{"status": "done"}\n')
    (tmp_path / "result.json").symlink_to(secret)
    (tmp_path / "events.jsonl").symlink_to(secret)
    result = read_result(tmp_path)
    assert result is not None
    assert (result.status, result.code) == ("failed", "result_unread")
    assert read_events(tmp_path) == []


def test_events_are_read_whole_and_in_order(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []
    lines = ['{"event": "step", "loss": 2}', "rubbish", "[]", '{"event": "done"}', '{"event": "half']
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    assert [(one.number, one.body["event"]) for one in read_events(tmp_path)] == [(1, "step"), (4, "done")]
    assert [one.number for one in read_events(tmp_path, after=1)] == [4]
    assert [one.number for one in read_events(tmp_path, most=1)] == [1]
