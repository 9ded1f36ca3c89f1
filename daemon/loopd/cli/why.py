"""why: owns `loopctl why`: how a service, release or file came to be as it is, in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated

import typer
from pydantic import BaseModel

from loopd.api.schema import EventView, ReleaseView, ServiceView, StatusView
from loopd.cli.events import about
from loopd.cli.exits import MissingError
from loopd.cli.follow import MOST_LOOKED_AT, find_last
from loopd.cli.screen import open_screen
from loopd.cli.session import open_client
from loopd.cli.words import ago, clock, count, scalar

_VERBS = {
    "candidate.ignored": "was passed over",
    "candidate.rejected": "was refused",
    "candidate.waits": "waits",
    "gpu.memory_kept": "has less memory than it should",
    "lease.expired": "was taken back",
    "release.added": "became a release",
    "release.baked": "was watched while it took traffic",
    "release.checked": "was asked the golden prompts",
    "release.collected": "was collected",
    "release.drain_expired": "was still busy when its time to drain was over",
    "release.known": "came in again",
    "release.pinned": "was pinned",
    "release.promoted": "was promoted",
    "release.unpinned": "may be collected again",
    "rollout.admitted": "was admitted",
    "rollout.failed": "has a rollout that failed",
    "rollout.promoted": "has a rollout that ended well",
    "rollout.requested": "is to be rolled out",
    "rollout.rolled_back": "has a rollout that was turned back",
    "rollout.started": "is being rolled out",
    "rollout.superseded": "has a rollout that another took the place of",
    "sandbox.exec": "ran a command",
    "unit.crash_loop": "is in a crash loop",
    "unit.failed": "could not be started",
    "unit.removed": "was removed",
    "unit.restarted": "was restarted",
    "unit.started": "was started",
    "unit.waits": "waits",
}


class Why(BaseModel):
    """The answer as JSON."""

    subject: str
    now: str
    entries: list[EventView]


def why(
    subject: Annotated[str, typer.Argument(help="A service, a release (name or id) or a file's name.")],
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="At most so many entries.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Say how a service, release or file is and what happened to it last, newest first."""
    screen = open_screen()
    with open_client() as client:
        status = client.status()
        releases = client.releases()
        release = find_release(subject, releases)
        names = {subject} | ({release.short, f"engine-{release.short}", release.id} if release else set())
        entries = find_last(client, about(names), limit)[::-1]
    present = condition(subject, release, status)
    if not entries and not present:
        raise MissingError(suggest(subject, status, releases))
    if json:
        screen.json(Why(subject=subject, now=present, entries=entries))
        return
    if present:
        screen.line(present)
    now = datetime.now(UTC)
    for entry in entries:
        screen.line(story(entry, now))
    if not entries:
        screen.line(f"nothing is written about it in the latest {MOST_LOOKED_AT} entries")


def find_release(text: str, releases: Iterable[ReleaseView]) -> ReleaseView | None:
    """Return the release of this name, else the first whose id or engine begins so."""
    known = list(releases)
    digits = text.removeprefix("engine-")
    named = (r for r in known if text == r.name)
    begun = (r for r in known if len(digits) >= 4 and r.id.startswith(digits))  # noqa: PLR2004 fewer fit too many
    return next(named, None) or next(begun, None)


def condition(subject: str, release: ReleaseView | None, status: StatusView) -> str:
    """Say how it is now; '' for what only the ledger knows."""
    for service in status.services:
        if service.name == subject:
            return _service(service)
    if release:
        has = f"{release.share_percent} % of the traffic" if release.share_percent else "no traffic"
        runs = f"container {release.container}" if release.container else "no container"
        return f"{release.name} ({release.short}) is {release.role}, with {has} and {runs}"
    return ""


def _service(service: ServiceView) -> str:
    how = "is ready" if service.ready else f"is not ready: {service.reason or service.state}"
    return f"{service.name} {how}; it was restarted {count(service.restarts, 'time', 'times')}"


def story(entry: EventView, now: datetime) -> str:
    """Return an entry as a sentence."""
    verb = _VERBS.get(entry.event, entry.event.partition(".")[2].replace("_", " ") or entry.event)
    told = [
        f"{key.replace('_', ' ')} {scalar(v)}" for key, v in entry.detail.items() if v is not None and v is not False
    ]
    rest = f" ({', '.join(told)})" if told else ""
    return f"{clock(entry.at)}, {ago(entry.at, now)}: {entry.subject} {verb}: {entry.cause}{rest}"


def suggest(subject: str, status: StatusView, releases: Iterable[ReleaseView]) -> str:
    """Return what to say about a name that nothing has."""
    known = [s.name for s in status.services] + [word for r in releases for word in (r.name, r.short)]
    near = difflib.get_close_matches(subject, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`loopctl status` and `loopctl releases list` show names"
    return f"nothing is known about {subject!r}: {hint}"
