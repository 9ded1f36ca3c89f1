"""__main__: owns the start: limits, the link, and an end at SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from loopbox_egress.limits import Limits, read_limits
from loopbox_egress.link import Proxy

EX_CONFIG = 78


async def serve(path: Path, limits: Limits) -> None:
    """Serve until a signal."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    serving = asyncio.create_task(Proxy(path=path, limits=limits).run_forever())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()


def main() -> int:
    """Run the proxy; return the exit code."""
    try:
        limits = read_limits()
    except ValueError as error:
        sys.stderr.write(f"egress: {error}\n")
        return EX_CONFIG
    asyncio.run(serve(Path(os.environ.get("EGRESS_CONTROL", "/run/egress/control.sock")), limits))
    return 0


if __name__ == "__main__":
    sys.exit(main())
