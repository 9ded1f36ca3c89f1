"""data: owns `loopctl data`: what the trainer can read: listed, copied in, taken from the agent, curated."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ValidationError

from loopd.api.schema import CurateRequest, SourceRequest
from loopd.cli.inputs import reading, writing
from loopd.cli.screen import Cell, Sheet, open_screen
from loopd.cli.session import open_agent, open_client
from loopd.cli.words import clock, count, size

app = typer.Typer(help="See and prepare what the model is trained on.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]

EXPORTED = "interactions.jsonl"


class AddedView(BaseModel):
    """A file that was put where the trainer reads, as JSON."""

    path: str
    rows: int | None = None
    size_bytes: int


@app.command("list")
def list_data(*, json: Json = False) -> None:
    """List the files that the trainer can read."""
    screen = open_screen()
    with open_client() as client:
        found = client.data()
    if json:
        screen.json(found)
    elif found.files:
        rows = tuple((Cell(one.path), Cell(size(one.size_bytes)), Cell(clock(one.changed_at))) for one in found.files)
        screen.show([Sheet(("FILE", "SIZE", "CHANGED AT"), rows)])
    else:
        screen.line(f"nothing yet: `loopctl data add FILE` copies one into {found.folder}")


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="JSONL, JSON lines packed with gzip, or Parquet.")],
    *,
    name: Annotated[str | None, typer.Option("--name", help="Called so there; as it is called, if left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the one of that name.")] = False,
    json: Json = False,
) -> None:
    """Copy a file to where the trainer reads; run it as root on the host."""
    screen = open_screen()
    kept = _source(name or file.name).path
    with open_client() as client:
        folder = Path(client.data().folder)
    with reading(file) as source, writing(folder / kept, force=force) as draft:
        shutil.copyfileobj(source, draft)
    added = _opened(folder / kept)
    if json:
        screen.json(AddedView(path=kept, size_bytes=added))
    else:
        screen.line(f"{kept} has {size(added)}; `loopctl data curate` makes a data set of it", "good")


@app.command()
def export(
    *,
    name: Annotated[str, typer.Option("--name", help="The file's name there.")] = EXPORTED,
    json: Json = False,
) -> None:
    """Write the runs that users agreed to, and what was said of them, to where the trainer reads; as root."""
    screen = open_screen()
    kept = _source(name).path
    with open_client() as client:
        folder = Path(client.data().folder)
    rows = last = 0
    with open_agent() as agent, writing(folder / kept, force=True) as draft:
        while page := agent.interactions(after=last).interactions:
            draft.writelines(one.model_dump_json().encode() + b"\n" for one in page)
            rows += len(page)
            last = page[-1].number
    written = _opened(folder / kept)
    if json:
        screen.json(AddedView(path=kept, rows=rows, size_bytes=written))
    else:
        screen.line(f"{count(rows, 'run', 'runs')} of those who agreed are in {kept}", "good" if rows else "off")


@app.command()
def curate(  # noqa: PLR0913 each is an option of the command
    name: Annotated[str, typer.Argument(help="The data set is called so: a folder of this name.")],
    sources: Annotated[list[str] | None, typer.Argument(help="Files of `loopctl data list`.")] = None,
    *,
    synthetic: Annotated[int, typer.Option("--synthetic", min=0, help="So many rows made up over the tools.")] = 0,
    held_out: Annotated[int, typer.Option("--held-out", min=0, help="More of them, of other wordings and tools.")] = 0,
    total: Annotated[int | None, typer.Option("--total", min=1, help="At most so many training rows.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed, the same data set.")] = 0,
    json: Json = False,
) -> None:
    """Make a data set: one form, no duplicates, no leaks between its splits, and counts of what was left out."""
    screen = open_screen()
    try:
        asked = CurateRequest(
            name=name,
            sources=[_source(path) for path in sources or []],
            synthetic=synthetic,
            synthetic_held_out=held_out,
            total=total,
            seed=seed,
        )
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"]) from error
    with open_client() as client:
        job = client.curate(asked)
    if json:
        screen.json(job)
    else:
        screen.line(f"{job.id} is {job.status}; `loopctl train watch {job.id}` shows it", "good")


def _opened(path: Path) -> int:
    """Let the trainer's own user read a file, and return its bytes."""
    path.chmod(0o644)
    return path.stat().st_size


def _source(path: str) -> SourceRequest:
    try:
        return SourceRequest(path=path)
    except ValidationError as error:
        raise typer.BadParameter(
            f"{path}: a file of `loopctl data list`, such as rows.jsonl or mine/train.jsonl"
        ) from error
