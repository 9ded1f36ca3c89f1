"""examples: owns turning rows into tokens: what is read, what is learnt, and which rows are left out and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loopbox_trainer.chat_format import Tokenizer, UnfitError, encode, message_of, preface, turns
from loopbox_trainer.errors import TrainerError

LONGEST_ROW: Final = 256 << 10  #: bytes
MOST_MESSAGES: Final = 64
MOST_TOOLS: Final = 64


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation as tokens. The prefix, its system turn, is kept apart since many conversations share one."""

    prefix: tuple[int, ...]
    body: tuple[int, ...]
    labels: tuple[int, ...]  #: of the body: the token, or chat_format.IGNORED


@dataclass(slots=True)
class Reading:
    """What was read."""

    examples: list[Example] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  #: reason to rows


def read_examples(paths: Iterable[Path], tokenizer: Tokenizer, *, longest: int, most: int) -> Reading:
    """Read JSONL files. longest: tokens of an example. most: rows. Raises TrainerError "data_unreadable"."""
    reading = Reading()
    prefixes: dict[str, tuple[int, ...]] = {}
    for number, line in enumerate(_lines(paths)):
        if number >= most:
            reading.left_out["beyond the most rows"] += 1
            continue
        try:
            example = _example(line, tokenizer, prefixes)
        except UnfitError as error:
            reading.left_out[str(error)[:80]] += 1
            continue
        if len(example.prefix) + len(example.body) > longest:
            reading.left_out["longer than a sequence"] += 1
        elif all(label < 0 for label in example.labels):
            reading.left_out["nothing to learn in it"] += 1
        else:
            reading.examples.append(example)
    return reading


def _lines(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        try:
            with path.open("rb") as file:
                while line := file.readline(LONGEST_ROW + 1):
                    if line.strip():
                        yield line
        except OSError as error:
            raise TrainerError(
                "data_unreadable", f"{path} cannot be read: {error.strerror}. Nothing was trained."
            ) from error


def _example(line: bytes, tokenizer: Tokenizer, prefixes: dict[str, tuple[int, ...]]) -> Example:
    if len(line) > LONGEST_ROW:
        raise UnfitError("longer than a row may be")
    try:
        row: Any = json.loads(line)  # Any: JSON
        messages = [message_of(one) for one in row["messages"]]
        tools = row.get("tools") or []
    except UnfitError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnfitError("no row of the right form") from error
    if not isinstance(tools, list) or len(messages) > MOST_MESSAGES or len(tools) > MOST_TOOLS:
        raise UnfitError("too many messages or tools")
    try:
        text = preface(messages, tools)
    except (KeyError, TypeError, AttributeError) as error:
        raise UnfitError("a tool of another form") from error
    if text not in prefixes:
        prefixes[text] = tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()
    body, labels = encode(list(turns(messages)), tokenizer)
    return Example(prefixes[text], tuple(body), tuple(labels))
