"""people: owns `loopctl people`: a copy of all that the agent keeps about somebody, and its erasure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from loopd.cli import complete
from loopd.cli.agent_views import SavedView
from loopd.cli.inputs import confirm, writing
from loopd.cli.screen import Cell, Sheet, open_screen
from loopd.cli.session import open_agent
from loopd.cli.tokens import check_name
from loopd.cli.words import count, size

app = typer.Typer(help="Give out or erase what the agent keeps about a user.", no_args_is_help=True)

User = Annotated[
    str, typer.Argument(metavar="USER", help="The user's name.", callback=check_name, autocompletion=complete.users)
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]


@app.command()
def export(
    user: User,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Standard output if left out.")] = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write the file's name and size as JSON.")] = False,
) -> None:
    """Write all that the agent keeps about a user, one JSON object a line: conversations, memories, documents, runs.

    The files of conversations come last, as pieces of tar archives in base64; `loopctl threads export` gives one whole.
    """
    screen = open_screen()
    if file is None:
        with open_agent() as agent:
            agent.export_person(user, sys.stdout.buffer)
        sys.stdout.flush()
        return
    with writing(file, force=force) as sink, open_agent() as agent:
        written = agent.export_person(user, sink)
    if json:
        screen.json(SavedView(file=str(file), size=written))
    else:
        screen.line(f"{size(written)} about {user} are in {file}, which only you can read", "good")


@app.command()
def erase(
    user: User,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Erase all that the agent keeps about a user, cancelling what runs; backups keep theirs until they rotate out.

    The login stays: `loopctl user remove` takes that away. The audit trail keeps that it was erased.
    """
    screen = open_screen()
    question = f"This erases every conversation, file, memory, document and run of {user} for good."
    confirm(screen, question, user, yes=yes)
    with open_agent() as agent:
        erased = agent.erase_person(user)
    if json:
        screen.json(erased)
        return
    total = sum(erased.rows.values())
    screen.line(f"{count(total, 'row', 'rows')} of {user} {'is' if total == 1 else 'are'} erased", "good")
    if erased.rows:
        rows = tuple((Cell(table), Cell(str(many))) for table, many in sorted(erased.rows.items()))
        screen.show([Sheet(("TABLE", "ROWS"), rows)])
