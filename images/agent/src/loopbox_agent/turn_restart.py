"""turn_restart: owns the conversation from which a turn that broke off is begun anew. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic_ai.messages import ModelMessage, ModelRequest


def before_break(messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    """Return the messages up to the last one that asks the model; what it half said after is dropped.

    Run the agent again with these as its history and no new prompt: the same turn is asked once more. No tool of the
    turn has run, since tools are called after an answer's end.
    """
    last = max((place for place, message in enumerate(messages) if isinstance(message, ModelRequest)), default=-1)
    return list(messages[: last + 1])
