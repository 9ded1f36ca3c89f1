"""checkpoints: owns which checkpoint is whole, and whether it belongs to this job's data and settings.

The library writes a checkpoint file by file. A mark is put into it last, so a job that was killed in between goes on
from the one before.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Final

from loopbox_trainer.errors import TrainerError
from loopbox_trainer.files import sync_tree, write_json

FOLDER: Final = "checkpoints"
MARK: Final = "whole.json"
_NAME: Final = re.compile(r"checkpoint-(\d{1,12})")


def close(checkpoint: Path, fingerprint: str) -> None:
    """Mark a checkpoint as whole, once all of it is on the disk. Raises OSError."""
    sync_tree(checkpoint)
    write_json(checkpoint / MARK, {"fingerprint": fingerprint})


def newest(folder: Path, fingerprint: str) -> Path | None:
    """Return the newest whole checkpoint and take away what is not whole.

    Raises TrainerError "checkpoint_of_another" for one of other data or settings.
    """
    found: list[tuple[int, Path]] = []
    for path in folder.glob("*"):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        if (path / MARK).is_file():
            found.append((int(match[1]), path))
        else:
            shutil.rmtree(path)
    if not found:
        return None
    path = max(found)[1]
    if json.loads((path / MARK).read_text()).get("fingerprint") != fingerprint:
        raise TrainerError(
            "checkpoint_of_another",
            f"{path.name} was made from other data or settings, so it cannot be gone on from; it was left as it is. "
            "Submit a new job.",
        )
    return path
