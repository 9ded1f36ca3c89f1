"""loopd: the daemon that keeps one host's model, agent and sandboxes serving."""

from __future__ import annotations

import functools


@functools.cache
def version() -> str:
    """Return the installed version; looked up once, since it reads the disk."""
    from importlib import metadata  # noqa: PLC0415 the disposable inspection process pays for every import

    return metadata.version("loopbox")
