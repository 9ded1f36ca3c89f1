"""interrupted: owns the turn of a run that its agent's end broke off, made of the calls in the journal. Pure.

A call and its answer are a pair of their own each, whatever of them ran side by side: a compression may then cut
between them.
"""

from __future__ import annotations

import json
from typing import Final

from pydantic import JsonValue
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart

from loopbox_agent.call_journal import Journaled
from loopbox_agent.mask import mask, mask_json
from loopbox_agent.outputs import cut

MOST_CALLS: Final = 32  # shown; those whose end is unknown first, then the newest
RESULT_BYTES: Final = 12 << 10  # of all results together
LEAST_RESULT_BYTES: Final = 256  # of each
ARGUMENT_BYTES: Final = 1024  # of one call
TEXT_BYTES: Final = 300  # of one text in them

UNKNOWN: Final = (
    "Begun, end unknown: the agent ended before the call did. It may have been done; it was not run again. "
    "Look what is there before you repeat it."
)


def interrupted_turn(instruction: str, journaled: Journaled) -> list[ModelMessage]:
    """Return the turn as a later run can follow it: masked, bounded, every call with an answer."""
    turn: list[ModelMessage] = [ModelRequest.user_text_prompt(mask(instruction).text)]
    room = max(LEAST_RESULT_BYTES, RESULT_BYTES // max(1, len(journaled.calls)))
    for call in journaled.calls:
        answer = UNKNOWN if call.finished_at is None else _cut(mask(_text(mask_json(call.result))).text, room)
        turn.append(ModelResponse([ToolCallPart(call.tool, _arguments(call.arguments), call.call_id)]))
        turn.append(ModelRequest([ToolReturnPart(call.tool, answer, call.call_id)]))
    turn.append(ModelResponse([TextPart(f"[{told(journaled)}]")]))
    return turn


def told(journaled: Journaled) -> str:
    """Return in words what became of an interrupted run."""
    calls = f"Of its tool calls with effects {journaled.finished} had ended"
    if journaled.unknown:
        calls += f", {journaled.unknown} were begun and may have been done; they were not run again"
    if journaled.left_out:
        calls += f" ({journaled.left_out} of them not shown)"
    return (
        f"The run was interrupted: the agent ended while it was under way. {calls}. What else it said and read is "
        "lost, and the workspace's files may be as they were before it: look at what is there, then go on."
    )


def _text(result: JsonValue) -> str:
    match result:
        case str(text) | {"text": str(text)}:
            return text
        case _:
            return _json(result)


def _arguments(arguments: JsonValue) -> dict[str, JsonValue]:
    """Return arguments that are masked first: half of a secret is not known as one."""
    clean: JsonValue = mask_json(arguments)
    short = _short(clean)
    if isinstance(short, dict) and len(_json(short).encode()) <= ARGUMENT_BYTES:
        return short
    return {"shortened": _cut(_json(clean), ARGUMENT_BYTES // 2)}


def _short(value: JsonValue) -> JsonValue:
    match value:
        case str():
            return _cut(value, TEXT_BYTES)
        case dict():
            return {name: _short(one) for name, one in value.items()}
        case list():
            return [_short(one) for one in value]
        case _:
            return value


def _cut(text: str, most: int) -> str:
    pieces = cut(text, max_bytes=most)
    return pieces.head if pieces.whole else f"{pieces.head}[… {pieces.left_bytes} bytes left out …]{pieces.tail}"


def _json(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False)
