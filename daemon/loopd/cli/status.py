"""status: owns `loopctl status`: the whole appliance on one screen, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, NoReturn

import typer

from loopd.api.schema import ReleaseView, ServiceView, StatusView
from loopd.cli.exits import ExitCode, UnreachableError
from loopd.cli.progress import steps, title
from loopd.cli.screen import Block, Cell, Mood, Screen, Sheet, open_screen
from loopd.cli.session import gateway_answers, gateway_url, open_client, read_settings
from loopd.cli.words import ago, clock, size, span

WATCH_S = 1.0

_STATE_MOODS: dict[str, Mood] = {"serving": "good", "degraded": "busy", "starting": "busy", "down": "bad"}
_ROLE_MOODS: dict[str, Mood] = {"champion": "good", "candidate": "busy", "draining": "busy"}


def status(
    *,
    json: Annotated[bool, typer.Option("--json", help="Write JSON; with --watch one object a line.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second, until Ctrl-C.")] = False,
) -> None:
    """Show how every service, release and rollout is.

    Exits 0 when the appliance serves, 1 when it is starting, degraded or down, 3 when loopd does not answer.
    """
    screen = open_screen()
    settings = read_settings()
    with open_client(settings) as client:
        try:
            view = client.status()
        except UnreachableError as error:
            answers = "are still answered" if gateway_answers(settings) else "are not answered either"
            raise UnreachableError(f"{error}. Requests to {gateway_url(settings)} {answers}") from error
        if watch and json:
            _watch_lines(client.status, view, screen, lambda fresh: screen.json(fresh, indent=None))
        if watch and not screen.fancy:
            _watch_lines(client.status, view, screen, lambda fresh: screen.show(dated(fresh)))
        if watch:
            _watch_live(client.status, view, screen)
    if json:
        screen.json(view)
    else:
        screen.show(picture(view, datetime.now(UTC)))
    raise typer.Exit(ExitCode.OK if view.state == "serving" else ExitCode.FAILED)


def _watch_live(ask: Callable[[], StatusView], view: StatusView, screen: Screen) -> NoReturn:
    trouble: list[Block] = []
    with screen.live(lambda: [*picture(view, datetime.now(UTC)), *trouble]):
        while True:
            time.sleep(WATCH_S)
            try:
                view, trouble = ask(), []
            except UnreachableError as error:
                trouble = [Cell(f"{error}. This is the last view; asking again", "bad")]


def _watch_lines(
    ask: Callable[[], StatusView], view: StatusView, screen: Screen, show: Callable[[StatusView], None]
) -> NoReturn:
    """Show a view only when it differs from the one before; a loopd that stops answering is said once."""
    show(view)
    answers = True
    while True:
        time.sleep(WATCH_S)
        try:
            fresh = ask()
        except UnreachableError as error:
            if answers:
                screen.remark(f"{error}. Asking again every {WATCH_S:g} s")
            answers = False
            continue
        if fresh != view or not answers:
            show(fresh)
        view, answers = fresh, True


def dated(view: StatusView) -> list[Block]:
    """Return the picture for a log: with the time of the look above and an empty line below."""
    now = datetime.now(UTC)
    return [Cell(clock(now)), *picture(view, now), Cell("")]


def picture(view: StatusView, now: datetime) -> list[Block]:
    """Return everything that `loopctl status` shows."""
    blocks: list[Block] = [
        Cell(f"{view.instance} is {view.state}" + (f": {view.reason}" if view.reason else ""), _STATE_MOODS[view.state])
    ]
    up = span((now - view.started_at).total_seconds())
    blocks += [
        Cell(f"requests: {view.public_url}   home: {view.home}   loopd {view.version}, up {up}"),
        Cell(""),
        services(view.services, now),
    ]
    if view.releases:
        blocks += [Cell(""), releases(view.releases)]
    if view.rollout:
        blocks += [Cell(""), Cell(title(view.rollout), "busy"), *steps(view.rollout, now)]
    pool = view.sandboxes
    held = f", in {pool.runtime}" if pool.runtime else ""
    blocks += [Cell(""), Cell(f"sandboxes: {pool.warm} warm, {pool.leased} leased, at most {pool.most}{held}")]
    return blocks


def services(views: Sequence[ServiceView], now: datetime) -> Sheet:
    """Return the table of services."""
    rows = [
        (
            Cell(service.name),
            condition(service),
            Cell(service.container or "-"),
            Cell(str(service.restarts)),
            Cell(_last_cause(service, now)),
        )
        for service in views
    ]
    return Sheet(("SERVICE", "STATE", "CONTAINER", "RESTARTS", "LAST CAUSE"), tuple(rows))


def condition(service: ServiceView) -> Cell:
    """Return a service's state as icon and word; ready is what counts, a running container alone is not."""
    if service.ready:
        return Cell("ready", "good")
    match service.state:
        case "running":
            return Cell("not ready", "busy")
        case "created":
            return Cell("starting", "busy")
        case "stopped":
            return Cell("stopped", "bad")
        case "absent":
            return Cell("absent", "off")


def _last_cause(service: ServiceView, now: datetime) -> str:
    if not service.last_restart_cause:
        return "-"
    when = f" ({ago(service.last_restart_at, now)})" if service.last_restart_at else ""
    return service.last_restart_cause + when


def releases(views: Sequence[ReleaseView]) -> Sheet:
    """Return the table of releases."""
    rows = [
        (
            Cell(release.short),
            Cell(release.name),
            Cell(release.role, _ROLE_MOODS.get(release.role, "off")),
            Cell(f"{release.share_percent} %"),
            Cell("-" if release.weight is None else str(release.weight)),
            Cell(str(release.sessions)),
            Cell(size(release.size_bytes)),
        )
        for release in views
    ]
    return Sheet(("RELEASE", "NAME", "ROLE", "SHARE", "WEIGHT", "SESSIONS", "SIZE"), tuple(rows))
