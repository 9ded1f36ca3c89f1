"""transcript: owns the telling of messages as numbered text: for the summary, and for reading back. Pure."""

from __future__ import annotations

from typing import Final

from pydantic_ai.messages import (
    CompactionPart,
    ModelMessage,
    RetryFeedbackPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

LONGEST_PART: Final = 2000  #: characters of one part in a transcript


def clip(text: str, longest: int) -> str:
    """Return a text's head and tail, and how much is missing between."""
    if len(text) <= longest:
        return text
    head = longest * 2 // 3
    tail = max(longest - head, 0)
    return f"{text[:head]}\n[… {len(text) - head - tail} characters …]\n{text[len(text) - tail :]}"


def tell_part(part: object) -> tuple[str, str] | None:
    """Return who speaks and what; None for what is told elsewhere (rules, summaries) or to nobody (thoughts)."""
    match part:
        case UserPromptPart(content=content):
            words = (
                content if isinstance(content, str) else "\n".join(item for item in content if isinstance(item, str))
            )
            return "user", words
        case TextPart(content=content):
            return "assistant", content
        case ToolCallPart(tool_name=name):
            return f"assistant calls {name}", part.args_as_json_str()
        case ToolReturnPart(tool_name=name):
            return f"{name} answers", part.model_response_str()
        case RetryFeedbackPart():
            return "check", part.model_response()
        case _:
            return None


def tell(message: ModelMessage, number: int, *, longest: int = LONGEST_PART) -> str:
    """Return one message under its number, '' when there is nothing to tell."""
    told = [(who, clip(words, longest)) for part in message.parts if (said := tell_part(part)) for who, words in [said]]
    return "\n".join(f"[{number}] {who}: {words}" for who, words in told if words.strip())


def summary_of(message: ModelMessage) -> CompactionPart | None:
    """Return the summary in a message, None when it holds none of ours."""
    return next((part for part in message.parts if isinstance(part, CompactionPart) and part.metadata), None)
