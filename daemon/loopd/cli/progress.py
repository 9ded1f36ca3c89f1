"""progress: owns watching a rollout until it ends, live on a terminal, line by line on a pipe."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from loopd.api.schema import RolloutView, StepView
from loopd.cli.exits import ExitCode, UnreachableError
from loopd.cli.follow import find_newest, follow
from loopd.cli.screen import Block, Cell, Mood, Screen
from loopd.cli.words import clock, span

if TYPE_CHECKING:
    from loopd.cli.client import Client

TICK_S = 0.5  # steps end without a ledger entry, so the rollout is asked for this often besides
PATIENCE_S = 300.0  # of a loopd that does not answer
SHORT = 12

_STEP_MOODS: dict[str, Mood] = {"planned": "off", "begun": "busy", "done": "good", "failed": "bad"}


def watch(client: Client, number: int, screen: Screen, *, as_json: bool = False) -> ExitCode:
    """Show a rollout until it ends; return how it ended. Raises UnreachableError after PATIENCE_S without loopd."""
    with closing(changes(client, number, screen)) as views:
        view = next(views)
        if as_json:
            screen.json(view, indent=None)
            for view in views:
                screen.json(view, indent=None)
        elif screen.fancy:
            with screen.live(lambda: draw(view, datetime.now(UTC))):
                for fresh in views:
                    view = fresh
        else:
            seen: set[tuple[str, str]] = set()
            screen.line(title(view))
            tell(view, seen, screen)
            for view in views:
                tell(view, seen, screen)
            screen.show([verdict(view)])
    return outcome(view)


def changes(client: Client, number: int, screen: Screen) -> Generator[RolloutView]:
    """Yield a rollout at once and whenever it has changed, until it has ended."""
    newest = find_newest(client)
    view = client.rollout(number)
    yield view
    if view.finished_at:
        return
    with closing(follow(client, newest, tick_s=TICK_S, say=screen.remark, patience_s=PATIENCE_S)) as wakes:
        for _ in wakes:
            try:
                fresh = client.rollout(number)
            except UnreachableError:
                continue  # the stream breaks, too: it says so, waits and in the end gives up
            if fresh != view:
                view = fresh
                yield view
            if view.finished_at:
                return


def find_rollout(client: Client, screen: Screen) -> int:
    """Return the number of the rollout under way; if there is none, wait for the next."""
    newest = find_newest(client)
    known = client.rollouts()
    if unfinished := [r.id for r in known if r.finished_at is None]:
        return min(unfinished)
    last = max((r.id for r in known), default=0)
    screen.remark("no rollout is under way; waiting for the next (Ctrl-C ends)")
    with closing(follow(client, newest, tick_s=TICK_S, say=screen.remark, patience_s=PATIENCE_S)) as wakes:
        for _ in wakes:
            try:
                fresh = [r.id for r in client.rollouts() if r.id > last]
            except UnreachableError:
                continue
            if fresh:
                return min(fresh)
    raise AssertionError("follow() ends by an error only")


def outcome(view: RolloutView) -> ExitCode:
    """Return the exit code of an ended rollout."""
    return ExitCode.OK if view.phase == "promoted" else ExitCode.FAILED


def title(view: RolloutView) -> str:
    """Name a rollout."""
    champion = f", in the place of {view.champion}" if view.champion else ""
    return f"{view.kind} {view.id}: {view.candidate_name} ({view.candidate}){champion}; {view.reason}"


def draw(view: RolloutView, now: datetime) -> Sequence[Block]:
    """Return the picture of a rollout: its name, each step, how it stands."""
    return [Cell(title(view), "busy" if view.finished_at is None else ""), *steps(view, now), verdict(view)]


def steps(view: RolloutView, now: datetime) -> list[Cell]:
    """Return a line for each step."""
    return [Cell(f"  {_step(step, now)}", _STEP_MOODS[step.state]) for step in view.steps]


def _step(step: StepView, now: datetime) -> str:
    took = span(((step.finished_at or now) - step.begun_at).total_seconds()) if step.begun_at else ""
    error = f": {step.error}" if step.error else ""
    what = f"  {step.detail}" if step.detail else ""
    return f"{step.step:<9} {step.state:<8} {took}{what}{error}".rstrip()


def tell(view: RolloutView, seen: set[tuple[str, str]], screen: Screen) -> None:
    """Write a line for each step's change that was not told yet; planned ones are no change."""
    for step in view.steps:
        # A step that ran twice after a restart is told twice: its beginning differs.
        key = (f"{step.step} {step.detail} {step.begun_at}", step.state)
        if step.state != "planned" and key not in seen:
            seen.add(key)
            at = step.finished_at or step.begun_at or view.created_at
            screen.line(f"{clock(at)}  {_step(step, at)}")


def verdict(view: RolloutView) -> Cell:
    """Say in words how a rollout stands or ended."""
    took = f" after {span((view.finished_at - view.created_at).total_seconds())}" if view.finished_at else ""
    kept = f"; {view.champion} serves as before" if view.champion else "; traffic is as before"
    match view.phase:
        case "promoted":
            return Cell(f"promoted: {view.candidate_name} ({view.candidate}) takes all traffic{took}", "good")
        case "rolled_back":
            return Cell(f"rolled back{took}: {view.reason}{kept}", "bad")
        case "superseded":
            return Cell(f"superseded{took}: {view.reason}{kept}", "off")
        case "aborting":
            return Cell(f"being turned back: {view.reason}{kept}", "bad")
        case "waiting":
            return Cell("waiting for its turn", "busy")
        case "active":
            return Cell("under way", "busy")
