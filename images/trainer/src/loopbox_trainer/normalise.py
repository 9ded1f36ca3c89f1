"""normalise: owns the way from a foreign record to rows: which form it has, and how its fields are said here. Pure.

Forms that hold a list of chat messages are in `chat_forms`, the agent's own in `interactions`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from loopbox_trainer.chat_forms import conversation_of_turns, messages_of_chat, tools_of_chat
from loopbox_trainer.interactions import row_of_interaction
from loopbox_trainer.rows import Message, Row, RowError, Tool, check_row

Form = Literal["auto", "row", "interaction", "chat", "sharegpt", "instruction", "question", "completion"]
Record = Mapping[str, Any]  # Any: JSON of others

_CALCULATION: Final = re.compile(r"<<[^<>]{0,200}>>")
_RESULT: Final = re.compile(r"\n#### ?(\S.{0,99})$")


def form_of(record: Record) -> Form:
    """Return the form of a record by its fields. Raises RowError: unknown_form."""
    messages = record.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[0], Mapping):
        return "interaction" if "parts" in messages[0] else "chat"
    for field, form in _TELLING:
        if field in record:
            return form
    raise RowError("unknown_form", f"fields: {', '.join(sorted(map(str, record)))[:200]}")


def normalise(record: object, form: str = "auto", *, tools: tuple[Tool, ...] = ()) -> Row:
    """Return a record as a row, without id and source.

    tools: what was on offer, for a record that does not say. Raises RowError.
    """
    if not isinstance(record, Mapping):
        raise RowError("not_an_object", type(record).__name__)
    if form == "auto":
        form = form_of(record)
    try:
        row = _FORMS[form](record, tools)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise RowError("not_a_row", f"{form}: {type(error).__name__}: {error}") from error
    return check_row(row)


def text_of(record: Record, *fields: str) -> str:
    """Return the first of the fields that holds text. Raises RowError when one of them holds something else."""
    for field in fields:
        value = record.get(field)
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            raise RowError("not_text", f"{field} holds {type(value).__name__}")
        return value
    return ""


def _from_chat(record: Record, tools: tuple[Tool, ...]) -> Row:
    messages = messages_of_chat(record)
    return _row(record, messages, tools_of_chat(record) or tools)


def _from_sharegpt(record: Record, tools: tuple[Tool, ...]) -> Row:
    turns = conversation_of_turns(record["conversations"], text_of(record, "system"))
    return _row(record, turns, tools_of_chat(record) or tools)


def _from_instruction(record: Record, tools: tuple[Tool, ...]) -> Row:
    asked = [text_of(record, "instruction"), text_of(record, "input")]
    return _turn(record, "\n\n".join(filter(None, asked)), text_of(record, "output", "response"), tools)


def _from_question(record: Record, tools: tuple[Tool, ...]) -> Row:
    """Take grade-school-math's form too: its notes for a calculator go, the result becomes a sentence."""
    answer = _CALCULATION.sub("", text_of(record, "answer"))
    return _turn(record, text_of(record, "question"), _RESULT.sub(r"\nThe answer is \1.", answer.rstrip()), tools)


def _from_completion(record: Record, tools: tuple[Tool, ...]) -> Row:
    if isinstance(record["prompt"], list):
        both = [*record["prompt"], *record["completion"]]
        return _row(record, messages_of_chat({"messages": both}), tools_of_chat(record) or tools)
    return _turn(record, text_of(record, "prompt"), text_of(record, "completion"), tools)


def _turn(record: Record, asked: str, answer: str, tools: tuple[Tool, ...]) -> Row:
    system = text_of(record, "system")
    messages = (Message("user", asked), Message("assistant", answer))
    return _row(record, ((Message("system", system), *messages) if system else messages), tools)


def _row(record: Record, messages: tuple[Message, ...], tools: tuple[Tool, ...]) -> Row:
    conversation = record.get("conversation") or record.get("conversation_id") or ""
    origin = record.get("id")
    outcome = record.get("outcome")
    return Row(
        messages=messages,
        tools=tools,
        conversation=str(conversation)[:256],
        outcome=outcome if outcome in ("good", "bad") else "unknown",
        meta={
            **({"origin": str(origin)[:200]} if isinstance(origin, str | int) and origin != "" else {}),
            **({"held_out": True} if record.get("held_out") is True else {}),
        },
    )


#: The field that tells a form. The first that is there counts.
_TELLING: Final[tuple[tuple[str, Form], ...]] = (
    ("messages", "chat"),
    ("request", "chat"),
    ("conversations", "sharegpt"),
    ("instruction", "instruction"),
    ("question", "question"),
    ("prompt", "completion"),
)
_FORMS: Final[Mapping[str, Callable[[Record, tuple[Tool, ...]], Row]]] = {
    "interaction": row_of_interaction,
    "chat": _from_chat,
    "sharegpt": _from_sharegpt,
    "instruction": _from_instruction,
    "question": _from_question,
    "completion": _from_completion,
}
