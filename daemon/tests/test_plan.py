from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopd.engine import Instance, InstanceState, Limits, Unit
from loopd.unit_plan import BACKOFF_MOST_S, Apply, Remove, Wait, backoff, explain_end, plan_units

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
    of: Unit, observed: dict[str, Instance], restarts: tuple[datetime, ...] = (), known: bool = True
) -> object:
    steps = plan_units(
        desired=[of],
        observed=observed,
        restarts={of.name: restarts},
        known=frozenset({of.name}) if known else frozenset(),
        now=NOW,
    )
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
    assert "removed" in lost.cause


def test_a_changed_specification_replaces_the_container() -> None:
    step = plan_one(unit("agent", "new"), {"agent": instance(unit("agent", "old"))})
    assert isinstance(step, Apply)
    assert "configuration" in step.cause


def test_a_crash_loop_waits_longer_each_time() -> None:
    agent = unit("agent")
    dead = {"agent": instance(agent, state=InstanceState.STOPPED, exit_code=1)}
    assert isinstance(plan_one(agent, dead), Apply)
    step = plan_one(agent, dead, tuple(NOW - timedelta(seconds=s) for s in (3, 2, 1, 0.01)))
    assert isinstance(step, Wait)
    assert step.until > NOW


def test_what_nobody_wants_is_removed() -> None:
    stray = unit("engine-0123")
    steps = plan_units(desired=[], observed={stray.name: instance(stray)}, restarts={}, known=frozenset(), now=NOW)
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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exit_code": 137}, "SIGKILL"),
        ({"exit_code": 139}, "SIGSEGV"),
        ({"exit_code": 0}, "code 0"),
        ({"exit_code": 137, "oom_killed": True}, "memory"),
        ({"state": InstanceState.CREATED, "error": "no such file"}, "no such file"),
    ],
)
def test_each_end_has_its_cause(changes: dict[str, object], said: str) -> None:
    assert said in explain_end(instance(unit("agent"), **{"state": InstanceState.STOPPED, **changes}))
