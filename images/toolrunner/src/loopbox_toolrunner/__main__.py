"""The tool runner's start. What is imported when decides how soon it answers."""

from __future__ import annotations

import gc
import sys

from loopbox_toolrunner.launcher import Launcher
from loopbox_toolrunner.processes import PR_SET_DUMPABLE, set_process_option

EXIT_CONFIG = 78


def main() -> int:
    """Start the zygote, load the server meanwhile, serve. Return the exit code."""
    launcher = Launcher()
    gc.disable()  # importing makes a hundred thousand objects that stay; looking through them takes a fifth longer
    import asyncio  # noqa: PLC0415 after the zygote's start, which then runs beside these imports

    from pydantic import ValidationError  # noqa: PLC0415

    from loopbox_toolrunner.logs import configure_logs  # noqa: PLC0415
    from loopbox_toolrunner.server import serve  # noqa: PLC0415
    from loopbox_toolrunner.settings import Settings  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    try:
        settings = Settings()
    except ValidationError as error:
        sys.stderr.write(f"TOOLRUNNER_* cannot be used; nothing was started.\n{error}\n")
        launcher.close()
        return EXIT_CONFIG
    configure_logs(settings.log_level)
    # Commands run under the same user; this keeps their hands off the server's memory.
    set_process_option(PR_SET_DUMPABLE, 0)
    return asyncio.run(serve(settings, launcher))


if __name__ == "__main__":
    sys.exit(main())
