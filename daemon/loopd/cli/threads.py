"""threads: owns `loopctl threads`: conversations with the agent, their messages and their files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from loopd.cli import complete
from loopd.cli.agent_views import GoneView, SavedView, ThreadView, TranscriptView
from loopd.cli.inputs import check_thread, confirm, reading, writing
from loopd.cli.messages import sentences
from loopd.cli.screen import Cell, Sheet, open_screen
from loopd.cli.session import open_agent
from loopd.cli.words import ago, clock, plain, size

app = typer.Typer(
    help="List conversations, begin, read, rename and delete one, take its files out and in.", no_args_is_help=True
)

ThreadId = Annotated[
    str, typer.Argument(metavar="ID", help="The thread's id.", callback=check_thread, autocompletion=complete.threads)
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=200, help="At most so many.")]


@app.command("list")
def list_threads(
    *,
    before: Annotated[
        str | None,
        typer.Option("--before", metavar="ID", help="Those last used before it.", autocompletion=complete.threads),
    ] = None,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """List conversations, the last used first."""
    screen = open_screen()
    with open_agent() as agent:
        found = agent.threads(before=check_thread(before) if before else None, limit=limit)
    if json:
        screen.json(found)
    elif found.threads:
        screen.show([sheet(found.threads)])
    else:
        screen.line("no thread: `loopctl ask QUESTION --thread new` begins one")


@app.command()
def new(title: Annotated[str | None, typer.Argument(help="What it is about.")] = None, *, json: Json = False) -> None:
    """Begin a conversation and write its id."""
    screen = open_screen()
    with open_agent() as agent:
        view = agent.new_thread(title)
    if json:
        screen.json(view)
    else:
        screen.line(view.thread_id)


@app.command()
def show(
    thread_id: ThreadId,
    *,
    dropped: Annotated[
        bool,
        typer.Option("--dropped", help="What was compressed, which the model does not see any more; newest first."),
    ] = False,
    query: Annotated[
        str | None, typer.Option("--query", metavar="WORDS", help="Of that, what fits these words; implies --dropped.")
    ] = None,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """Show a conversation's latest messages, as the model still sees them."""
    screen = open_screen()
    with open_agent() as agent:
        thread = agent.thread(thread_id)
        found = agent.messages(thread_id, dropped=dropped or query is not None, query=query, limit=limit)
    if json:
        screen.json(TranscriptView(thread=thread, messages=found.messages))
        return
    screen.line(f"{thread.thread_id}  {thread.title or 'without a title'}  begun {clock(thread.created_at)}")
    if not found.messages:
        screen.line("nothing of it was dropped" if dropped or query else "no message yet")
    for view in found.messages:
        for said in sentences(view.message):
            text = f"{view.seq:>4}  {said}"
            screen.write((plain(text, keep="\n\t") if screen.terminal else text) + "\n")


@app.command()
def rename(
    thread_id: ThreadId, title: Annotated[str, typer.Argument(help="Its title.")], *, json: Json = False
) -> None:
    """Give a conversation another title."""
    screen = open_screen()
    with open_agent() as agent:
        view = agent.rename_thread(thread_id, title)
    if json:
        screen.json(view)
    else:
        screen.line(f"{thread_id} is now {view.title!r}", "good")


@app.command()
def delete(
    thread_id: ThreadId,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete a conversation with its messages and files."""
    screen = open_screen()
    confirm(screen, f"This deletes {thread_id} with its messages and files for good.", "yes", yes=yes)
    with open_agent() as agent:
        agent.delete_thread(thread_id)
    if json:
        screen.json(GoneView(removed=thread_id))
    else:
        screen.line(f"{thread_id} is deleted", "good")


@app.command()
def export(
    thread_id: ThreadId,
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="Where to write the tar archive.")],
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
    json: Json = False,
) -> None:
    """Write the files of a conversation's workspace into a tar archive, as its last run left them."""
    screen = open_screen()
    with writing(file, force=force) as sink, open_agent() as agent:
        count = agent.export_thread(thread_id, sink)
    if json:
        screen.json(SavedView(file=str(file), size=count))
    else:
        screen.line(f"{size(count)} are in {file}", "good")


@app.command("import")
def import_files(
    thread_id: ThreadId,
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="A tar archive, not compressed.")],
    *,
    json: Json = False,
) -> None:
    """Put a tar archive in the place of a conversation's files; its next run finds them."""
    screen = open_screen()
    with reading(file) as source:
        count = file.stat().st_size
        with open_agent() as agent:
            agent.import_thread(thread_id, source)
    if json:
        screen.json(SavedView(file=str(file), size=count))
    else:
        screen.line(f"{thread_id} has the files of {file}", "good")


def sheet(views: list[ThreadView]) -> Sheet:
    """Return the table of conversations."""
    now = datetime.now(UTC)
    rows = [
        (Cell(view.thread_id), Cell(ago(view.updated_at, now)), Cell(clock(view.created_at)), Cell(view.title or "-"))
        for view in views
    ]
    return Sheet(("THREAD", "LAST USED", "BEGUN", "TITLE"), tuple(rows))
