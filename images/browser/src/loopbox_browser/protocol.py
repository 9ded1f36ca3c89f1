"""protocol: owns what server and worker say to each other: a JSON object a line, and the words in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LINE_BYTES = 24 << 20  # a screenshot of 16 MiB in base64
READY = {"ready": True}
WORKSPACE = "LOOPBOX_WORKSPACE"


def pack(said: Mapping[str, Any]) -> bytes:
    """Return one line. Any: JSON."""
    return json.dumps(said).encode() + b"\n"


def parse(line: bytes) -> dict[str, Any]:
    """Read what ``pack`` wrote. Any: JSON. Raises ValueError."""
    told = json.loads(line)
    if not isinstance(told, dict):
        raise ValueError("no object")  # noqa: TRY004 one kind of error for a line that cannot be used
    return told


def clean(value: Any) -> Any:
    """Replace halves of characters, which a page's text cut in two has, all through. Any: JSON."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    return value
