"""crash_loop: owns what follows when a champion crashes again and again: whether there is a way back. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from loopd.plan import Phase
from loopd.registry import Serving
from loopd.rollout import Rollout

ROLLOUTS_READ = 10  # newest; the one that made the champion is among them, or it served long enough


def why_no_return(serving: Serving, rollouts: Sequence[Rollout], *, since: datetime) -> str:
    """Say why there is no going back to the release before, '' when there is.

    rollouts: newest first. since: a rollback asked for later than this is recent. Two bad releases must not take
    turns for ever, so a champion that was itself gone back to never gives way to what was left for it.
    """
    if serving.previous is None:
        return "no release served before"
    if any(rollout.finished_at is None for rollout in rollouts):
        return "another rollout is under way or waits"
    if any(r.kind == "rollback" and datetime.fromisoformat(r.created_at) > since for r in rollouts):
        return "there was a rollback a moment ago"
    made = next((r for r in rollouts if r.phase is Phase.PROMOTED and r.candidate == serving.champion), None)
    if made is not None and made.kind == "rollback":
        return "the release before was itself rolled back"
    return ""
