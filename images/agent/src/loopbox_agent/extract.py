"""extract: owns the summary without a model: lines picked from the messages by plain rules. Pure.

It is the fallback of the compression, so it must always give something. The cue words are English; in other languages
it still has the user's words, each tool's last words, files, and each answer's last sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from pydantic_ai.messages import ModelMessage, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart

from loopbox_agent.segments import MAX_OPEN, Segments
from loopbox_agent.transcript import tell_part

LONGEST_READ: Final = 20_000  #: characters of one part that are looked at, from each end half
_MOST: Final = 8  #: items of one segment
_MOST_FILES: Final = 20

_BOX: Final = re.compile(r"^[ \t]*(?:[-*+]|\d+[.)])[ \t]+\[(?P<mark>[ xX])\][ \t]+(?P<item>\S[^\n]*)$", re.MULTILINE)
_TODO: Final = re.compile(
    r"^[ \t]*(?:[-*+][ \t]+)?(?:TODO|FIXME|OPEN ITEM)[ \t]*:[ \t]*(?P<item>\S[^\n]*)$",
    re.MULTILINE | re.IGNORECASE,
)
_SENTENCE: Final = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s+|\n+")
_FILE: Final = re.compile(r"(?<![\w/.-])(?:/|\./|[\w-]+/)?(?:[\w.-]+/)*[\w-]+\.(?:[A-Za-z][A-Za-z0-9]{0,5})(?![\w/])")
_URL: Final = re.compile(r"https?://[^\s\"'<>)\]]{1,200}")


def _cue(*words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)


_DECISION: Final = _cue(
    "decid\\w+",
    "decision",
    "chose",
    "chosen",
    "agreed",
    "instead of",
    "we(?:'ll| will) use",
    "let's use",
    "prefer\\w*",
    "settled on",
)
_DONE: Final = _cue(
    "done",
    "fixed",
    "added",
    "created",
    "implemented",
    "wrote",
    "written",
    "updated",
    "removed",
    "pass(?:es|ed)",
    "works",
    "finished",
    "completed",
    "found",
    "renamed",
    "moved",
)
_BLOCKED: Final = _cue(
    "error",
    "failed",
    "fails",
    "failure",
    "cannot",
    "can't",
    "denied",
    "refused",
    "timed out",
    "timeout",
    "exception",
    "blocked",
    "not found",
    "missing",
)
_NEXT: Final = _cue(
    "next", "remaining", "still (?:to|need\\w*|have)", "plan to", "will (?:now|then)", "then I", "afterwards", "later"
)
_RULE: Final = _cue("always", "never", "must(?: not)?", "do not", "don't", "make sure", "only use", "required?")


def open_items_of(messages: Sequence[ModelMessage]) -> tuple[str, ...]:
    """Return what is still owed, word for word: unticked boxes and TODO lines that were not ticked later."""
    owed: dict[str, str] = {}
    for message in messages:
        for part in message.parts:
            if (told := tell_part(part)) is None or isinstance(part, ToolCallPart):
                continue
            for ticked, item in _boxes(_ends(told[1])):
                if ticked:
                    owed.pop(_same(item), None)
                else:
                    owed.setdefault(_same(item), item)
    return tuple(owed.values())[-MAX_OPEN:]


def _boxes(text: str) -> Iterator[tuple[bool, str]]:
    for found in _BOX.finditer(text):
        yield found["mark"] != " ", found["item"].rstrip()
    for found in _TODO.finditer(text):
        yield False, found["item"].rstrip()


def _same(item: str) -> str:
    return " ".join(item.casefold().split())


def extract(messages: Sequence[ModelMessage]) -> Segments:
    """Return what plain rules find in the messages."""
    asked = [words for words in _words(messages, UserPromptPart) if words.strip()]
    said = [sentence for words in _words(messages, TextPart) for sentence in _sentences(words)]
    rules = [sentence for words in asked for sentence in _sentences(words) if _RULE.search(sentence)]
    returns = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    results = [(part.tool_name, _ends(part.model_response_str()).strip()) for part in returns]
    states = [f"{name}: {_state(text)}" for name, text in results if text]
    ends = [sentences[-1] for words in _words(messages, TextPart) if (sentences := _sentences(words))]
    done = _picked(said, _DONE)
    failed = [f"{name}: {line}" for name, text in results for line in _picked(text.splitlines(), _BLOCKED)[-1:]]
    return Segments.model_validate({
        "task_overview": [*asked[:1], *(asked[-1:] if len(asked) > 1 else [])],
        "key_decisions": _picked(said + [s for words in asked for s in _sentences(words)], _DECISION)[-_MOST:],
        "progress": [*(done or ends)[-_MOST:], *states[-_MOST:]],
        "blockers": [*_picked(said, _BLOCKED)[-_MOST // 2 :], *failed[-_MOST // 2 :]],
        "context": rules[-_MOST:],
        "next_steps": [*_picked(said, _NEXT)[-_MOST:], *(end for end in ends[-1:] if end.endswith("?"))],
        "metadata": facts(messages),
    })  # fmt: skip


def facts(messages: Sequence[ModelMessage]) -> list[str]:
    """Return what needs no judgement: files and addresses touched, tools called."""
    calls = [part for message in messages for part in message.parts if isinstance(part, ToolCallPart)]
    words = [_ends(part.args_as_json_str()) for part in calls] + [_ends(text) for text in _words(messages, TextPart)]
    files = dict.fromkeys(name for text in words for name in _FILE.findall(_URL.sub(" ", text)))
    links = dict.fromkeys(link for text in words for link in _URL.findall(text))
    told = []
    if files:
        told.append(f"files: {', '.join([*files][-_MOST_FILES:])}")
    if links:
        told.append(f"addresses: {', '.join([*links][-_MOST:])}")
    if calls:
        counts = Counter(part.tool_name for part in calls)
        told.append(f"tools: {', '.join(f'{name} x{count}' for name, count in counts.most_common(_MOST))}")
    return told


def _words(messages: Sequence[ModelMessage], kind: type[TextPart | UserPromptPart]) -> list[str]:
    parts = (part for message in messages for part in message.parts if isinstance(part, kind))
    return [_ends(told[1]) for part in parts if (told := tell_part(part)) is not None]


def _ends(text: str) -> str:
    half = LONGEST_READ // 2
    return text if len(text) <= LONGEST_READ else f"{text[:half]}\n{text[-half:]}"


def _sentences(text: str) -> list[str]:
    return [sentence for cut in _SENTENCE.split(text) if len(sentence := cut.strip(" \t-*#>")) > 3]  # noqa: PLR2004 shorter says nothing


def _picked(sentences: Iterable[str], cue: re.Pattern[str]) -> list[str]:
    return list(dict.fromkeys(sentence.strip() for sentence in sentences if cue.search(sentence)))


def _state(text: str) -> str:
    """Return a result's line that says most: of a failure the last, else the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if _BLOCKED.search(line)), lines[0])[:160] if lines else ""
