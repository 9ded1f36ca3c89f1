"""loopd: the daemon that keeps one host's model, agent and sandboxes serving."""

from __future__ import annotations

import functools
from importlib import metadata


@functools.cache
def version() -> str:
    """Return the installed version; looked up once, since it reads the disk."""
    return metadata.version("loopbox")
