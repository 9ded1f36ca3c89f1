"""What is done next about the trainer's jobs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from loopd.engine import Instance, InstanceState
from loopd.job import Job
from loopd.job_plan import Begin, Bounds, Finish, Result, Step, Stop, Sweep, plan_jobs, unit_of

NOW = datetime(2026, 11, 21, tzinfo=UTC)
BOUNDS = Bounds(starts=3, longest=timedelta(hours=1))
DONE = Result(status="done", figures={"loss": 0.5})


def job(number: int = 1, **changes: object) -> Job:
    made = Job(
        id=f"job-{number:012x}",
        kind="train",
        status="running",
        cause="test",
        name="mine",
        spec={},
        created_at=NOW,
        started_at=NOW,
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # fields of it


def seen(of: Job, state: InstanceState = InstanceState.RUNNING, **changes: object) -> dict[str, Instance]:
    instance = Instance(
        unit=unit_of(of.id), id="c1", image_id="sha256:1", fingerprint="f", state=state, address=None, exit_code=None
    )
    return {unit_of(of.id): replace(instance, **changes)}  # type: ignore[arg-type]  # fields of it


def plan(
    jobs: list[Job], there: dict[str, Instance], results: dict[str, Result] | None = None, hours: float = 0
) -> list[Step]:
    return plan_jobs(jobs, there, results or {}, bounds=BOUNDS, now=NOW + timedelta(hours=hours))


def ended(of: Job, code: int, **changes: object) -> dict[str, Instance]:
    return seen(of, InstanceState.STOPPED, exit_code=code, **changes)


def test_the_first_in_the_queue_begins_when_nothing_runs() -> None:
    first, second = job(1, status="queued"), job(2, status="queued")
    assert plan([first, second], {}) == [Begin(first)]
    assert plan([job(3), first], seen(job(3))) == []
    assert plan([], {}) == []


def test_what_came_to_its_end_is_written_down_by_its_own_word() -> None:
    running = job(starts=1)
    assert plan([running], ended(running, 0), {running.id: DONE}) == [Finish(running, DONE)]
    assert plan([running], {}, {running.id: DONE}) == [Finish(running, DONE)]  # its container is gone already
    assert plan([running], seen(running), {running.id: DONE}) == []  # it is still putting its things away


def test_a_container_that_was_killed_goes_on_and_a_bug_does_not_come_again() -> None:
    running = job(starts=1)
    assert plan([running], ended(running, 137)) == [Begin(running)]
    assert plan([running], {}) == [Begin(running)]
    [step] = plan([running], ended(running, 1))
    assert isinstance(step, Finish)
    assert (step.result.status, step.result.code) == ("failed", "crashed")
    [step] = plan([job(starts=3)], ended(job(), 137))
    assert isinstance(step, Finish)
    assert "Its checkpoints stay" in step.result.message


def test_want_of_memory_is_told_as_such() -> None:
    running = job(starts=1)
    assert plan([running], ended(running, 137, oom_killed=True)) == [Begin(running)]  # the host may have been short
    [step] = plan([job(starts=3)], ended(running, 137, oom_killed=True))
    assert isinstance(step, Finish)
    assert step.result.code == "out_of_memory"


def test_a_job_is_stopped_when_asked_and_when_it_takes_too_long() -> None:
    running, asked = job(starts=1), job(starts=1, stopping="anna asked for it")
    assert plan([asked], seen(asked)) == [Stop(asked)]
    assert plan([running], seen(running), hours=2) == [Stop(running)]
    [step] = plan([asked], ended(asked, 137))
    assert step == Finish(asked, Result(status="cancelled", message="anna asked for it", figures={}))
    assert plan([asked], ended(asked, 0), {asked.id: DONE}) == [Finish(asked, DONE)]  # it was done before it heard


def test_containers_of_no_running_job_go() -> None:
    stray = job(7)
    assert plan([], seen(stray)) == [Sweep(unit_of(stray.id))]
    assert plan([job(1)], seen(job(1)) | seen(stray)) == [Sweep(unit_of(stray.id))]


@given(
    starts=st.integers(0, 9),
    stopping=st.sampled_from(["", "asked"]),
    there=st.sampled_from(["absent", *InstanceState]),
    code=st.sampled_from([None, 0, 1, 3, 137]),
    oom=st.booleans(),
    told=st.booleans(),
)
def test_whatever_is_seen_there_is_one_step_at_most_and_it_never_starts_for_ever(
    starts: int, stopping: str, there: str, code: int | None, oom: bool, told: bool
) -> None:
    running = job(starts=starts, stopping=stopping)
    instances = {} if there == "absent" else seen(running, InstanceState(there), exit_code=code, oom_killed=oom)
    steps = plan([running], instances, {running.id: DONE} if told else {})
    assert len(steps) == (not (there == "running" and not stopping))
    if there != "running" and (told or stopping):
        assert isinstance(steps[0], Finish)
    for step in steps:
        if isinstance(step, Begin):
            assert starts < BOUNDS.starts
