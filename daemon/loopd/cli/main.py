"""main: owns the command line: which commands there are, and how every error ends."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated

import typer
from typer.core import TyperGroup

from loopd.cli import (
    ask,
    audit,
    backup,
    data,
    doctor,
    events,
    execute,
    feedback,
    knowledge,
    mcp,
    memory,
    people,
    quarantine,
    releases,
    rollouts,
    runs,
    settings,
    status,
    threads,
    tokens,
    tools,
    train,
    up,
    users,
    why,
)
from loopd.cli.exits import ExitCode, code_word, exit_code
from loopd.cli.session import own_version
from loopd.cli.words import plain
from loopd.errors import LoopdError


class Guarded(TyperGroup):
    """The commands; an error that was raised on purpose becomes a message and an exit code, never a traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # the supertype's Context is private
        """Run the command."""
        try:
            return super().invoke(ctx)
        except LoopdError as error:
            sys.stdout.flush()
            text = plain(str(error), keep="\n")
            sys.stderr.write(f"error: {text} [{code_word(error)}]\n")
            raise typer.Exit(exit_code(error)) from error


app = typer.Typer(
    cls=Guarded,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Ask, watch and steer the appliance on this host.",
    epilog="Exit codes and examples: docs/loopctl.md",
)


def _version(asked: bool) -> None:  # noqa: FBT001 typer calls it so
    if asked:
        sys.stdout.write(f"loopctl {own_version()}\n")
        raise typer.Exit


@app.callback()
def root(
    *,
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show loopctl's version.")
    ] = False,
) -> None:
    """Ask, watch and steer the appliance on this host."""


app.command("status")(status.status)
app.command("ask")(ask.ask)
app.add_typer(runs.app, name="runs")
app.command("feedback")(feedback.feedback)
app.command("consent")(feedback.consent)
app.add_typer(threads.app, name="threads")
app.add_typer(memory.app, name="memory")
app.add_typer(knowledge.app, name="knowledge")
app.command("tools")(tools.tools)
app.add_typer(mcp.app, name="mcp")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(people.app, name="people")
app.command("exec", context_settings={"allow_interspersed_args": False})(execute.execute)
app.add_typer(releases.app, name="releases")
app.add_typer(rollouts.app, name="rollouts")
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.command("events")(events.events)
app.command("why")(why.why)
app.add_typer(audit.app, name="audit")
app.add_typer(backup.app, name="backup")
app.command("doctor")(doctor.doctor)
app.add_typer(settings.config, name="config")
app.add_typer(tokens.app, name="token")
app.add_typer(users.app, name="user")
app.command("version")(settings.version)
up.register(app)


def main() -> None:
    """Run loopctl; the console script."""
    # A terminal that cannot show an icon gets a question mark, not a traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="loopctl")
    except KeyboardInterrupt:  # between the library's own handlers
        sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
