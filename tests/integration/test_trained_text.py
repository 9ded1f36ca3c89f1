"""What is trained is what the engine renders: the trainer's text against the real engine's, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine_alone import EngineAlone, Model, open_engine
from loopbox_trainer.chat_format import STOP, TEMPLATE, Call, Message, answer_text, preface, prompt, turns
from loopd.template import chat_format
from tiny_gguf import make_tiny_gguf

_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
_WORD = st.text("abcdefgh_<>&", min_size=1, max_size=8)
_PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
_JSON = st.recursive(
    _PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3), max_leaves=6
)
_CALLS = st.builds(Call, _WORD, st.dictionaries(_TEXT, _JSON, max_size=4))
_SAID = st.builds(Message, st.sampled_from(["user", "tool", "assistant", "system"]), _TEXT)
_CALLED = st.builds(lambda text, calls: Message("assistant", text, tuple(calls)), _TEXT, st.lists(_CALLS, max_size=3))
_KEYWORDS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", "integer", "array", ["string"], ["string", "null"]]),
        "description": _TEXT,
        "enum": st.lists(_PLAIN, max_size=3),
        "items": st.dictionaries(_WORD, _JSON, max_size=2),
        "default": _JSON,
        "maxLength": st.integers(0, 9),
        "required": st.lists(_WORD, max_size=2),
        "title": _TEXT,
    },
)
_PROPERTY = st.recursive(
    _KEYWORDS,
    lambda inner: st.builds(
        lambda told, key, more: {**told, key: more if key == "properties" else list(more.values())},
        _KEYWORDS,
        st.sampled_from(["properties", "anyOf"]),
        st.dictionaries(_WORD, inner, min_size=1, max_size=2),
    ),
    max_leaves=4,
)
_TOOL = st.fixed_dictionaries(
    {"name": _WORD, "description": _TEXT},
    optional={
        "parameters": st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(_TEXT, _PROPERTY, max_size=3)},
            optional={
                "required": st.lists(_WORD, max_size=3),
                "additionalProperties": st.just(False),
                "$defs": st.dictionaries(_WORD, _JSON, max_size=2),
            },
        )
    },
)


def body(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> dict[str, Any]:  # Any: JSON
    """Return the engine's request for a conversation."""
    told = [
        {
            "role": one.role,
            "content": one.content,
            "tool_calls": [{"function": {"name": call.name, "arguments": call.arguments}} for call in one.calls],
        }
        for one in messages
    ]
    return {"messages": told, "tools": [{"type": "function", "function": tool} for tool in tools]}


def test_the_template_is_the_one_that_loopd_gives_to_chatml_models() -> None:
    known = chat_format("<|im_start|>")
    assert known.template == TEMPLATE
    assert known.stop == STOP


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineAlone]:
    place = tmp_path_factory.mktemp("engine")
    with open_engine(place / "models", Model(make_tiny_gguf(place / "tiny.gguf"), TEMPLATE)) as opened:
        yield opened


def _lost(messages: Sequence[Message]) -> bool:
    """Whether the engine would lose calls: an assistant's with calls right after another one."""
    return any(a.role == b.role == "assistant" and b.calls for a, b in pairwise(messages))


@pytest.mark.docker
@given(st.lists(_SAID | _CALLED, min_size=1, max_size=6).filter(lambda m: not _lost(m)), st.lists(_TOOL, max_size=3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_the_engine_renders_what_is_trained(
    engine: EngineAlone, messages: list[Message], tools: list[dict[str, Any]]
) -> None:
    assert prompt(messages, tools) == engine.rendered(body(messages, tools))


@pytest.mark.docker
def test_what_is_learnt_stands_between_two_of_the_engines_prompts(engine: EngineAlone) -> None:
    """Each learnt span begins where the engine lets the model begin, and its history shows it as it was written."""
    tool = {"name": "bash", "description": "Run.", "parameters": {"type": "object", "properties": {}}}
    said = [
        Message("system", "Be brief."),
        Message("user", "List files & sizes"),
        Message("assistant", "", (Call("bash", {"command": "ls -l > out && cat out"}),)),
        Message("tool", "a 1\nb 2"),
        Message("assistant", "There are two."),
        Message("user", "Thanks"),
    ]
    text = preface(said, [tool])
    for span in turns(said):
        if span.learnt:
            assert span.text.endswith(STOP[0])
        text += span.text
    for place, message in enumerate(said):
        if message.role != "assistant":
            continue
        asked = engine.rendered(body(said[:place], [tool]))
        assert text.startswith(asked + answer_text(message) + STOP[0])
