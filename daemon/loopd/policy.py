"""policy: owns how a rollout gives traffic to its candidate: in which stages, and what ends each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from loopd.config import RolloutSettings

Kind = Literal["instant", "canary", "blue-green"]
WHOLE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A share of the traffic, until the candidate has answered enough or the time is over."""

    percent: int
    seconds: float  #: at most
    requests: int  #: answered by the candidate in this stage: enough; 0: the time alone ends it


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Stages before the promotion; none: all traffic goes over at once and the old release leaves."""

    kind: Kind
    stages: tuple[Stage, ...] = ()

    def to_json(self) -> str:
        """Return what state.db keeps with a rollout."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """Read what to_json() wrote."""
        raw: dict[str, Any] = json.loads(text)  # Any: JSON that we wrote ourselves
        return cls(kind=raw["kind"], stages=tuple(Stage(**stage) for stage in raw["stages"]))


INSTANT = Policy(kind="instant")


def policy_of(settings: RolloutSettings) -> Policy:
    """Return the policy that the settings ask for.

    Blue-green is a stage of all traffic with the old release still loaded: going back is a flip.
    """
    match settings.policy:
        case "instant":
            return INSTANT
        case "canary":
            stages = tuple(Stage(percent=s.percent, seconds=s.seconds, requests=s.requests) for s in settings.canary)
            return Policy(kind="canary", stages=stages)
        case "blue-green":
            # Its time is what counts: a busy minute says less about leaks and slow poison than the whole of it.
            bake = Stage(percent=WHOLE, seconds=settings.bake_s, requests=0)
            return Policy(kind="blue-green", stages=(bake,))
