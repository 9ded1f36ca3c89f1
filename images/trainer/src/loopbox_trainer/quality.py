"""quality: owns what makes a row not worth learning from: filters, each with the reason it gives. Pure.

The order is by cost and by weight: the first filter that objects names the row's reason.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from loopbox_trainer.fit import Toolset
from loopbox_trainer.rows import Message, Row

_SHORT: Final = 40  #: characters of text too short to judge how it reads
_LONG: Final = 300  #: characters of text long enough to repeat itself
_LEAST_DISTINCT: Final = 0.12  #: distinct words of all, in a long text; prose of this length has 0.4 and more
_MOST_SIGNS: Final = 0.6  #: of an answer without calls, that are neither letters, digits nor spaces
_MOST_REFUSAL: Final = 400  #: characters; a longer answer says more than no
_SAME_LINE: Final = 12

#: Marks of chat templates: in a text they would end or begin a turn of the model that is trained.
_CONTROL: Final = re.compile(
    r"<\|[A-Za-z0-9_]{1,40}\|>|</?tool_(?:call|response)>|\[/?(?:INST|TOOL_CALLS|AVAILABLE_TOOLS)\]"
    r"|<(?:start|end)_of_turn>|</?s>|<<SYS>>"
)
_UNSEEN: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_REFUSAL: Final = re.compile(
    r"^\W{0,3}(?:(?:i'?m|i am) (?:really |very |so )?sorry|sorry|unfortunately|i (?:can(?:no|')?t|apologi[sz]e|won'?t"
    r"|am (?:not able|unable))|as an? (?:ai|large language|language)\b)",
    re.IGNORECASE,
)
_CANT: Final = re.compile(
    r"\b(?:can(?:no|')?t|unable|not able|won'?t|not allowed|against my|as an ai)\b.{0,80}"
    r"\b(?:help|assist|do that|comply|provide|fulfil|complete|answer|access|perform|that)\b",
    re.IGNORECASE | re.DOTALL,
)
#: A call written as text: the engine did not read it as one, so it must not be learnt as an answer.
_CALL_AS_TEXT: Final = re.compile(
    r"\"(?:name|function|tool)\"\s*:.{0,400}\"(?:arguments|parameters|args)\"\s*:", re.DOTALL
)
_MOJIBAKE: Final = re.compile("\ufffd|Ã[\x80-\xbf©¤¶¼]|â€[™œ\x9d“”]|ï¿½")
_ONE_CHARACTER: Final = re.compile(r"([^\s=\-_*#.~])\1{79}")
_BEYOND: Final = re.compile(r"[^\x00-\x7f]")
_NO_SIGNS: Final = (string.ascii_letters + string.digits + "_ \n").encode()
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What is still taken."""

    most_characters: int = 48_000  #: of all messages together; tools not counted
    refusals: bool = False  #: keep answers that only refuse


def unworthy(row: Row, toolset: Toolset, bounds: Bounds) -> str | None:
    """Return why a row is not worth learning from, None when it is."""
    for check in _CHECKS:
        reason = check(row, bounds)
        if reason is not None:
            return reason
    for message in row.messages:
        for call in message.tool_calls:
            fault = toolset.fault(call)
            if fault is not None:
                return fault
    return None


def _empty(row: Row, _: Bounds) -> str | None:
    asked = answered = False
    for message in row.messages:
        if message.role == "user":
            asked = asked or bool(message.content.strip())
        elif message.role == "assistant":
            if not (message.tool_calls or message.content.strip()):
                return "empty"
            answered = True
    return None if asked and answered else "empty"


def _order(row: Row, _: Bounds) -> str | None:
    """A result follows a call, and the last word is the assistant's."""
    open_calls = 0
    for message in row.messages:
        if message.role == "tool":
            open_calls -= 1
            if open_calls < 0:
                return "result_without_call"
        else:
            if open_calls > 0:
                return "call_without_result"
            open_calls = len(message.tool_calls)
    return None if row.messages[-1].role == "assistant" else "unanswered"


def _length(row: Row, bounds: Bounds) -> str | None:
    total = sum(len(message.content) for message in row.messages)
    return "too_long" if total > bounds.most_characters else None


def _control(row: Row, _: Bounds) -> str | None:
    text = "\n".join([message.content for message in row.messages])
    marked = ("<" in text or "[" in text) and _CONTROL.search(text)
    return "control_tokens" if marked or _UNSEEN.search(text) else None


def _failed(row: Row, _: Bounds) -> str | None:
    """A call that failed and was not corrected; corrected ones are taken apart before (mining)."""
    return "failed_call" if row.meta.get("failed") else None


def _refusal(row: Row, bounds: Bounds) -> str | None:
    if bounds.refusals:
        return None
    answers = [message for message in row.messages if message.role == "assistant"]
    return "refusal_only" if all(map(_refuses, answers)) else None


def _refuses(message: Message) -> bool:
    text = message.content
    return (
        not message.tool_calls
        and len(text) <= _MOST_REFUSAL
        and "tool" not in text  # that no tool fits is an answer to learn
        and bool(_REFUSAL.search(text[:80]))
        and bool(_CANT.search(text))
    )


def _spoken(row: Row, _: Bounds) -> str | None:
    for message in row.messages:
        if message.role == "assistant" and message.content:
            reason = _reads_badly(message.content)
            if reason is not None:
                return reason
    return None


def _reads_badly(text: str) -> str | None:
    if '"' in text and _CALL_AS_TEXT.search(text):
        return "call_as_text"
    if not text.isascii() and _MOJIBAKE.search(text):
        return "rubbish"
    if len(text) > _SHORT and _signs(text) > _MOST_SIGNS * len(text):
        return "rubbish"
    return "repeated_text" if len(text) > _LONG and _repeats(text) else None


def _signs(text: str) -> int:
    """Return how many characters are neither letters, digits nor spaces."""
    signs = len(text.encode("ascii", "ignore").translate(None, _NO_SIGNS))
    return signs if text.isascii() else signs + sum(not one.isalnum() for one in _BEYOND.findall(text))


def _repeats(text: str) -> bool:
    words = _WORD.findall(text)
    lines = [line for line in text.split("\n") if line.strip()]
    return (
        len(set(words)) < _LEAST_DISTINCT * len(words)
        or (len(lines) >= _SAME_LINE and len(set(lines)) <= len(lines) // _SAME_LINE)
        or bool(_ONE_CHARACTER.search(text))
    )


_CHECKS: Final[tuple[Callable[[Row, Bounds], str | None], ...]] = (
    _empty,
    _length,
    _order,
    _failed,
    _control,
    _refusal,
    _spoken,
)
#: Every reason that `unworthy` gives.
REASONS: Final = (
    "empty",
    "too_long",
    "result_without_call",
    "call_without_result",
    "unanswered",
    "failed_call",
    "control_tokens",
    "refusal_only",
    "call_as_text",
    "rubbish",
    "repeated_text",
    "unknown_tool",
    "broken_schema",
    "arguments_unfit",
)
