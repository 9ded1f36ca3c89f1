"""hints: owns what a row tells of the way to its answer: how many steps it took, and with which tools. Pure.

The XNet head learns to predict these from the first request.
"""

from __future__ import annotations

from typing import Any

import msgspec

from loopbox_trainer.rows import Row


def hinted(row: Row) -> Row:
    """Return the row with its hints in meta: steps (turns with calls), calls, tools (in the order of first use)."""
    steps = [message.tool_calls for message in row.messages if message.role == "assistant" and message.tool_calls]
    used = dict.fromkeys(call.name for calls in steps for call in calls)
    hints: dict[str, Any] = {"steps": len(steps), "calls": sum(map(len, steps)), "tools": list(used)}  # Any: JSON
    return msgspec.structs.replace(row, meta={**row.meta, **hints})


def kind_of(row: Row) -> str:
    """Return what the first answer does: the tools it calls, in order, or "answer"."""
    first = next((message for message in row.messages if message.role == "assistant"), None)
    calls = first.tool_calls if first is not None else ()
    return "+".join(call.name for call in calls) or "answer"
