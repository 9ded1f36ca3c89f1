"""messages: owns how a conversation's messages read on a screen. Pure; a form it does not know is shown as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import JsonValue


def sentences(message: JsonValue) -> Iterator[str]:
    """Yield what a message says, one text for each of its parts: who, then what."""
    match message:
        case {"parts": [*parts]}:
            for part in parts:
                yield _sentence(part)
        case _:
            yield f"?: {_text(message)}"


_SPEAKERS = {
    "system-prompt": "system",
    "user-prompt": "user",
    "text": "agent",
    "thinking": "agent thinks",
    "retry-prompt": "refused",
}


def _sentence(part: JsonValue) -> str:
    match part:
        case {"part_kind": "tool-call", "tool_name": name, "args": arguments}:
            return f"agent calls {name}: {_text(arguments)}"
        case {"part_kind": "tool-return", "tool_name": name, "content": content}:
            return f"{name} returns: {_text(content)}"
        case {"part_kind": str(kind), "content": content} if kind in _SPEAKERS:
            return f"{_SPEAKERS[kind]}: {_text(content)}"
        case _:
            return f"?: {_text(part)}"


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
