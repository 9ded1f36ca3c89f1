from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images.trainer.tests.test_curate import quiet
from pydantic import BaseModel

from loopbox_agent.tool_spec import read_listing
from loopbox_toolrunner import arguments, tools
from loopbox_trainer.chat_format import message_of, preface, turns
from loopbox_trainer.curate import Places, run
from loopbox_trainer.curate_spec import CurateSpec
from loopbox_trainer.fit import Toolsets
from loopbox_trainer.quality import Bounds, unworthy
from loopbox_trainer.rows import Row, Tool, encode, parse_row
from loopbox_trainer.synthetic import APPLIANCE, made_up
from loopbox_trainer.wordings import TALK, TALK_HELD_OUT, TASKS

OWN = {tool.name for tool in APPLIANCE}
THEIRS: dict[str, type[BaseModel]] = {
    "bash": arguments.Bash,
    "python": arguments.Code,
    "javascript": arguments.Code,
    "read_file": arguments.ReadFile,
    "write_file": arguments.WriteFile,
    "edit_file": arguments.EditFile,
    "list_files": arguments.ListFiles,
    "search_files": arguments.SearchFiles,
    "glob": arguments.FindFiles,
}


def made(rows: int = 600, held_out: int = 200, seed: int = 1) -> tuple[list[Row], list[Row]]:
    some = list(made_up(APPLIANCE, rows, held_out, seed))
    return some[:rows], some[rows:]


def called(some: list[Row]) -> set[str]:
    return {call.name for one in some for message in one.messages for call in message.tool_calls}


def test_the_appliances_tools_are_those_that_its_agent_tells_of() -> None:
    """Made anew from the tools' own code: whoever changes a tool writes appliance_tools.json anew."""
    source = Path(tools.__file__).read_text()
    texts = dict(re.findall(r'Row\("(\w+)", f?"([^"]+)"', source))
    told = [
        {
            "name": name,
            "description": texts[name].replace("{WHERE}", tools.WHERE),
            "inputSchema": arguments.schema_of(model, timeout_s=30, max_timeout_s=120),
        }
        for name, model in THEIRS.items()
    ]
    assert set(texts) == set(THEIRS)
    specs = read_listing(told, source="sandbox", kind="sandbox").tools
    assert [(one.name, one.description, dict(one.schema)) for one in specs] == [
        (one.name, one.description, one.parameters) for one in APPLIANCE
    ]


@settings(max_examples=5)
@given(st.integers(0, 2**31 - 1))
def test_every_row_is_worth_learning_and_made_again_by_its_seed(seed: int) -> None:
    train, test = made(120, 60, seed)
    assert (train, test) == made(120, 60, seed)
    sets = Toolsets()
    for one in train + test:
        assert unworthy(one, sets.of(one.tools), Bounds()) is None, one
        assert parse_row(encode(one)) == one


def test_what_is_held_out_shares_no_wording_and_no_made_up_tool_with_training() -> None:
    train, test = made()
    assert all(one.meta.get("held_out") for one in test)
    assert not any(one.meta.get("held_out") for one in train)
    assert not {one.messages[0].content for one in train} & {one.messages[0].content for one in test}
    offered = [{tool.name for one in some for tool in one.tools} - OWN for some in (train, test)]
    assert offered[0]
    assert offered[1]
    assert not offered[0] & offered[1]
    names = [
        {key for one in some for tool in one.tools if tool.name not in OWN for key in tool.parameters["properties"]}
        for some in (train, test)
    ]
    assert not names[0] & names[1]


def test_no_wording_stands_on_both_sides() -> None:
    for task in TASKS:
        assert not set(task.wordings) & set(task.held_out)
    wordings = [wording for task in TASKS for wording in (*task.wordings, *task.held_out)]
    assert [one for one, count in Counter(wordings).items() if count > 1] == []
    assert not {asked for asked, _ in TALK} & {asked for asked, _ in TALK_HELD_OUT}


def test_no_slot_is_left_empty_and_the_call_says_what_was_asked() -> None:
    train, test = made(2000, 500)
    for one in train + test:
        text = str(one.messages)
        assert not re.search(
            r"\{(?:file|dir|word2?|text|n|m|a|b|ext|stem|command|code|js|other|script|product|sum)\}", text
        )
        if one.meta["made_up"] == "composed":
            (call,) = one.messages[1].tool_calls
            for value in call.arguments.values():
                assert (
                    {True: "yes", False: "no"}.get(value, str(value)) in one.messages[0].content
                    if isinstance(value, bool)
                    else str(value) in one.messages[0].content
                )


def test_all_tools_and_all_kinds_occur() -> None:
    train, test = made()
    assert called(train) >= OWN
    assert called(test) >= OWN
    kinds = Counter(one.meta["made_up"] for one in train)
    assert set(kinds) == {"task", "parallel", "composed", "irrelevant", "talk"}
    assert min(kinds.values()) > 20
    assert any(len(one.messages[1].tool_calls) == 2 for one in train)


def test_given_tools_are_asked_for_by_their_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}},
        "required": ["query"],
    }
    odd = {"type": "object", "properties": {"x": {"type": "string", "enum": ["a"]}}, "required": ["x"]}
    given_tools = (Tool("recall", "Find facts. More.", schema), Tool("odd", "Odd.", odd))
    some = list(made_up(given_tools, 200, 0, 3))
    assert "recall" in called(some)
    assert "odd" not in called(some)
    assert not called(some) & OWN


def test_a_curation_of_made_up_rows_tests_with_held_out_ones(tmp_path: Path) -> None:
    places = Places(tmp_path / "job", tmp_path)
    places.job.mkdir()
    spec = CurateSpec.model_validate({"synthetic": {"rows": 800, "held_out": 300}, "test": 0.0, "seed": 5})
    told = run(spec, places, quiet)
    assert told["splits"]["test"]["rows"] > 200
    assert told["splits"]["train"]["rows"] > 600
    lines = (places.job / "out" / "test.jsonl").read_text().splitlines()
    assert all(json.loads(line)["meta"]["held_out"] for line in lines)
    first = told["files"]
    assert run(spec, places, quiet)["files"] == first


@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_are_none(rows: int) -> None:
    assert len(list(made_up(APPLIANCE, rows, 0, 1))) == rows


def test_what_is_made_up_can_be_written_for_the_model() -> None:
    train, test = made(200, 50)
    for one in train + test:
        told = json.loads(encode(one))
        text = preface([message_of(m) for m in told["messages"]], told["tools"])
        assert all(tool.name in text for tool in one.tools)
        assert list(turns([message_of(m) for m in told["messages"]]))
