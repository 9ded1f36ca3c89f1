"""The turns of a run with its model: calls side by side, steering, breaks, empty answers, limits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from images.agent.tests.talking import Made, Speaking, dialogue, saying
from pydantic import JsonValue
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart

from loopbox_agent.arguments import ArgumentsInvalidError
from loopbox_agent.forced import ModelOutputInvalidError
from loopbox_agent.tool_spec import ToolSpec

SCHEMA: Mapping[str, JsonValue] = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "line": {"type": "integer"}},
    "required": ["path", "line"],
}
EDIT = ToolSpec("edit", "Edit.", SCHEMA)
ANY = ToolSpec("look", "Look.", {"type": "object"})


def asks(*calls: tuple[str, Any]) -> ModelResponse:  # Any: JSON
    return ModelResponse([ToolCallPart(name, given, f"c{place}") for place, (name, given) in enumerate(calls)])


def returned(messages: Sequence[ModelMessage]) -> list[ToolReturnPart]:
    return [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]


def check_whole(messages: Sequence[ModelMessage]) -> None:
    """Requests and answers take turns, and every call has its answer in the next request."""
    kinds = [type(message) for message in messages]
    assert kinds == [ModelRequest, ModelResponse] * (len(kinds) // 2)
    for answer, request in zip(messages[1::2], messages[2::2], strict=False):
        called = [part.tool_call_id for part in answer.parts if isinstance(part, ToolCallPart)]
        assert [part.tool_call_id for part in request.parts if isinstance(part, ToolReturnPart)] == called


async def test_wrong_arguments_are_told_once_then_end_the_run() -> None:
    made = Made()
    given = [{"line": "x"}, "{'path': 'a', 'line': '3'"]
    talk = dialogue(saying(*(asks(("edit", one)) for one in given), "done"), made, [EDIT])
    assert await talk.go("Go") == "done"
    assert made.calls == [("edit", {"path": "a", "line": 3})]
    first, second = returned(talk.fresh)
    assert (first.outcome, second.outcome) == ("retried", "success")
    assert "line" in str(first.content)
    mended = [part.args for message in talk.fresh for part in message.parts if isinstance(part, ToolCallPart)]
    assert mended[-1] == {"path": "a", "line": 3}  # the engine gets an object back
    check_whole(talk.fresh)

    talk = dialogue(saying(asks(("edit", {"line": 1})), asks(("edit", "rubbish"), ("look", {}))), made, [EDIT, ANY])
    with pytest.raises(ArgumentsInvalidError):
        await talk.go("Go")
    assert len(made.calls) == 1  # what was asked for beside it was not made either


async def test_a_call_that_fits_forgives_the_one_before() -> None:
    good, bad = asks(("edit", {"path": "a", "line": 1})), asks(("edit", {}))
    talk = dialogue(saying(bad, good, bad, good, "done"), Made(), [EDIT])
    assert await talk.go("Go") == "done"


async def test_a_tool_that_is_not_there_is_told_with_those_that_are() -> None:
    made = Made()
    talk = dialogue(saying(asks(("nope", {}), ("look", {})), "done"), made, [ANY])
    assert await talk.go("Go") == "done"
    assert "Tools: look" in str(returned(talk.fresh)[0].content)
    assert made.calls == [("look", {})]
    check_whole(talk.fresh)
    with pytest.raises(ModelOutputInvalidError, match="no tool"):
        await dialogue(saying(asks(("nope", {})))).go("Go")  # also where none was offered


async def test_calls_of_one_answer_are_made_at_once_and_answered_in_order() -> None:
    here, both = 0, asyncio.Event()

    async def meet(n: JsonValue) -> str:
        nonlocal here
        here += 1
        if here == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 5)  # comes only when both run at once
        return f"saw {n}"

    made = Made(lambda _name, arguments: meet(arguments["n"]))
    talk = dialogue(saying(asks(("look", {"n": 1}), ("look", {"n": 2})), "done"), made, [ANY])
    assert await talk.go("Go") == "done"
    assert [part.content for part in returned(talk.fresh)] == ["saw 1", "saw 2"]


async def test_a_call_that_breaks_ends_the_others_and_is_told_as_itself() -> None:
    left = asyncio.Event()

    async def call(n: JsonValue) -> str:
        if n:
            raise ConnectionError("gone")
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return ""

    made = Made(lambda _name, arguments: call(arguments["n"]))
    with pytest.raises(ConnectionError, match="gone"):
        await dialogue(saying(asks(("look", {"n": 0}), ("look", {"n": 1}))), made, [ANY]).go("Go")
    assert left.is_set()


async def test_what_is_heard_reaches_the_next_turn_and_keeps_the_run_from_ending() -> None:
    heard: list[Any] = []
    seen: list[list[str]] = []

    def answer(messages: Sequence[ModelMessage]) -> ModelResponse:
        seen.append([str(part.content) for part in messages[-1].parts if hasattr(part, "content")])
        if len(seen) == 1:
            heard[0]("In French, please.")
        return ModelResponse([TextPart(f"answer {len(seen)}")])

    reminders = iter(["", "Two minutes left."])
    talk = dialogue(Speaking(answer), listen=heard.append, remind=lambda: next(reminders))
    assert await talk.go("Hello") == "answer 2"
    assert seen == [["Hello"], ["In French, please.", "Two minutes left."]]
    assert heard[-1] is None
    check_whole(talk.fresh)


async def test_an_empty_answer_is_asked_for_again_twice() -> None:
    empty = ModelResponse([])
    talk = dialogue(saying(empty, empty, "words"))
    assert await talk.go("Hello") == "words"
    assert talk.usage.requests == 3
    with pytest.raises(ModelOutputInvalidError, match="nothing in them"):
        await dialogue(saying(empty)).go("Hello")


async def test_a_model_that_never_answers_is_stopped() -> None:
    made = Made()
    with pytest.raises(ModelOutputInvalidError, match="asked 4 times"):
        await dialogue(saying(asks(("look", {}))), made, [ANY], most_turns=4).go("Go")
    assert len(made.calls) == 4


async def test_what_a_dialogue_adds_is_kept_when_it_is_cancelled() -> None:
    hanging = asyncio.Event()

    async def hang() -> str:
        hanging.set()
        await asyncio.Event().wait()
        return ""

    talk = dialogue(saying(asks(("look", {}))), Made(lambda _name, _arguments: hang()), [ANY])
    before: list[ModelMessage] = [ModelRequest.user_text_prompt("old"), ModelResponse([TextPart("yes")])]
    task = asyncio.create_task(talk.go("Go", before))
    await asyncio.wait_for(hanging.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [type(message) for message in talk.fresh] == [ModelRequest, ModelResponse]
    assert talk.history == [*before, *talk.fresh]
