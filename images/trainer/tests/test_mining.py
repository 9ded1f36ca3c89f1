from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from images.trainer.tests.training_rows import TOOLS, call, result, row, say, user

from loopbox_trainer.failures import is_failure
from loopbox_trainer.hints import hinted, kind_of
from loopbox_trainer.mining import failed_results, mine
from loopbox_trainer.rows import Call, Message

NO = result("[stderr]\ncat: b: No such file or directory\n[exit code 1]")


def test_a_failed_call_gives_a_corrected_row_and_a_preference() -> None:
    wrong = row(user(), call("b"), NO, call("a.txt"), result(), say())
    mined = mine(wrong, failed_results(wrong))
    assert mined.row is not None
    assert mined.row.messages == (user(), call("a.txt"), result(), say())
    assert mined.row.meta == {"corrected": 1}
    assert [(p.prompt, p.chosen, p.rejected) for p in mined.pairs] == [((user(),), (call("a.txt"),), (call("b"),))]


def test_what_was_looked_up_between_stays_since_the_correction_knows_it() -> None:
    look = (call(".", "list_files"), result("a.txt", "list_files"))
    wrong = row(user(), call("b"), NO, *look, call("a.txt"), result(), say())
    mined = mine(wrong, (2,))
    assert mined.row is not None
    assert mined.row.messages == (user(), *look, call("a.txt"), result(), say())
    assert mined.pairs[0].chosen == look[:1]


def test_of_calls_side_by_side_only_the_wrong_one_is_replaced() -> None:
    both = Message("assistant", "", (Call("list_files", {"path": "."}), Call("read_file", {"path": "b"})))
    wrong = row(user(), both, result("a.txt", "list_files"), NO, call("a.txt"), result(), say())
    mined = mine(wrong, (3,))
    right = Message("assistant", "", (Call("list_files", {"path": "."}), Call("read_file", {"path": "a.txt"})))
    assert mined.row is not None
    assert mined.row.messages == (user(), right, result("a.txt", "list_files"), result(), say())
    assert (mined.pairs[0].chosen, mined.pairs[0].rejected) == ((right,), (both,))


def test_a_tool_that_is_not_there_is_corrected_by_any() -> None:
    wrong = row(
        user(), call("a.txt", "cat"), result("There is no tool 'cat' here", "cat"), call("a.txt"), result(), say()
    )
    mined = mine(wrong, failed_results(wrong))
    assert mined.row is not None
    assert kind_of(mined.row) == "read_file"


@pytest.mark.parametrize(
    "messages",
    [
        (user(), call("b"), NO, say("I cannot find it.")),
        (user(), call("b"), NO, call("b"), result(), say()),  # the same again proves nothing
        (user(), call("b"), NO, say("Which?"), user("a.txt"), call("a.txt"), result(), say()),  # a person corrected it
        (user(), call("b"), NO, call(".", "list_files"), result("", "list_files"), say()),
        (user(), call("b"), say()),
    ],
)
def test_without_a_correction_there_is_no_row(messages: tuple[Message, ...]) -> None:
    assert mine(row(*messages), (2,)).row is None


@pytest.mark.parametrize(
    "told",
    [
        "[exit code 1]",
        "Traceback (most recent call last):\n  x",
        "read_file was not run. path: missing",
        "Error: no",
        "'a.txt' is not there; list_files shows what is",
        "old is not in 'a.txt'; read_file shows what is",
        '{"error": "x"}',
    ],
)
def test_failures_are_told_by_their_words(told: str) -> None:
    assert is_failure(told)


@pytest.mark.parametrize(
    "told", ["", "fine", "[exit code 0]", "The error was corrected.", "3 errors found in log.txt", "(no output)"]
)
def test_other_words_are_no_failure(told: str) -> None:
    assert not is_failure(told)


steps = st.lists(
    st.tuples(st.sampled_from(["read_file", "list_files"]), st.sampled_from("abc"), st.booleans()),
    min_size=1,
    max_size=6,
)


@given(st.lists(steps, min_size=1, max_size=3))
def test_a_corrected_row_holds_no_failure_and_nothing_new(requests: list[list[tuple[str, str, bool]]]) -> None:
    messages: list[Message] = []
    for made in requests:
        messages.append(user())
        for name, path, failed in made:
            messages += [call(path, name), NO if failed else result("fine", name)]
        messages.append(say())
    told = row(*messages)
    mined = mine(told, failed_results(told))
    if mined.row is None:
        return
    assert failed_results(mined.row) == ()
    assert all(message in messages for message in mined.row.messages)
    assert [m for m in mined.row.messages if m.role == "user"] == [user()] * len(requests)
    assert mined.row.messages[-1] == say()
    for pair in mined.pairs:
        assert pair.prompt == mined.row.messages[: len(pair.prompt)]
        assert pair.chosen[0] == mined.row.messages[len(pair.prompt)] != pair.rejected[0]


def test_hints_tell_steps_calls_and_tools() -> None:
    both = Message("assistant", "", (Call("b", {}), Call("a", {})))
    made = hinted(row(user(), both, result(), result(), call(), result(), say(), tools=TOOLS, meta={"origin": "x"}))
    assert made.meta == {"origin": "x", "steps": 2, "calls": 3, "tools": ["b", "a", "read_file"]}
    assert hinted(made) == made
    assert (kind_of(made), kind_of(row(user(), say()))) == ("b+a", "answer")
