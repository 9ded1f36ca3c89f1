"""outcome: owns how a command of a job ends: its result, its last event and its exit code, whatever happened."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from loopbox_trainer.errors import TrainerError, exhaustion
from loopbox_trainer.events import RESULT, Result, end


def conclude(job: Path, work: Callable[[], Result]) -> int:
    """Do a command's work and return the exit code."""
    (job / RESULT).unlink(missing_ok=True)
    try:
        result, code = work(), 0
    except Exception as error:  # noqa: BLE001 - a job always says how it ended
        known = error if isinstance(error, TrainerError) else exhaustion(error)
        if known is None:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"[:2000]
            known_code, code = "internal_error", 1
            message = f"A fault of the trainer ended the job ({message}); nothing was handed on. Its log has the rest."
        else:
            message, known_code, code = str(known), known.code, known.exit_code
        result = Result(status="failed", code=known_code, message=message[:4096])
        sys.stderr.write(f"{known_code}: {message}\n")
    try:
        end(job, result)
    except OSError as error:  # a full disk; the exit code tells it as well
        sys.stderr.write(f"the result cannot be written: {error}\n")
        with suppress(OSError):
            (job / RESULT).unlink(missing_ok=True)
        return code or 4
    return code
