"""knowledge: owns `loopctl knowledge`: documents that the agent may search."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from loopd.cli import complete
from loopd.cli.agent_views import GoneView
from loopd.cli.inputs import STDIO, confirm, read_document
from loopd.cli.screen import Cell, Sheet, open_screen
from loopd.cli.session import open_agent
from loopd.cli.words import ago, plain, size

app = typer.Typer(help="List, add, search and delete documents that the agent may search.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Shared = Annotated[bool, typer.Option("--shared", help="Of the documents that everybody's runs may search.")]

MOST_NAME = 200


def check_name(text: str) -> str:
    """Refuse what can be no document's name in an address."""
    if not text.strip() or "/" in text or text in (".", "..") or len(text) > MOST_NAME:
        raise typer.BadParameter(f"a document's name has 1 to {MOST_NAME} characters, none of them a slash")
    return text


@app.command("list")
def list_documents(*, shared: Shared = False, json: Json = False) -> None:
    """List loopctl's own documents, or with --shared everybody's."""
    screen, now = open_screen(), datetime.now(UTC)
    with open_agent() as agent:
        found = agent.documents(shared=shared)
    if json:
        screen.json(found)
    elif not found.documents:
        screen.line("no document: `loopctl knowledge add FILE` adds one")
    else:
        rows = tuple((Cell(d.name), Cell(size(d.size)), Cell(ago(d.created_at, now))) for d in found.documents)
        screen.show([Sheet(("DOCUMENT", "SIZE", "ADDED"), rows)])


@app.command()
def add(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A text in UTF-8; - reads it from standard input.")],
    *,
    name: Annotated[str | None, typer.Option("--name", help="What it is called; the file's name if left out.")] = None,
    shared: Shared = False,
    json: Json = False,
) -> None:
    """Add a document, in the place of the one of that name."""
    if name is None and file == STDIO:
        raise typer.BadParameter("a document from standard input needs a --name")
    title = check_name(name if name is not None else Path(file).name)
    screen, text = open_screen(), read_document(file)
    with open_agent() as agent:
        view = agent.add_document(title, text, shared=shared)
    if json:
        screen.json(view)
    else:
        screen.line(
            f"{view.name} ({size(view.size)}) can be searched by {'everybody' if shared else view.owner}", "good"
        )


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="Words.")],
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="At most so many passages.")] = 5,
    json: Json = False,
) -> None:
    """Find passages in loopctl's own documents and the shared ones, as the agent finds them."""
    screen = open_screen()
    with open_agent() as agent:
        found = agent.search_documents(query, limit=limit)
    if json:
        screen.json(found)
    elif not found.passages:
        screen.line("no passage fits")
    else:
        for passage in found.passages:
            screen.line(f"{passage.document}, part {passage.position + 1} (score {passage.score:.2f})")
            text = plain(passage.text, keep="\n\t") if screen.terminal else passage.text
            screen.write("".join(f"    {line}\n" for line in text.splitlines()))


@app.command()
def delete(
    name: Annotated[
        str, typer.Argument(help="The document's name.", callback=check_name, autocompletion=complete.documents)
    ],
    *,
    shared: Shared = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete a document."""
    screen = open_screen()
    confirm(screen, f"This deletes the {'shared ' if shared else ''}document {name!r} for good.", "yes", yes=yes)
    with open_agent() as agent:
        agent.delete_document(name, shared=shared)
    if json:
        screen.json(GoneView(removed=name))
    else:
        screen.line(f"{name} is deleted", "good")
