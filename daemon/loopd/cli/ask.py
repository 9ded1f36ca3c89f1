"""ask: owns `loopctl ask`: one question to the agent through the gateway, the answer as it is written."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loopd.cli import complete
from loopd.cli.exits import ExitCode
from loopd.cli.inputs import check_thread, read_schema, read_text
from loopd.cli.run_follow import Place, Run, follow
from loopd.cli.run_screen import AnswerView, ending, show, structured
from loopd.cli.screen import Screen, open_screen
from loopd.cli.session import open_agent, read_settings, resume_run, start_run
from loopd.errors import LoopdError

if TYPE_CHECKING:
    from loopd.config import Settings

NEW = "new"


def check_new_thread(text: str | None) -> str | None:
    """Refuse what is neither a thread's id nor ``new``."""
    return text if text in (None, NEW) else check_thread(text)


def ask(  # noqa: PLR0913 each is an option
    instruction: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    *,
    system: Annotated[str | None, typer.Option("--system", help="Instructions that stand above the question.")] = None,
    thread: Annotated[
        str | None,
        typer.Option(
            "--thread",
            metavar="ID",
            callback=check_new_thread,
            autocompletion=complete.threads,
            help='Go on in this conversation; "new" begins one and writes its id to standard error.',
        ),
    ] = None,
    tool: Annotated[
        list[str] | None, typer.Option("--tool", metavar="NAME", help="Let the model call this tool; may be repeated.")
    ] = None,
    call: Annotated[str | None, typer.Option("--call", metavar="NAME", help="Make the model call this tool.")] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", metavar="PATTERN", help="Let its tools reach this host, such as *.example.org; may be repeated."
        ),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option("--schema", metavar="FILE", help="Answer with JSON that fits the JSON schema in this file."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Write the run's id and leave; the run goes on.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Write the whole answer as JSON, at its end.")] = False,
) -> None:
    """Ask the agent; the answer streams to standard output as it is written.

    A connection that breaks is taken up again. Ctrl-C cancels the run on the server, too.
    """
    screen, question = open_screen(), read_text(instruction, "question")
    asked: dict[str, object] = {
        "instruction": question,
        "stream": not background,
        "background": background,
        "system": system,
        "tools": tool,
        "tool_choice": call,
        "hosts": host,
        "output_schema": read_schema(schema) if schema else None,
        "max_output_tokens": max_tokens,
    }
    settings = read_settings()
    asked["thread_id"] = find_thread(settings, thread, screen)
    body = jsonlib.dumps({key: value for key, value in asked.items() if value}).encode()
    if background:
        leave_running(settings, body, screen, json=json)
        return
    run, place = Run(), Place()
    # Each connection has a token of its own: a run may outlive one.
    begin, resume = partial(start_run, settings, body, place.name), partial(resume_run, settings)
    following = follow(begin, resume, place, screen.remark)
    with cancelling(settings, place, screen), closing(following) as messages:
        show(run, messages, screen, text=not json and not schema)
    if json:
        screen.json(AnswerView(text="".join(run.text), tools=run.tools, run=run.ended or {}))
    elif schema and run.status == "completed":
        screen.write(structured(run, terminal=screen.terminal))
    else:
        screen.write(ending(run, terminal=screen.terminal))
    run.check()


def find_thread(settings: Settings, thread: str | None, screen: Screen) -> str | None:
    """Return the thread's id; begins one for ``new``."""
    if thread != NEW:
        return thread
    with open_agent(settings) as agent:
        made = agent.new_thread(None).thread_id
    screen.remark(f"thread {made}")
    return made


def leave_running(settings: Settings, body: bytes, screen: Screen, *, json: bool) -> None:
    """Start a run that goes on by itself and write its id."""
    with open_agent(settings) as agent:
        view = agent.start(body)
    if json:
        screen.json(view)
    else:
        screen.line(view.run_id)
        screen.remark(f"it goes on by itself: `loopctl runs watch {view.run_id}` follows it, `runs cancel` ends it")


@contextmanager
def cancelling(settings: Settings, place: Place, screen: Screen) -> Iterator[None]:
    """Have Ctrl-C end the run on the server, and loopctl with 130."""
    try:
        yield
    except KeyboardInterrupt:
        screen.remark("" if screen.terminal else "stopped")
        if not place.run_id:
            screen.remark("the agent had not said the run's id yet; it ends the run itself, since nobody follows it")
        else:
            try:
                with open_agent(settings) as agent:
                    agent.cancel(place.run_id)
                screen.remark(f"{place.run_id} was cancelled; nothing of it runs on")
            except LoopdError as error:
                screen.remark(f"{place.run_id} could not be cancelled: {error}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
