"""turn_end: owns how a turn that was broken off stays in the conversation: whole, and saying what is missing. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    RetryPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)

CUT = "[broken off here]"
UNFINISHED = "The call was broken off before it ended; nobody knows how much of it was done. Look before you repeat it."


def close_turn(messages: Sequence[ModelMessage], instruction: str, partial: str) -> list[ModelMessage]:
    """Return a run's messages as a turn that a later run can follow.

    messages: what the run added so far; partial: what the model had said of an answer that is not among them.
    """
    closed = list(messages) or [ModelRequest.user_text_prompt(instruction)]
    if lost := _unanswered(closed):
        closed.append(ModelRequest([_lost(call) for call in lost]))
    if isinstance(closed[-1], ModelRequest):
        closed.append(ModelResponse([TextPart(f"{partial} {CUT}" if partial else CUT)]))
    return closed


def _unanswered(messages: Sequence[ModelMessage]) -> list[ToolCallPart]:
    answered = {
        part.tool_call_id
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, ToolReturnPart | RetryPromptPart)
    }
    return [
        part
        for message in messages
        if isinstance(message, ModelResponse)
        for part in message.parts
        if isinstance(part, ToolCallPart) and part.tool_call_id not in answered
    ]


def _lost(call: ToolCallPart) -> ToolReturnPart:
    return ToolReturnPart(tool_name=call.tool_name, content=UNFINISHED, tool_call_id=call.tool_call_id)
