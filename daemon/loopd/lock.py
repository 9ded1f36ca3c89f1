"""lock: owns the lock of a home: one loopd, or one restore, works on it at a time."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator

from loopd.config import ConfigError
from loopd.units import Layout

FILE = "loopd.lock"


@contextlib.contextmanager
def sole_owner(layout: Layout) -> Iterator[None]:
    """Hold the lock of the home directory; it ends with the process. Raises ConfigError when another loopd has it."""
    with (layout.home / FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another loopd runs on {layout.home}; `loopctl status` asks it. Stop it first, or set home"
            ) from error
        yield
