"""doctor: owns `loopctl doctor`: everything about this host that serving depends on, looked at once, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import BaseModel

from loopd.cli.exits import ExitCode
from loopd.cli.screen import Cell, Mood, Sheet, open_screen
from loopd.cli.session import read_settings
from loopd.cli.words import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loopd.cli.doctor_rules import Finding

_MOODS: dict[str, Mood] = {"ok": "good", "warn": "busy", "fail": "bad", "skip": "off"}


class FindingView(BaseModel):
    """One check as JSON."""

    name: str
    verdict: Literal["ok", "warn", "fail", "skip"]
    found: str
    advice: str


class DoctorView(BaseModel):
    """All checks as JSON."""

    healthy: bool
    findings: list[FindingView]


def doctor(*, json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False) -> None:
    """Look at host, Docker, disk, GPU, clock, ports, permissions, state and backups, and say what to do.

    Works without loopd and without Docker, and changes nothing. Exits 0 when nothing fails, 1 otherwise.
    """
    from loopd.cli.doctor_look import look  # noqa: PLC0415 takes longer than --help may
    from loopd.cli.doctor_rules import examine  # noqa: PLC0415 as above
    from loopd.cli.host_commands import SystemCommands  # noqa: PLC0415 as above
    from loopd.docker_engine import Connection  # noqa: PLC0415 as above
    from loopd.docker_images import DockerImages  # noqa: PLC0415 as above
    from loopd.host import Places  # noqa: PLC0415 as above

    screen = open_screen()
    settings = read_settings()
    connection = Connection(settings.docker_host, settings.instance)
    places = Places(repository=Path("/"))  # no checkout is looked at, so that none is needed
    findings = examine(look(settings, places, SystemCommands(), lambda: DockerImages(connection)))
    healthy = all(finding.verdict != "fail" for finding in findings)
    if json:
        views = [FindingView.model_validate(finding, from_attributes=True) for finding in findings]
        screen.json(DoctorView(healthy=healthy, findings=views))
    else:
        screen.show([sheet(findings), Cell(summary(findings), "good" if healthy else "bad")])
    raise typer.Exit(ExitCode.OK if healthy else ExitCode.FAILED)


def sheet(findings: Sequence[Finding]) -> Sheet:
    """Return the table."""
    rows = [
        (Cell(one.name), Cell(one.verdict, _MOODS[one.verdict]), Cell(one.found), Cell(one.advice)) for one in findings
    ]
    return Sheet(("CHECK", "VERDICT", "FOUND", "WHAT TO DO"), tuple(rows))


def summary(findings: Sequence[Finding]) -> str:
    """Return the last line."""
    failed = sum(one.verdict == "fail" for one in findings)
    warned = sum(one.verdict == "warn" for one in findings)
    if failed:
        return f"{count(failed, 'check fails', 'checks fail')}, {count(warned, 'warning', 'warnings')}"
    return f"nothing fails, {count(warned, 'warning', 'warnings')}"
