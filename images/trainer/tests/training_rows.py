"""training_rows: rows for the tests of curation."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from loopbox_trainer.rows import Call, Message, Row, Tool

PATH = {
    "type": "object",
    "properties": {"path": {"type": "string"}},
    "required": ["path"],
    "additionalProperties": False,
}
READ = Tool("read_file", "Read lines of a text file.", PATH)
LIST = Tool("list_files", "List a directory.", PATH)
TOOLS = (READ, LIST)

WORDS = ("alpha", "beta", "gamma", "delta", "count", "the", "lines", "of", "notes", "please", "show", "files", "now")
words = st.sampled_from(WORDS)
sentences = st.lists(words, min_size=1, max_size=12).map(" ".join)


def call(path: str = "a.txt", name: str = "read_file") -> Message:
    return Message("assistant", "", (Call(name, {"path": path}),))


def result(text: str = "three lines", name: str = "read_file") -> Message:
    return Message("tool", text, name=name)


def user(text: str = "show a.txt") -> Message:
    return Message("user", text)


def say(text: str = "It has three lines.") -> Message:
    return Message("assistant", text)


def row(*messages: Message, **more: Any) -> Row:  # Any: Row's own fields
    return Row(messages=messages or (user(), call(), result(), say()), tools=more.pop("tools", TOOLS), **more)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """A row that is worth learning from; many are alike."""
    messages = [user(draw(sentences))]
    if draw(st.booleans()):
        messages += [call(draw(words)), result(draw(sentences))]
    messages.append(say(draw(sentences)))
    return row(*messages, conversation=draw(st.sampled_from(["", "c1", "c2", "c3", "c4"])))
