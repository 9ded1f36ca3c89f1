"""The starter's rows: over the tools that there are, and nothing that is asked in the figures was trained."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any, cast

from dataset import OWN, held_out_prompts, training_rows, unseen_prompts
from intents import INTENTS, OTHERS, UNSEEN
from loopbox_toolrunner.settings import Settings
from loopbox_toolrunner.tool import Seat
from loopbox_toolrunner.tools import Toolbox
from loopbox_trainer.chat_format import message_of, preface, turns


def test_the_tools_are_those_of_the_sandbox() -> None:
    told = SimpleNamespace(
        settings=Settings(), jail=None, runner=None, files=None, egress=SimpleNamespace(granted=False)
    )
    tools = Toolbox(cast("Seat", told)).tools()
    assert list(OWN.values()) == [
        {"name": one.name, "description": one.description, "parameters": one.input_schema} for one in tools
    ]


def test_no_wording_that_is_asked_was_trained() -> None:
    def plain(text: str) -> str:
        return re.sub(r"\W+", " ", text).strip().lower()

    trained = {plain(wording) for intent in INTENTS for wording in intent.wordings}
    assert not trained & {plain(wording) for intent in INTENTS for wording in intent.held_out}
    assert not {one[0] for one in OTHERS} & {one[0] for one in UNSEEN}
    said = {
        message["content"] for row in training_rows(2200, 1) for message in row["messages"] if message["role"] == "user"
    }
    assert not said & {
        prompt["messages"][0]["content"] for prompt in (*held_out_prompts(100, 7), *unseen_prompts(40, 7))
    }


def test_the_rows_are_the_same_each_time_and_can_be_written_for_the_model() -> None:
    rows: list[dict[str, Any]] = training_rows(300, 1)  # Any: JSON
    assert json.dumps(rows) == json.dumps(training_rows(300, 1))
    for row in rows:
        messages = [message_of(one) for one in row["messages"]]
        assert preface(messages, row["tools"])
        assert any(span.learnt for span in turns(messages))
