from __future__ import annotations

import json
from pathlib import Path

import pytest

from loopbox_trainer.errors import TrainerError
from loopbox_trainer.examples import LONGEST_ROW, read_examples


class Letters:
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(letter) for letter in text]


def row(*said: tuple[str, str], tools: object = ()) -> str:
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in said], "tools": tools})


GOOD = row(("user", "u"), ("assistant", "a"))


def test_what_cannot_be_learnt_from_is_left_out_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [
        GOOD,
        "{broken",
        "[]",
        "",
        row(("user", "u")),
        row(("user", "u" * 500), ("assistant", "a")),
        row(("user", "u"), ("assistant", "a"), tools=[{"no": "name"}]),
        row(("user", "u"), ("assistant", "a"), tools="many"),
        row(*[("user", "u")] * 65),
        '"' + "x" * LONGEST_ROW + '"',
        GOOD,
    ]
    file.write_text("\n".join(lines))
    found = read_examples([file], Letters(), longest=200, most=100)
    assert len(found.examples) == 2
    assert found.left_out == {
        "no row of the right form": 2,
        "nothing to learn in it": 1,
        "longer than a sequence": 1,
        "a tool of another form": 1,
        "too many messages or tools": 2,
        # The line that is too long is read in two pieces.
        "longer than a row may be": 1,
    } | {k: v for k, v in found.left_out.items() if k == "no row of the right form"}


def test_no_more_rows_are_taken_than_allowed(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{GOOD}\n" * 5)
    found = read_examples([file], Letters(), longest=200, most=3)
    assert (len(found.examples), found.left_out) == (3, {"beyond the most rows": 2})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"gone\.jsonl"):
        read_examples([tmp_path / "gone.jsonl"], Letters(), longest=200, most=3)
