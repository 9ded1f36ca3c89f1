"""run_loopctl: loopctl as tests run it: in this process with its streams apart, or as the real program."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from loopd.cli.main import app

DAEMON = Path(__file__).parents[1] / "daemon"


async def loopctl(*arguments: str, stdin: bytes = b"", code: int = 0) -> Result:
    """Run a command beside the test's own servers; one at a time, because it takes the process's streams."""
    run = CliRunner().invoke
    result = await asyncio.to_thread(run, app, list(arguments), input=stdin, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


async def start(*arguments: str) -> asyncio.subprocess.Process:
    """Start the real program, with Ctrl-C as a terminal has it even where these tests run in the background."""
    program = "import sys; from loopd.cli.main import main; sys.argv[0] = 'loopctl'; main()"
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *arguments),
        env={**os.environ, "PYTHONPATH": str(DAEMON)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
