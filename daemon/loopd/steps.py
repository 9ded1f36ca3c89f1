"""steps: owns the closed set of steps a plan is made of. Each may run twice with the same end."""

from __future__ import annotations

from dataclasses import dataclass

from loopd.release import SHORT


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Decide whether the candidate fits beside what serves, or instead of it, or not at all."""

    release: str
    host: str


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

    shares: tuple[tuple[str, int], ...]  #: (release, whole percent), sorted; none: requests are held at the gateway
    host: str
    attach: str | None = None  #: release that the gateway must find up before the step is done
    instance: str | None = None  #: its container


@dataclass(frozen=True, slots=True, kw_only=True)
class Bake:
    """Watch the candidate while it takes its share, and compare it with the champion."""

    release: str
    champion: str
    percent: int
    seconds: float  #: at most
    requests: int  #: answered by the candidate: enough; 0: the time alone ends it
    host: str
    instance: str | None


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
class Vacate:
    """Remove the champion's container, so that the candidate has its room; the champion stays the champion."""

    release: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclude:
    """Close the rollout's record."""

    phase: str
    host: str


Step = Admit | Start | Load | Check | Shift | Bake | Promote | Drain | Retire | Vacate | Conclude


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
        case Bake(release=release, percent=percent, instance=instance):
            return f"bake:{release}:{percent}:{instance}"
        case Conclude(phase=phase):
            return f"conclude:{phase}"
        case _:
            return f"{kind(step)}:{step.release}"


def detail(step_key: str) -> str:
    """Say in words what a step is about besides its kind, from its key; '' for what the kind says."""
    name, _, rest = step_key.partition(":")
    match name:
        case "shift":
            shares = [pair.split("=") for pair in rest.rpartition(":")[0].split(",") if pair]
            return ", ".join(f"{release[:SHORT]} {share} %" for release, share in shares) or "requests are held"
        case "bake":
            return f"at {rest.split(':')[1]} %"
        case "drain" | "retire" | "vacate":
            return rest[:SHORT]
        case _:
            return ""
