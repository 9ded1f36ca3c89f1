"""Counting: the estimate lies above the engine's figure, learns, and takes the engine's own where it has it."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images.agent.tests.histories import conversation, truth
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from loopbox_agent.tokens import MAX_METERS, STALE, ContextFullError, Meter, Meters, fits, texts_of, weigh

#: Texts of many kinds with what an engine counted of each prompt (SmolLM2's tokenizer, chat template and all).
COUNTED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("token_counts.json").read_text())  # Any: JSON


def estimate(meter: Meter, texts: list[str]) -> int:
    return meter.messages([ModelRequest(parts=[UserPromptPart(text)]) for text in texts]) + round(meter.rates[-1])


@pytest.mark.parametrize("counted", COUNTED, ids=lambda counted: counted["kind"])
def test_before_anything_is_learnt_estimates_lie_above(counted: dict[str, Any]) -> None:  # Any: JSON
    ratio = estimate(Meter(), counted["texts"]) / counted["tokens"]
    assert 0.97 <= ratio <= 2.0


@given(seed=st.integers(0, 100_000))
@settings(deadline=None, max_examples=100)
def test_a_growing_conversation_is_never_far_below(seed: int) -> None:
    """Each turn adds a text of another kind; the whole is estimated before it is counted."""
    rng = random.Random(seed)  # noqa: S311 made-up turns
    meter, texts, tokens = Meter(), [], 0
    for turn in range(40):
        counted = rng.choice(COUNTED[:18])
        texts.append(counted["texts"][0])
        tokens += counted["tokens"] - 9
        if turn > 2:
            assert 0.9 <= estimate(meter, texts) / (tokens + 9) <= 1.8
        meter.observe(texts, tokens + 9)


def test_estimates_come_near_with_use() -> None:
    meter, history = Meter(), conversation(1, 20_000).messages
    for end in range(1, len(history), 2):
        meter.observe([text for message in history[:end] for text in texts_of(message)], truth(history[:end]))
    assert 1.0 <= (meter.messages(history) + meter.rates[-1]) / truth(history) <= 1.12


@given(st.text(max_size=200), st.text(max_size=200), st.integers(0, 10_000))
@settings(deadline=None)
def test_estimates_grow_with_the_text_whatever_was_learnt(text: str, more: str, counted: int) -> None:
    meter = Meter()
    meter.observe([text], counted)
    assert 0 <= meter.text(text) <= meter.text(text + more) + 1
    assert meter.text(text) <= 5 * len(text.encode("utf-8", "surrogatepass")) + 60
    assert sum(weigh(text)) <= len(text.encode("utf-8", "surrogatepass"))


def test_a_count_that_leaves_out_the_cache_teaches_nothing() -> None:
    meter = Meter()
    meter.observe(["word " * 1000], 3)
    assert meter.observed == 0


def test_the_engines_own_figures_are_taken_where_it_gave_them() -> None:
    asked: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart("Hi")], instructions="Be kind.")]
    answered = ModelResponse(parts=[TextPart("Hello")], usage=RequestUsage(input_tokens=100, output_tokens=20))
    meter, new = Meter(), ModelRequest(parts=[UserPromptPart("And now?")])
    tool = ToolDefinition(name="look", description="Look.", parameters_json_schema={"type": "object", "properties": {}})
    assert meter.count([*asked, answered, new], [tool]) == 120 + meter.messages([new])
    stale = ModelResponse(parts=answered.parts, usage=answered.usage, metadata={STALE: True})
    assert meter.count([*asked, stale, new], [tool]) < 120
    assert meter.count(asked, [tool]) > meter.count(asked) > meter.messages(asked)


def test_fits_says_how_full_it_is() -> None:
    messages: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart("word " * 400)])]
    room = fits(Meter(), messages, num_ctx=2048, reserve=512)
    assert (room.ok, room.limit) == (True, 1536)
    assert 0 < room.part < 1
    assert not fits(Meter(), messages, num_ctx=512, reserve=256).ok
    with pytest.raises(ContextFullError, match="max_output_tokens"):
        fits(Meter(), messages, num_ctx=512, reserve=512)


def test_meters_are_few() -> None:
    meters = Meters()
    first = meters.of("agent")
    assert meters.of("agent") is first
    for number in range(MAX_METERS):
        meters.of(f"m{number}")
    assert meters.of("agent") is not first


def test_weighing_is_fast() -> None:
    """Guards the turn's time: a prompt of 100 KB is weighed in milliseconds."""
    text = "def plan(history): return 1  # 这个\n" * 2700
    begun = time.perf_counter()
    for _ in range(10):
        weigh(text)
    assert (time.perf_counter() - begun) / 10 < 0.02
