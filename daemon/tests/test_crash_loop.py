"""Whether a champion that keeps crashing gives way to the release before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from loopd.crash_loop import why_no_return
from loopd.plan import Phase
from loopd.policy import INSTANT
from loopd.registry import Serving
from loopd.rollout import Kind, Rollout

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SINCE = NOW - timedelta(minutes=5)
SERVING = Serving(champion="b", previous="a", shares={"b": 100}, epoch=1)


def rollout(
    candidate: str, kind: Kind = "rollout", phase: Phase = Phase.PROMOTED, *, ago: timedelta = timedelta(hours=1)
) -> Rollout:
    over = phase not in (Phase.WAITING, Phase.ACTIVE, Phase.ABORTING)
    return Rollout(
        id=1,
        kind=kind,
        candidate=candidate,
        champion=None,
        phase=phase,
        reason="",
        created_at=(NOW - ago).isoformat(),
        finished_at=(NOW - ago).isoformat() if over else None,
        policy=INSTANT,
        strategy="",
    )


@pytest.mark.parametrize(
    ("serving", "newest_first", "said"),
    [
        (SERVING, [rollout("b"), rollout("a")], ""),
        (SERVING, [], ""),
        (SERVING, [rollout("c", phase=Phase.ROLLED_BACK), rollout("b")], ""),
        (SERVING, [rollout("b"), rollout("a", "rollback")], ""),
        (Serving(champion="b", previous=None, shares={}, epoch=1), [rollout("b")], "no release served before"),
        (SERVING, [rollout("c", phase=Phase.ACTIVE), rollout("b")], "under way"),
        (SERVING, [rollout("c", phase=Phase.WAITING), rollout("b")], "waits"),
        (SERVING, [rollout("b"), rollout("a", "rollback", ago=timedelta(minutes=1))], "a moment ago"),
        (SERVING, [rollout("b", "rollback"), rollout("a"), rollout("b")], "itself rolled back"),
        (SERVING, [rollout("b"), rollout("b", "rollback"), rollout("a")], ""),
    ],
    ids=[
        "a release before",
        "records are gone",
        "a candidate failed since",
        "an old rollback of another",
        "the first release",
        "a candidate comes",
        "a candidate waits",
        "a rollback just now",
        "gone back to, whenever",
        "rolled out anew since",
    ],
)
def test_two_bad_releases_never_take_turns(serving: Serving, newest_first: list[Rollout], said: str) -> None:
    obstacle = why_no_return(serving, newest_first, since=SINCE)
    assert said in obstacle
    assert bool(said) == bool(obstacle)
