"""execute: owns `loopctl exec`: one command in a fresh sandbox, its output and exit code as if it ran here."""

from __future__ import annotations

import sys
from typing import Annotated, TextIO

import typer
from pydantic import ValidationError

from loopd.api.schema import ExecRequest, ExecResult
from loopd.cli.exits import ExitCode
from loopd.cli.screen import open_screen
from loopd.cli.session import open_client

_MOST_CODE = 255
_SIGNALLED = 128


def execute(
    argv: Annotated[list[str], typer.Argument(metavar="-- COMMAND [ARGUMENT]…", help="The command, after --.")],
    *,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, max=120, metavar="S", help="Longest run, in seconds.")
    ] = 30.0,
    json: Annotated[bool, typer.Option("--json", help="Write output and exit code as JSON.")] = False,
) -> None:
    """Run a command in a sandbox of its own: no network, no host files, gone afterwards.

    Its output is written as it is, and its exit code is loopctl's; 124 when it ran past --timeout. Codes 1 to 6 may
    also be loopctl's own: then stderr has a line that begins with "error:".
    """
    screen = open_screen()
    try:
        request = ExecRequest(argv=argv, timeout_s=timeout)
    except ValidationError as error:
        raise typer.BadParameter("; ".join(fault["msg"] for fault in error.errors())) from error
    with open_client() as client:
        result = client.execute(request)
    if json:
        screen.json(result)
    else:
        _write(sys.stdout, result.stdout)
        _write(sys.stderr, result.stderr)
    if result.truncated:
        screen.remark("loopctl: the output was longer than a sandbox may give; its end is missing")
    if result.timed_out:
        screen.remark(f"loopctl: the command was ended after {timeout:g} s (--timeout)")
    raise typer.Exit(code_of(result))


def code_of(result: ExecResult) -> int:
    """Return the exit code a shell would show: 124 past its time, 128 + n for signal n."""
    if result.timed_out:
        return ExitCode.TIMED_OUT
    if result.exit_code < 0:
        return min(_SIGNALLED - result.exit_code, _MOST_CODE)
    return min(result.exit_code, _MOST_CODE)


def _write(stream: TextIO, text: str) -> None:
    """Write UTF-8 whatever the locale is."""
    stream.flush()
    stream.buffer.write(text.encode())
    stream.buffer.flush()
