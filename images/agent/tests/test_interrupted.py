"""The turn that is made of the journal of a run that was broken off."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequest, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.messages import ToolReturnPart as Return

from loopbox_agent.call_journal import Call, Journaled
from loopbox_agent.interrupted import (
    ARGUMENT_BYTES,
    LEAST_RESULT_BYTES,
    MOST_CALLS,
    RESULT_BYTES,
    UNKNOWN,
    interrupted_turn,
    told,
)
from loopbox_agent.turn_end import close_turn

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "ghp_16C7e42F292c6912E7710c838347Ae178B4a"
SLACK = 200  # of a cut's own words, and quotes

texts = st.one_of(
    st.text(max_size=40), st.integers(1, 30_000).map(lambda n: "long " * (n // 5)), st.just(f"key {SECRET}")
)
values: st.SearchStrategy[JsonValue] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=6,
)
ENDED: st.SearchStrategy[JsonValue] = texts.map(lambda text: {"text": text})


@st.composite
def journals(draw: st.DrawFn) -> Journaled:
    made = []
    for number in range(draw(st.integers(0, MOST_CALLS))):
        ended = draw(st.booleans())
        made.append(
            Call(
                run_id="run_1",
                call_id=f"call_{number}",
                tool=draw(st.sampled_from(("bash", "write_file"))),
                effect="write",
                arguments=draw(st.dictionaries(st.text(max_size=8), values, max_size=3)),
                result=draw(st.one_of(values, ENDED)) if ended else None,
                is_error=draw(st.booleans()),
                begun_at=NOW + timedelta(seconds=number),
                finished_at=NOW + timedelta(seconds=number + 1) if ended else None,
            )
        )
    unknown = sum(call.finished_at is None for call in made)
    return Journaled(made, len(made) - unknown + draw(st.integers(0, 5)), unknown + draw(st.integers(0, 5)))


@given(st.text(min_size=1, max_size=200), journals())
def test_every_call_is_in_the_turn_with_what_became_of_it(instruction: str, journaled: Journaled) -> None:
    turn = interrupted_turn(instruction, journaled)
    asked = [part for message in turn if isinstance(message, ModelResponse) for part in message.tool_calls]
    answers = [part for message in turn for part in message.parts if isinstance(part, Return)]
    assert [(part.tool_name, part.tool_call_id) for part in asked] == [(c.tool, c.call_id) for c in journaled.calls]
    assert [(part.tool_name, part.tool_call_id) for part in answers] == [(c.tool, c.call_id) for c in journaled.calls]
    for call, answer in zip(journaled.calls, answers, strict=True):
        assert (answer.content == UNKNOWN) is (call.finished_at is None)
    assert isinstance(turn[0], ModelRequest)
    assert turn[-1].parts == [TextPart(f"[{told(journaled)}]")]
    assert close_turn(turn, instruction, "") == turn  # nothing is missing in it
    assert [type(message) for message in turn[::2]] == [ModelRequest] * (len(turn) // 2)  # they take turns


@given(journals())
def test_the_turn_is_masked_bounded_and_can_be_stored(journaled: Journaled) -> None:
    turn = interrupted_turn(f"Use {SECRET}.", journaled)
    stored = ModelMessagesTypeAdapter.dump_json(turn)
    assert SECRET.encode() not in stored
    assert len(ModelMessagesTypeAdapter.validate_json(stored)) == len(turn)
    room = max(LEAST_RESULT_BYTES, RESULT_BYTES // max(1, len(journaled.calls)))
    for message in turn:
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                assert len(json.dumps(part.args, ensure_ascii=False).encode()) <= ARGUMENT_BYTES + SLACK
            elif isinstance(part, Return):
                assert len(str(part.content).encode()) <= room + SLACK


def test_calls_are_counted_in_words() -> None:
    call = Call("run_1", "call_1", "bash", "write", {}, None, is_error=False, begun_at=NOW, finished_at=None)
    words = told(Journaled([call], finished=2, unknown=1))
    assert "2 had ended" in words
    assert "1 were begun and may have been done; they were not run again" in words
    assert "2 of them not shown" in words
    assert "begun" not in told(Journaled([], finished=0, unknown=0))
