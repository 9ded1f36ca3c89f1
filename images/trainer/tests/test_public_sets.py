from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from images.trainer.tests.test_curate import TINY, quiet

from loopbox_trainer.curate import Places, run
from loopbox_trainer.curate_spec import CurateSpec
from loopbox_trainer.errors import TrainerError
from loopbox_trainer.public_sets import json_schema
from loopbox_trainer.rows import parse_row

AREA = {
    "name": "area.of",
    "description": "Area of a shape.",
    "parameters": {
        "type": "dict",
        "properties": {
            "sides": {"type": "tuple", "items": {"type": "float"}},
            "how": {"type": "dict", "properties": {"unit": {"type": "string"}}},
            "any": {"type": "any", "optional": True},
        },
        "required": ["sides"],
    },
}


def question(name: str, text: str) -> dict[str, Any]:
    return {"id": name, "question": [[{"role": "user", "content": text}]], "function": [AREA]}


def truth(name: str, *calls: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "ground_truth": list(calls)}


def lines(path: Path, *told: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in told))


def curated(tmp_path: Path, form: str) -> tuple[dict[str, Any], list[Any]]:
    places = Places(tmp_path / "job", tmp_path)
    places.job.mkdir(exist_ok=True)
    source = {"name": form, "path": "set", "form": form}
    told = run(CurateSpec.model_validate({"sources": [source], **TINY}), places, quiet)
    rows = [
        parse_row(line)
        for part in ("train", "test")
        for line in (places.job / f"out/{part}.jsonl").read_bytes().splitlines()
    ]
    return told, rows


def test_bfcls_rows_get_the_first_answer_that_is_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    lines(
        folder / "BFCL_v4_simple_python.json", question("s_0", "area of 2 by 3"), question("s_1", "no truth for this")
    )
    call = {"area.of": {"sides": [[2, 3]], "how": [{"unit": ["m", "metre"], "x": [""]}], "any": ["", "x"]}}
    lines(folder / "possible_answer" / "BFCL_v4_simple_python.json", truth("s_0", call))
    lines(folder / "BFCL_v4_parallel.json", question("p_0", "areas of squares with sides one and two"))
    two = [{"area.of": {"sides": [[n, n]]}} for n in (1, 2)]
    lines(folder / "possible_answer" / "BFCL_v4_parallel.json", truth("p_0", *two))
    lines(
        folder / "BFCL_v4_irrelevance.json", question("i_0", "who is the king of Norway?"), {"id": "i_1", "rubbish": 1}
    )
    told, rows = curated(tmp_path, "bfcl")
    by_origin = {row.meta["origin"]: row for row in rows}
    assert set(by_origin) == {"s_0", "p_0", "i_0"}
    (made,) = by_origin["s_0"].messages[1].tool_calls
    assert (made.name, made.arguments) == ("area.of", {"sides": [2, 3], "how": {"unit": "m"}})
    assert [call.arguments for call in by_origin["p_0"].messages[1].tool_calls] == [
        {"sides": [1, 1]},
        {"sides": [2, 2]},
    ]
    assert by_origin["i_0"].messages[1].content
    assert not by_origin["i_0"].messages[1].tool_calls
    assert told["steps"][0]["dropped"] == {"not_a_row": 1}


def test_bfcls_types_become_those_of_json_schemas() -> None:
    assert json_schema(AREA["parameters"]) == {
        "type": "object",
        "properties": {
            "sides": {"type": "array", "items": {"type": "number"}},
            "how": {"type": "object", "properties": {"unit": {"type": "string"}}},
            "any": {},
        },
        "required": ["sides"],
    }


def test_grade_school_math_keeps_its_test_rows_out_of_training(tmp_path: Path) -> None:
    for part, text in (
        ("train", "Ann has two red apples and buys three more"),
        ("test", "A train drives for nine hours at ten km/h"),
    ):
        lines(tmp_path / "set" / "data" / f"{part}.jsonl", {"question": text, "answer": "x = <<2+3=5>>5\n#### 5"})
    told, rows = curated(tmp_path, "grade_school_math")
    assert (told["splits"]["train"]["rows"], told["splits"]["test"]["rows"]) == (1, 1)
    assert [row.messages[1].content for row in rows] == ["x = 5\nThe answer is 5."] * 2
    assert rows[1].meta["origin"] == "test-1"


@pytest.mark.parametrize("form", ["bfcl", "grade_school_math", "auto"])
def test_a_folder_without_the_set_is_said(tmp_path: Path, form: str) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(TrainerError) as told:
        curated(tmp_path, form)
    assert told.value.code == "no_source"
