"""audit: owns `loopctl audit`: who did what, and whether that record is as it was written."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from loopd.api.schema import AuditEntryView, AuditList
from loopd.cli.exits import ExitCode
from loopd.cli.screen import Cell, Sheet, open_screen
from loopd.cli.session import open_client
from loopd.cli.words import clock, plain, scalar

PAGE = 500

app = typer.Typer(help="Read the audit trail, verify that nobody changed it.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]


@app.command("list")
def list_audit(
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=PAGE, help="At most so many.")] = 50,
    user: Annotated[str, typer.Option("--user", "-u", help="Only what this user did, from the oldest kept on.")] = "",
    after: Annotated[int, typer.Option("--after", min=0, max=2**53, help="With --user: after this number.")] = 0,
    json: Json = False,
) -> None:
    """List the newest entries, oldest first."""
    screen = open_screen()
    with open_client() as client:
        found = client.audit_of(user, after=after, limit=limit) if user else client.audit(limit=limit)
    if json:
        screen.json(AuditList(entries=found.entries, next_after=found.next_after))
    elif found.entries:
        screen.show([_sheet(found.entries)])
    else:
        screen.line("nothing yet")


@app.command()
def verify(*, json: Json = False) -> None:
    """Look through the whole trail and the ledger; exits 1 when either was changed."""
    screen = open_screen()
    with open_client() as client:
        found = client.verify_audit()
    if json:
        screen.json(found)
    elif found.ok:
        screen.line(f"{found.entries} entries are as they were written, and so is the ledger", "good")
    else:
        if found.first_bad is not None:
            screen.line(f"entry {found.first_bad} of the audit trail: {found.why}", "bad")
        if found.ledger_first_bad is not None:
            screen.line(f"entry {found.ledger_first_bad} of the ledger was changed after it was written", "bad")
        screen.line("keep copies of audit.db and state.db before anything else is done; docs/security.md says more")
    raise typer.Exit(ExitCode.OK if found.ok else ExitCode.FAILED)


def _sheet(entries: list[AuditEntryView]) -> Sheet:
    rows = [
        (
            Cell(str(e.seq)),
            Cell(clock(datetime.fromisoformat(e.at))),
            Cell(e.user or "-"),
            Cell(e.event),
            Cell(plain(e.subject)),
            Cell(" ".join(f"{key}={scalar(value)}" for key, value in e.detail.items() if value is not None)),
        )
        for e in entries
    ]
    return Sheet(("SEQ", "AT", "USER", "EVENT", "SUBJECT", "DETAIL"), tuple(rows))
