from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images.trainer.tests.training_rows import TOOLS
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    RetryFeedbackPart,
    RetryInfo,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from loopbox_trainer.dedup import MinHash, said
from loopbox_trainer.fit import Toolsets
from loopbox_trainer.interactions import outcome_of
from loopbox_trainer.masking import Masker
from loopbox_trainer.mining import failed_results
from loopbox_trainer.normalise import normalise
from loopbox_trainer.quality import Bounds, unworthy
from loopbox_trainer.rows import Call, Message, RowError, encode

CALL = Message("assistant", "", (Call("read_file", {"path": "a.txt"}),))
WANTED = (Message("user", "show a.txt"), CALL, Message("tool", "three", name="read_file"), Message("assistant", "3"))

OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "read_file", "arguments": '{"path": "a.txt"}'}}
OPENAI = {
    "id": 7,
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "show a.txt"}]},
        {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "three"},
        {"role": "assistant", "content": "3"},
    ],
    "tools": [{"type": "function", "function": {"name": "read_file", "description": "d", "parameters": {}}}],
}
OLLAMA = {
    "request": {
        "model": "m",
        "messages": [
            {"role": "user", "content": "show a.txt"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "read_file", "arguments": {"path": "a.txt"}}}],
            },
            {"role": "tool", "tool_name": "read_file", "content": "three"},
        ],
    },
    "response": {"message": {"role": "assistant", "content": "3"}, "done": True},
}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "show a.txt"},
        {"from": "function_call", "value": '{"name": "read_file", "arguments": {"path": "a.txt"}}'},
        {"from": "observation", "value": "three"},
        {"from": "gpt", "value": "3"},
    ],
    "tools": '[{"name": "read_file"}]',
}
IN_TEXT = {
    "conversations": [
        SHAREGPT["conversations"][0],
        {"from": "gpt", "value": '<tool_call>\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n</tool_call>'},
        {"from": "tool", "value": "three"},
        SHAREGPT["conversations"][3],
    ]
}


def recorded(*messages: ModelMessage, **more: Any) -> dict[str, Any]:
    return {"messages": json.loads(ModelMessagesTypeAdapter.dump_json(list(messages))), **more}


INTERACTION = recorded(
    ModelRequest([UserPromptPart("show a.txt")]),
    ModelResponse([ThinkingPart("hm"), ToolCallPart("read_file", '{"path": "a.txt"}', "c1")]),
    ModelRequest([ToolReturnPart("read_file", {"text": "three"}, "c1")]),
    ModelResponse([TextPart("3")]),
    thread_id="thread_1",
    run_id="run_1",
    outcome="completed",
    rating=None,
    better="",
)


@pytest.mark.parametrize("record", [OPENAI, OLLAMA, SHAREGPT, IN_TEXT, INTERACTION])
def test_every_form_with_calls_becomes_the_one(record: dict[str, Any]) -> None:
    assert normalise(record).messages == WANTED


@pytest.mark.parametrize(
    ("record", "asked", "answered"),
    [
        ({"instruction": "Add", "input": "1 2", "output": "3"}, "Add\n\n1 2", "3"),
        ({"prompt": "Add", "completion": "3"}, "Add", "3"),
        (
            {"prompt": [{"role": "user", "content": "Add"}], "completion": [{"role": "assistant", "content": "3"}]},
            "Add",
            "3",
        ),
        ({"question": "Add", "answer": "1+2=<<1+2=3>>3\n#### 3"}, "Add", "1+2=3\nThe answer is 3."),
    ],
)
def test_every_form_of_two_turns_becomes_the_one(record: dict[str, Any], asked: str, answered: str) -> None:
    assert normalise(record).messages == (Message("user", asked), Message("assistant", answered))


def test_tools_come_from_the_record_or_else_from_outside() -> None:
    assert [tool.name for tool in normalise(OPENAI, tools=TOOLS).tools] == ["read_file"]
    assert normalise(INTERACTION, tools=TOOLS).tools == TOOLS


def test_an_interaction_keeps_who_it_was_and_that_it_went_well() -> None:
    row = normalise(INTERACTION)
    assert (row.conversation, row.outcome, row.meta) == ("thread_1", "good", {"origin": "run_1"})


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"outcome": "model_output_invalid"}, "bad"),
        ({"outcome": "cancelled"}, "unknown"),
        ({"outcome": "engine_down"}, "unknown"),
        ({"rating": "bad"}, "bad"),
        ({"outcome": "cancelled", "rating": "good"}, "good"),
        ({"failed_calls": ["c1"]}, "unknown"),
    ],
)
def test_a_persons_word_goes_before_the_way_it_ended(change: dict[str, Any], outcome: str) -> None:
    assert normalise(INTERACTION | change).outcome == outcome


def test_an_answer_alone_proves_nothing() -> None:
    assert outcome_of(None, "completed", list(WANTED[:1] + WANTED[3:]), []) == "unknown"


@pytest.mark.parametrize("told", [{"failed_calls": ["c1"]}, {}])
def test_failed_calls_are_known_by_record_and_by_outcome(told: dict[str, Any]) -> None:
    back = ToolReturnPart("read_file", "no", "c1", outcome="success" if told else "retried")
    row = normalise(
        recorded(
            ModelRequest([UserPromptPart("x")]),
            ModelResponse([ToolCallPart("read_file", {}, "c1")]),
            ModelRequest([back]),
            **told,
        )
    )
    assert row.meta["failed"] == [2]


def test_an_answer_that_the_agents_check_refused_is_taken_back() -> None:
    record = recorded(
        ModelRequest([UserPromptPart("x")], instructions="rules"),
        ModelResponse([TextPart("no JSON")]),
        ModelRequest([RetryFeedbackPart("give JSON", retry=RetryInfo("no_output", attempt=1))], instructions="rules"),
        ModelResponse([TextPart("{}")]),
    )
    assert [(m.role, m.content) for m in normalise(record).messages] == [
        ("system", "rules"),
        ("user", "x"),
        ("assistant", "{}"),
    ]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "not_an_object"),
        ({"text": "x"}, "unknown_form"),
        ({"messages": [{"role": "robot", "content": ""}]}, "unknown_role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not_text"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]}]},
            "broken_json",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "[]"}}]}]},
            "broken_json",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "broken_call"),
        ({"messages": [{}]}, "not_a_row"),
        ({"instruction": 3, "output": "x"}, "not_text"),
        ({"conversations": [{"from": "gpt"}]}, ""),
        ({"messages": [{"kind": "request", "parts": [{"part_kind": "speech"}]}]}, "unknown_part"),
    ],
)
def test_what_cannot_be_said_here_is_refused_with_its_reason(record: object, reason: str) -> None:
    if not reason:
        assert normalise(record).messages[0].content == ""
        return
    with pytest.raises(RowError) as told:
        normalise(record)
    assert told.value.reason == reason


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [{"from": "gpt", "value": "<tool_call>" * 20_000}]},
        {"question": "x", "answer": "\n####" + " " * 200_000 + "\n" * 50_000},
        {"question": "x", "answer": "<<" * 100_000},
        {"messages": [{"role": "tool", "content": "[stderr] Error " * 15_000}]},
        {"messages": [{"role": "assistant", "content": '"name":' * 30_000}]},
        {"messages": [{"role": "assistant", "content": "I'm sorry, I can't " * 10_000}]},
        {"messages": [{"role": "assistant", "content": "key" * 80_000}]},
        {"messages": [{"role": "assistant", "content": "A1" * 100_000}]},
        {"messages": [{"role": "assistant", "content": "I can't " + "help " * 40_000}]},
        {"messages": [{"role": "assistant", "content": "a/b.c-d:e_" * 20_000}]},
        {"messages": [{"role": "assistant", "content": "1 2.3-4 " * 30_000}]},
        {"messages": [{"role": "assistant", "content": "\ufffe<|" * 60_000}]},
    ],
)
def test_no_text_takes_long_to_read(record: dict[str, Any]) -> None:
    began = time.process_time()
    try:
        row = normalise(record)
    except RowError:
        pass
    else:
        failed_results(row)
        row = msgspec.structs.replace(row, messages=(Message("user", "x"), *row.messages))
        unworthy(row, Toolsets().of(row.tools), Bounds(most_characters=1 << 20))
        Masker().row(row)
        MinHash().signatures([said(row.messages)])
    assert time.process_time() - began < 10  # seconds; a pattern that backtracks takes hours


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.text(max_size=5)
    | st.sampled_from(["user", "text", "tool-call", "request"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "from",
                    "value",
                    "parts",
                    "part_kind",
                    "kind",
                    "tool_name",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.sampled_from(["messages", "conversations", "instruction", "question", "prompt", "request"]),
    json_values,
    json_values,
)
def test_any_json_is_a_row_or_a_row_error(field: str, value: object, tools: object) -> None:
    try:
        encode(normalise({field: value, "tools": tools, "completion": value, "output": value}))
    except RowError as error:
        assert error.reason  # noqa: PT017 either way is fine
