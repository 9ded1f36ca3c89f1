"""errors: owns how a job fails: a code for machines, words for people, and the exit code that belongs to them."""

from __future__ import annotations

import errno
from typing import ClassVar, Final

UNFIT: Final = 3  #: exit code: the data or the spec cannot be used as they are
EXHAUSTED: Final = 4  #: exit code: out of memory or disk

_FULL: Final = (
    "no space left on device",
    "disk quota exceeded",
    "os error 28",
    "pytorchstreamwriter failed writing",
    "iostream error",  # what torch says of a file that it cannot write to its end, and then of its length
    "inline_container.cc",
)
_MEMORY: Final = ("out of memory", "can't allocate memory", "cannot allocate memory", "std::bad_alloc")


class TrainerError(Exception):
    """A job that cannot go on. The text says what happened, what was not harmed and what to do."""

    exit_code: ClassVar[int] = UNFIT

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ExhaustedError(TrainerError):
    """Memory or disk ran out."""

    exit_code: ClassVar[int] = EXHAUSTED


def exhaustion(error: BaseException) -> ExhaustedError | None:
    """Return what ran out, when that is why something failed; libraries tell it in many words."""
    text = f"{type(error).__name__} {error}".lower()
    if (isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}) or any(w in text for w in _FULL):
        return ExhaustedError(
            "disk_full",
            "The disk is full; nothing was handed on and the last whole checkpoint is kept. Free space, then resume.",
        )
    if isinstance(error, MemoryError) or any(words in text for words in _MEMORY):
        return ExhaustedError(
            "out_of_memory",
            "Training does not fit into memory, with a smaller batch neither; nothing was handed on. "
            "Give the job more memory, or set fewer tokens in a batch, gradient checkpointing or a smaller rank.",
        )
    return None
