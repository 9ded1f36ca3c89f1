"""The plan of a rollout: which steps, in which order, and that none harms what serves."""

from __future__ import annotations

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from loopd.plan import Goal, Observed, Phase, Strategy, plan_rollout
from loopd.policy import INSTANT, Policy, Stage
from loopd.steps import Bake, Conclude, Drain, Retire, Shift, Step, key, kind

OLD, NEW, OTHER = "a" * 64, "b" * 64, "c" * 64
CANARY = Policy(
    kind="canary",
    stages=(Stage(percent=10, seconds=1, requests=5), Stage(percent=50, seconds=1, requests=5)),
)
BLUE_GREEN = Policy(kind="blue-green", stages=(Stage(percent=100, seconds=1, requests=0),))


def goal(
    phase: Phase = Phase.ACTIVE,
    *,
    champion: str | None = OLD,
    policy: Policy = INSTANT,
    strategy: Strategy = "beside",
) -> Goal:
    return Goal(candidate=NEW, champion=champion, phase=phase, policy=policy, strategy=strategy, host="local")


def seen(
    *,
    running: dict[str, str] | None = None,
    champion: str | None = OLD,
    shares: dict[str, int] | None = None,
    done: frozenset[str] = frozenset(),
) -> Observed:
    running = running if running is not None else {OLD: "c1"}
    return Observed(
        running=running,
        present=frozenset(running),
        champion=champion,
        shares={OLD: 100} if shares is None else shares,
        done=done,
    )


def kinds(steps: tuple[Step, ...]) -> list[str]:
    return [kind(step) for step in steps]


def shifts(steps: tuple[Step, ...]) -> list[dict[str, int]]:
    return [dict(step.shares) for step in steps if isinstance(step, Shift)]


TAIL = ["promote", "drain", "retire", "conclude"]


def test_a_fresh_rollout_is_admitted_before_anything_starts() -> None:
    assert kinds(plan_rollout(goal(strategy=""), seen()))[:2] == ["admit", "start"]


def test_an_instant_rollout_prepares_flips_drains_and_retires() -> None:
    assert kinds(plan_rollout(goal(), seen())) == ["start", "load", "check", "shift", *TAIL]


def test_a_canary_watches_each_share_before_the_next() -> None:
    steps = plan_rollout(goal(policy=CANARY), seen())
    assert kinds(steps) == ["start", "load", "check", "shift", "shift", "bake", "shift", "bake", *TAIL]
    assert shifts(steps) == [{OLD: 100, NEW: 0}, {OLD: 90, NEW: 10}, {OLD: 50, NEW: 50}]
    assert [step.percent for step in steps if isinstance(step, Bake)] == [10, 50]


def test_blue_green_keeps_the_old_one_loaded_until_the_new_one_is_baked() -> None:
    steps = plan_rollout(goal(policy=BLUE_GREEN), seen())
    assert kinds(steps) == ["start", "load", "check", "shift", "shift", "bake", *TAIL]
    assert shifts(steps)[-1] == {OLD: 0, NEW: 100}


def test_the_first_release_has_nobody_to_be_compared_with_and_nothing_to_drain() -> None:
    steps = plan_rollout(goal(champion=None, policy=CANARY), seen(running={}, champion=None, shares={}))
    assert kinds(steps) == ["start", "load", "check", "shift", "promote", "conclude"]


def test_in_place_the_old_one_leaves_before_the_new_one_starts() -> None:
    steps = plan_rollout(goal(policy=CANARY, strategy="in_place"), seen())
    assert kinds(steps) == [
        "shift",
        "drain",
        "vacate",
        "start",
        "load",
        "check",
        "shift",
        "promote",
        "drain",
        *TAIL[2:],
    ]
    assert shifts(steps)[0] == {}, "requests are held"


def test_in_place_turned_back_the_old_one_starts_again_before_it_gets_traffic() -> None:
    observed = seen(running={NEW: "c2"}, shares={NEW: 0})
    steps = plan_rollout(goal(Phase.ABORTING, strategy="in_place"), observed)
    assert kinds(steps) == ["retire", "start", "load", "shift", "conclude"]
    assert shifts(steps) == [{OLD: 100}]


def test_what_was_done_in_a_container_that_died_is_done_again() -> None:
    """A load journaled for container c2 says nothing about c3."""
    done = frozenset({f"start:{NEW}", f"load:{NEW}:c2", f"check:{NEW}:c2"})
    same = seen(running={OLD: "c1", NEW: "c2"}, done=done)
    other = seen(running={OLD: "c1", NEW: "c3"}, done=done)
    assert kinds(plan_rollout(goal(), same))[:2] == ["shift", "promote"]
    assert kinds(plan_rollout(goal(), other))[:3] == ["load", "check", "shift"]


def test_a_stage_that_is_done_is_not_repeated() -> None:
    """Shifting back to an earlier share on a restart would make the champion's traffic jump."""
    steps = plan_rollout(goal(policy=CANARY), seen(running={OLD: "c1", NEW: "c2"}))
    done = frozenset(key(step) for step in steps[: kinds(steps).index("bake") + 1]) | {f"start:{NEW}"}
    observed = seen(running={OLD: "c1", NEW: "c2"}, shares={OLD: 90, NEW: 10}, done=done)
    rest = plan_rollout(goal(policy=CANARY), observed)
    assert kinds(rest) == ["shift", "bake", *TAIL]
    assert shifts(rest) == [{OLD: 50, NEW: 50}]


def test_after_promotion_only_the_old_one_is_cleared_away() -> None:
    observed = seen(running={OLD: "c1", NEW: "c2"}, champion=NEW, shares={OLD: 0, NEW: 100})
    steps = plan_rollout(goal(policy=CANARY), observed)
    assert kinds(steps) == ["drain", "retire", "conclude"]
    assert all(key(step).endswith(OLD) for step in steps[:-1])


def test_turned_back_the_champion_has_all_traffic_before_anything_else() -> None:
    observed = seen(running={OLD: "c1", NEW: "c2"}, shares={OLD: 50, NEW: 50})
    steps = plan_rollout(goal(Phase.ABORTING, policy=CANARY), observed)
    assert kinds(steps) == ["shift", "drain", "retire", "conclude"]
    assert shifts(steps) == [{OLD: 100, NEW: 0}]


def test_a_candidate_the_gateway_never_knew_is_just_removed() -> None:
    steps = plan_rollout(goal(Phase.ABORTING), seen(running={OLD: "c1", NEW: "c2"}))
    assert kinds(steps) == ["retire", "conclude"]
    assert key(steps[0]) == f"retire:{NEW}"


ids = st.sampled_from([OLD, NEW, OTHER])
strategies: st.SearchStrategy[Literal["", "beside", "in_place"]] = st.sampled_from(["", "beside", "in_place"])
policies = st.sampled_from([INSTANT, CANARY, BLUE_GREEN])
every_key = sorted(
    {
        key(step)
        for policy in (INSTANT, CANARY, BLUE_GREEN)
        for strategy in ("beside", "in_place")
        for phase in (Phase.ACTIVE, Phase.ABORTING)
        for running in ({OLD: "c1", NEW: "c1"}, {OLD: "c1"}, {NEW: "c1"})
        for step in plan_rollout(
            goal(phase, policy=policy, strategy="beside" if strategy == "beside" else "in_place"),
            seen(running=running, shares={OLD: 50, NEW: 50}),
        )
    }
)


@given(
    running=st.dictionaries(ids, st.sampled_from(["c1", "c2"])),
    champion=st.one_of(st.none(), ids),
    began=st.one_of(st.none(), ids.filter(lambda release: release != NEW)),
    shares=st.dictionaries(ids, st.integers(0, 100)),
    done=st.frozensets(st.sampled_from(every_key)),
    phase=st.sampled_from([Phase.ACTIVE, Phase.ABORTING]),
    policy=policies,
    strategy=strategies,
)
def test_a_plan_never_harms_the_champion(
    running: dict[str, str],
    champion: str | None,
    began: str | None,
    shares: dict[str, int],
    done: frozenset[str],
    phase: Phase,
    policy: Policy,
    strategy: Strategy,
) -> None:
    """Whatever is seen: the plan ends; shares are whole; beside, no champion goes before the promotion."""
    observed = seen(running=running, champion=champion, shares=shares, done=done)
    steps = plan_rollout(goal(phase, champion=began, policy=policy, strategy=strategy), observed)
    assert isinstance(steps[-1], Conclude)
    names = kinds(steps)
    assert all(sum(split.values()) in (0, 100) for split in shifts(steps))
    if phase is Phase.ACTIVE and champion != NEW:
        first_loss = min((names.index(k) for k in ("drain", "retire", "vacate") if k in names), default=len(names))
        assert names.index("promote") < first_loss or strategy == "in_place"
        assert "retire" not in names or names.index("promote") < names.index("retire")
    if phase is Phase.ABORTING:
        assert not {"promote", "bake", "check", "vacate"} & set(names)
        assert all(step.release == NEW for step in steps if isinstance(step, Drain | Retire))
    assert not any(key(step) == f"retire:{NEW}" for step in steps if phase is Phase.ACTIVE)


@given(policy=policies, strategy=strategies, champion=st.one_of(st.none(), st.just(OLD)))
def test_doing_one_step_and_planning_again_ends(policy: Policy, strategy: Strategy, champion: str | None) -> None:
    """The runner looks again after each step: a plan that forgets a step or repeats one would never end."""
    running = {OLD: "c1"} if champion else {}
    shares = {OLD: 100} if champion else {}
    serving, done, strategy_now = champion, frozenset[str](), strategy
    for _ in range(40):
        observed = seen(running=dict(running), champion=serving, shares=dict(shares), done=done)
        step = plan_rollout(goal(champion=champion, policy=policy, strategy=strategy_now), observed)[0]
        done |= {key(step)}
        match kind(step):
            case "conclude":
                break
            case "admit":
                strategy_now = "beside"
            case "start":
                running[NEW] = "c2"
            case "vacate":
                del running[OLD]
            case "shift":
                assert isinstance(step, Shift)
                shares = dict(step.shares)
            case "promote":
                serving, shares = NEW, dict.fromkeys(shares, 0) | {NEW: 100}
            case "retire":
                running.pop(OLD, None)
                shares.pop(OLD, None)
            case _:
                pass
    else:
        raise AssertionError("the rollout does not end")
    assert (serving, running, shares) == (NEW, {NEW: "c2"}, {NEW: 100})
