"""Run one command of a job: ``python -m loopbox_trainer <curate|train|export|score> [folder]``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Final

#: Command to module. Imported when asked for: some load libraries of gigabytes, some are built in by others.
COMMANDS: Final = {
    "curate": "loopbox_trainer.curate",
    "train": "loopbox_trainer.train_job",
    "export": "loopbox_trainer.export_job",
    "score": "loopbox_trainer.score",
}


def main(arguments: list[str]) -> int:
    """Return the exit code: 0 done or cancelled, 2 called wrongly, 3 unfit data or spec, 4 exhausted, 1 a bug."""
    if not 1 <= len(arguments) <= 2 or arguments[0] not in COMMANDS:  # noqa: PLR2004 - a command and a folder
        sys.stderr.write(f"usage: python -m loopbox_trainer {'|'.join(COMMANDS)} [the job's folder, /job]\n")
        return 2
    module = importlib.import_module(COMMANDS[arguments[0]])
    code: int = module.main(Path(arguments[1] if len(arguments) > 1 else "/job"))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
