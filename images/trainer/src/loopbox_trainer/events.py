"""events: owns what a job tells while it runs, one JSON object a line, and the result it ends with."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from loopbox_trainer.files import write_atomically

EVENTS: Final = "events.jsonl"
RESULT: Final = "result.json"
MOST_BYTES: Final = 64 << 20  #: of events.jsonl; further steps are not told, the end always is
_LAST: Final = frozenset({"done", "failed", "cancelled"})


class Result(BaseModel):
    """How a job ended; written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["done", "failed", "cancelled"]
    code: Annotated[str, Field(max_length=64)] = ""
    message: Annotated[str, Field(max_length=4096)] = ""
    figures: dict[str, float | int | str | bool | None] = {}
    files: dict[str, str] = {}  #: what is handed on: name to SHA-256


class EventLog:
    """A job's events.jsonl, for appending."""

    def __init__(self, job: Path) -> None:
        self._path = job / EVENTS

    def tell(self, event: str, **more: Any) -> None:  # Any: JSON
        """Append one event; it is on its way to the disk when this returns."""
        line = json.dumps({"t": round(time.time(), 3), "event": event} | {k: _finite(v) for k, v in more.items()})
        with self._path.open("a", encoding="utf-8") as file:
            if file.tell() < MOST_BYTES or event in _LAST:
                file.write(line + "\n")


def end(job: Path, result: Result) -> None:
    """Write the result and the last event. Raises OSError."""
    write_atomically(job / RESULT, (result.model_dump_json(indent=2) + "\n").encode())
    EventLog(job).tell(result.status, code=result.code, message=result.message)


def _finite(value: Any) -> Any:  # Any: JSON, in which there is no NaN
    return None if isinstance(value, float) and not math.isfinite(value) else value
