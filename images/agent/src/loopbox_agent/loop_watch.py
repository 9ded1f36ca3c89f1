"""loop_watch: owns noticing that the same call is made again and again. Pure."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping

from pydantic import JsonValue

WINDOW = 24  # calls looked back on, so that loops of several calls are seen, too


def call_key(tool: str, arguments: Mapping[str, JsonValue]) -> str:
    """Return what two calls have in common when they are the same."""
    told = json.dumps(arguments, sort_keys=True, separators=(",", ":"), default=str)
    return f"{tool}:{hashlib.sha256(told.encode(errors='surrogatepass')).hexdigest()[:32]}"


class LoopWatch:
    """Counts equal calls among the last ones."""

    def __init__(self, window: int = WINDOW) -> None:
        self._last: deque[str] = deque(maxlen=window)

    def note(self, tool: str, arguments: Mapping[str, JsonValue]) -> int:
        """Take note of a call; return how often it was made among the last ones, this time included."""
        key = call_key(tool, arguments)
        self._last.append(key)
        return self._last.count(key)
