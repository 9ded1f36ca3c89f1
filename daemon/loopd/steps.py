"""steps: owns the closed set of steps a plan is made of. Each may run twice with the same end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Run the release's engine container until it answers."""

    release: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Bring the weights into memory under the public alias and generate one token."""

    release: str
    host: str
    instance: str | None  #: container it is meant for; None: the one that Start will make


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Ask the golden prompts."""

    release: str
    host: str
    instance: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """Set the traffic shares at the gateway."""

    shares: tuple[tuple[str, int], ...]  #: (release, whole percent), sorted
    host: str
    instance: str | None  #: container of the candidate that it attaches


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Make the release the champion and give it all traffic, in one flip."""

    release: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Wait until the release has no request in flight, or its deadline."""

    release: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """Take the release from the gateway and remove its container; its files stay for a rollback."""

    release: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclude:
    """Close the rollout's record."""

    phase: str
    host: str


Step = Start | Load | Check | Shift | Promote | Drain | Retire | Conclude


def kind(step: Step) -> str:
    """Return the step's name in the journal and on screens."""
    return type(step).__name__.lower()


def key(step: Step) -> str:
    """Return what makes two steps the same one: done once under this key, it need not run again."""
    match step:
        case Load(release=release, instance=instance) | Check(release=release, instance=instance):
            return f"{kind(step)}:{release}:{instance}"
        case Shift(shares=shares, instance=instance):
            return f"shift:{','.join(f'{release}={share}' for release, share in shares)}:{instance}"
        case Conclude(phase=phase):
            return f"conclude:{phase}"
        case _:
            return f"{kind(step)}:{step.release}"
