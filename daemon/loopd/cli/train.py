"""train: owns `loopctl train`: starting jobs of the trainer, listing, watching, ending and resuming them."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import ValidationError

from loopd.api.schema import JobEventView, JobList, JobView, TrainRequest
from loopd.cli import complete
from loopd.cli.exits import ExitCode, UnreachableError
from loopd.cli.follow import find_newest, follow
from loopd.cli.inputs import check_id
from loopd.cli.screen import Block, Cell, Mood, Screen, Sheet, open_screen
from loopd.cli.session import open_client
from loopd.cli.words import clock, plain, scalar, size, span

if TYPE_CHECKING:
    from loopd.cli.client import Client

app = typer.Typer(help="Train the model on your data: start jobs, watch, end and resume them.", no_args_is_help=True)

TICK_S = 1.0
PATIENCE_S = 300.0
BAR = 30  # characters

_MOODS: dict[str, Mood] = {"queued": "off", "running": "busy", "done": "good", "failed": "bad", "cancelled": "off"}

JobId = Annotated[
    str,
    typer.Argument(metavar="JOB", help="The id that the list shows.", callback=check_id, autocompletion=complete.jobs),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]


@app.command()
def start(  # noqa: PLR0913 each is an option of the command
    name: Annotated[str, typer.Argument(help="What comes of it is called so.")],
    data: Annotated[list[str], typer.Argument(help="JSONL files in training/data below the home directory.")],
    *,
    evaluate: Annotated[
        list[str] | None, typer.Option("--evaluate", help="Rows it is tried on, never trained.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The release to train; the one that serves.", autocompletion=complete.releases),
    ] = None,
    epochs: Annotated[float, typer.Option("--epochs", min=0.001, max=1000, help="Passes over the data.")] = 1.0,
    learning_rate: Annotated[float, typer.Option("--learning-rate", min=1e-9, max=1, help="The highest one.")] = 1e-3,
    rank: Annotated[int, typer.Option("--rank", min=1, max=512, help="Of the adapter.")] = 16,
    alpha: Annotated[float, typer.Option("--alpha", min=0.001, max=4096, help="Of the adapter.")] = 32.0,
    tokens: Annotated[int, typer.Option("--tokens", min=64, max=131_072, help="Of one packed sequence.")] = 1024,
    batch: Annotated[int, typer.Option("--batch", min=1, max=1024, help="Sequences at a time.")] = 1,
    accumulation: Annotated[int, typer.Option("--accumulation", min=1, max=1024, help="Batches of one step.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="The same seed, the same model.")] = 1,
    whole: Annotated[bool, typer.Option("--model", help="Hand over a merged model, not an adapter.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it until it ends.")] = False,
    json: Json = False,
) -> None:
    """Train on data sets; what comes of it goes to the model directory and becomes a release."""
    screen = open_screen()
    made: Literal["model", "adapter"] = "model" if whole else "adapter"
    asked = _asked(
        name=name,
        train=data,
        evaluate=evaluate or [],
        base=base,
        hand_over=made,
        r=rank,
        alpha=alpha,
        tokens=tokens,
        batch=batch,
        accumulation=accumulation,
        epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
    )
    with open_client() as client:
        job = client.train(asked)
        if watch:
            raise typer.Exit(_watch(client, job.id, screen, as_json=json))
    if json:
        screen.json(job)
    else:
        screen.line(f"{job.id} is {job.status}", "good")
        screen.line(f"`loopctl train watch {job.id}` shows it")


@app.command("list")
def list_jobs(*, json: Json = False) -> None:
    """List the newest jobs."""
    screen = open_screen()
    with open_client() as client:
        views = client.jobs()
    if json:
        screen.json(JobList(jobs=views))
    elif views:
        screen.show([sheet(views)])
    else:
        screen.line("no job yet: `loopctl train start NAME FILE` trains on a file in training/data")


@app.command()
def show(job: JobId, *, json: Json = False) -> None:
    """Show one job and what it told last."""
    screen = open_screen()
    with open_client() as client:
        told = client.job(job)
    if json:
        screen.json(told)
    else:
        screen.show(draw(told.job, told.events, datetime.now(UTC)))


@app.command("watch")
def watch_job(
    job: JobId,
    *,
    json: Annotated[bool, typer.Option("--json", help="Write each event on a line.")] = False,
) -> None:
    """Show a job live until it ends. Exits 0 when it is done, 1 when it failed or was cancelled."""
    screen = open_screen()
    with open_client() as client:
        code = _watch(client, job, screen, as_json=json)
    raise typer.Exit(code)


@app.command()
def cancel(job: JobId, *, json: Json = False) -> None:
    """End a job; it writes a checkpoint to go on from."""
    screen = open_screen()
    with open_client() as client:
        view = client.cancel_job(job)
    if json:
        screen.json(view)
    else:
        screen.line(f"{view.id} {'is cancelled' if view.status == 'cancelled' else 'is being ended'}", "off")


@app.command()
def resume(job: JobId, *, json: Json = False) -> None:
    """Have a job that failed or was cancelled go on from its last checkpoint."""
    screen = open_screen()
    with open_client() as client:
        view = client.resume_job(job)
    if json:
        screen.json(view)
    else:
        screen.line(f"{view.id} is {view.status}; `loopctl train watch {view.id}` shows it", "good")


def _asked(**given: Any) -> TrainRequest:  # Any: what the options gave
    try:
        return TrainRequest(**given)
    except ValidationError as error:
        fault = error.errors()[0]
        raise typer.BadParameter(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from error


def _watch(client: Client, job_id: str, screen: Screen, *, as_json: bool) -> ExitCode:
    with closing(changes(client, job_id, screen)) as told:
        view, events = next(told)
        known = list(events)
        if as_json or not screen.fancy:
            _tell(events, screen, as_json=as_json)
            for view, events in told:  # noqa: B007 the last one is what is judged
                _tell(events, screen, as_json=as_json)
        else:
            with screen.live(lambda: draw(view, known, datetime.now(UTC))):
                for fresh, events in told:
                    view = fresh
                    known += events
    if not as_json:
        screen.show([verdict(view)])
    return ExitCode.OK if view.status == "done" else ExitCode.FAILED


def changes(client: Client, job_id: str, screen: Screen) -> Generator[tuple[JobView, Sequence[JobEventView]]]:
    """Yield a job and what it told since the last time, until it has ended."""
    newest = find_newest(client)
    told = client.job(job_id)
    last = told.events[-1].number if told.events else 0
    yield told.job, told.events
    if told.job.ended_at:
        return
    with closing(follow(client, newest, tick_s=TICK_S, say=screen.remark, patience_s=PATIENCE_S)) as wakes:
        for _ in wakes:
            try:
                told = client.job(job_id, after=last)
            except UnreachableError:
                continue  # the stream breaks, too: it says so, waits and in the end gives up
            last = told.events[-1].number if told.events else last
            yield told.job, told.events
            if told.job.ended_at and not told.events:
                return


def sheet(views: Sequence[JobView]) -> Sheet:
    """Return the table of jobs."""
    rows = tuple(
        (
            Cell(view.id),
            Cell(view.kind),
            Cell(view.name),
            Cell(view.status, _MOODS[view.status]),
            Cell(clock(view.created_at)),
            Cell(span((view.ended_at - view.started_at).total_seconds()) if view.ended_at and view.started_at else "-"),
            Cell(plain(view.reason or view.cause)),
        )
        for view in views
    )
    return Sheet(("JOB", "KIND", "NAME", "STATUS", "ASKED FOR AT", "TOOK", "WHY"), rows)


def draw(view: JobView, events: Sequence[JobEventView], now: datetime) -> list[Block]:
    """Return the picture of a job: its name, how far it is, its last figures."""
    blocks: list[Block] = [Cell(f"{view.kind} {view.name} ({view.id}); {plain(view.cause)}", _MOODS[view.status])]
    phase = next((event.body.get("phase") for event in reversed(events) if event.body.get("event") == "phase"), None)
    step = next((event.body for event in reversed(events) if event.body.get("event") == "step"), None)
    if view.status == "running" and view.started_at:
        at = span((now - view.started_at).total_seconds())
        blocks.append(
            Cell(f"  {plain(str(phase or 'starting'))} for {at}, start {view.starts} of its container", "busy")
        )
    if step is not None:
        blocks.append(Cell(f"  {bar(_number(step.get('step')), _number(step.get('steps')))}", "busy"))
        blocks.append(Cell(f"  {figures_of(step)}"))
    if view.ended_at:
        blocks += [Cell(f"  {plain(key)}: {plain(scalar(value))}") for key, value in sorted(view.figures.items())]
        blocks.append(verdict(view))
    return blocks


def bar(done: float, of: float) -> str:
    """Return a progress bar in characters that every terminal has."""
    part = min(1.0, max(0.0, done / of)) if of > 0 else 0.0
    full = round(part * BAR)
    return f"[{'#' * full}{'.' * (BAR - full)}] {done:.0f} of {of:.0f} steps"


def figures_of(step: Mapping[str, object]) -> str:
    """Return a step's figures on one line."""
    said = [f"loss {_number(step.get('loss')):.4f}", f"{_number(step.get('tokens_per_s')):.0f} tokens/s"]
    if memory := _number(step.get("memory_bytes")):
        said.append(size(int(memory)))
    if heat := _number(step.get("temperature_c")):
        said.append(f"{heat:.0f} °C")
    return ", ".join(said)


def verdict(view: JobView) -> Cell:
    """Say in words how a job stands or ended."""
    match view.status:
        case "done":
            return Cell("done: what it made is in the model directory; `loopctl rollouts list` shows its way", "good")
        case "failed":
            return Cell(f"failed: {plain(view.reason)} [{plain(view.code)}]", "bad")
        case "cancelled":
            return Cell(f"cancelled: {plain(view.reason).rstrip('.')}; `loopctl train resume {view.id}` goes on", "off")
        case "queued":
            return Cell("waiting for its turn", "off")
        case _:
            return Cell("being ended" if view.stopping else "running", "busy")


def _tell(events: Sequence[JobEventView], screen: Screen, *, as_json: bool) -> None:
    for event in events:
        if as_json:
            screen.json(event, indent=None)
        elif event.body.get("event") == "step":
            step = event.body
            place = f"step {_number(step.get('step')):.0f} of {_number(step.get('steps')):.0f}"
            screen.line(f"{place}: {figures_of(step)}")
        else:
            more = ", ".join(f"{k} {v}" for k, v in event.body.items() if k not in {"t", "event"})
            screen.line(plain(f"{event.body.get('event')}: {more}" if more else str(event.body.get("event"))))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
