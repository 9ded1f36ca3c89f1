from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from loopd.cause import Code
from loopd.engine import Instance, InstanceState, Limits, Unit
from loopd.unit_plan import BACKOFF_MOST_S, Apply, Past, Remove, Wait, backoff, is_looping, plan_units

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def unit(name: str, image: str = "image") -> Unit:
    return Unit(name=name, image=image, user="1:1", network="none", limits=Limits(memory_bytes=1))


def instance(of: Unit, **changes: object) -> Instance:
    values: dict[str, object] = {
        "unit": of.name,
        "id": "c1",
        "image_id": "i",
        "fingerprint": of.fingerprint,
        "state": InstanceState.RUNNING,
        "address": None,
        "started_at": NOW - timedelta(seconds=5),
    }
    return Instance(**{**values, **changes})  # type: ignore[arg-type]  # test data by name


def plan_one(
    of: Unit,
    observed: dict[str, Instance],
    restarts: tuple[datetime, ...] = (),
    known: bool = True,
    looping: bool = False,
) -> object:
    past = {of.name: Past(crashes=restarts, ran=known, looping=looping)}
    steps = plan_units(desired=[of], observed=observed, past=past, now=NOW)
    return steps[0] if steps else None


def test_a_unit_as_desired_is_left_alone() -> None:
    agent = unit("agent")
    assert plan_one(agent, {"agent": instance(agent)}) is None


def test_a_first_start_is_not_a_restart_but_a_lost_container_is() -> None:
    agent = unit("agent")
    first, lost = plan_one(agent, {}, known=False), plan_one(agent, {})
    assert isinstance(first, Apply)
    assert isinstance(lost, Apply)
    assert (first.restart, lost.restart) == (False, True)
    assert lost.cause.code is Code.REMOVED


def test_a_changed_specification_replaces_the_container() -> None:
    step = plan_one(unit("agent", "new"), {"agent": instance(unit("agent", "old"))})
    assert isinstance(step, Apply)
    assert step.cause.code is Code.CONFIGURATION


def test_a_crash_loop_waits_longer_each_time() -> None:
    agent = unit("agent")
    dead = {"agent": instance(agent, state=InstanceState.STOPPED, exit_code=1)}
    assert isinstance(plan_one(agent, dead), Apply)
    step = plan_one(agent, dead, tuple(NOW - timedelta(seconds=s) for s in (3, 2, 1, 0.01)))
    assert isinstance(step, Wait)
    assert step.until > NOW


def test_what_nobody_wants_is_removed() -> None:
    stray = unit("engine-0123")
    steps = plan_units(desired=[], observed={stray.name: instance(stray)}, past={}, now=NOW)
    assert steps == (Remove(unit="engine-0123", cause="nothing wants it"),)


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=40))
def test_backoff_grows_to_its_cap_in_a_loop(gaps: list[float]) -> None:
    times = [NOW]
    for gap in gaps:
        times.append(times[-1] + timedelta(seconds=gap))
    waits = [backoff(times[: n + 1]) for n in range(len(times))]
    assert waits == sorted(waits)
    assert all(0 < wait <= BACKOFF_MOST_S for wait in waits)


def test_backoff_begins_anew_after_a_stable_hour() -> None:
    loop = [NOW + timedelta(seconds=s) for s in range(6)]
    assert backoff([]) == 0
    assert backoff([*loop, NOW + timedelta(hours=1)]) == backoff([NOW])


def test_an_old_container_that_lies_about_is_no_long_run() -> None:
    """Its start long ago must not make each restart look like the first one after a quiet time."""
    agent = unit("agent")
    old = instance(
        agent,
        state=InstanceState.STOPPED,
        exit_code=1,
        started_at=NOW - timedelta(hours=1),
        finished_at=NOW - timedelta(seconds=1),
    )
    crashes = tuple(NOW - timedelta(seconds=s) for s in (0.5, 0.2, 0.01))
    assert isinstance(plan_one(agent, {"agent": old}, crashes), Wait)


def test_after_a_long_run_the_restart_is_at_once() -> None:
    agent = unit("agent")
    ran = instance(
        agent,
        state=InstanceState.STOPPED,
        exit_code=1,
        started_at=NOW - timedelta(hours=1),
        finished_at=NOW,
    )
    crashes = tuple(NOW - timedelta(hours=1, seconds=s) for s in (3, 2, 1))
    assert isinstance(plan_one(agent, {"agent": ran}, crashes), Apply)


def test_in_a_crash_loop_restarts_go_on_but_seldom() -> None:
    agent = unit("agent")
    dead = {"agent": instance(agent, state=InstanceState.STOPPED, exit_code=1)}
    last = NOW - timedelta(seconds=5)
    step = plan_one(agent, dead, (last,), looping=True)
    assert isinstance(step, Wait)
    assert step.until == last + timedelta(seconds=BACKOFF_MOST_S)
    assert isinstance(plan_one(agent, dead, (NOW - timedelta(seconds=61),), looping=True), Apply)


def test_a_crash_loop_is_many_crashes_in_a_short_time() -> None:
    crashes = [NOW - timedelta(seconds=s) for s in (400, 200, 100, 50, 1)]
    assert is_looping(crashes, most=4, window_s=300, now=NOW)
    assert not is_looping(crashes, most=5, window_s=300, now=NOW)
