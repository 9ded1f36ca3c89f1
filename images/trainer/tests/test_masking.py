from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from images.trainer.tests.training_rows import result, row, say, user

from loopbox_agent.mask import mask
from loopbox_trainer.masking import Masker, may_hold
from loopbox_trainer.rows import Call, Message

#: Some of every kind that the agent's rules know.
SAMPLES = (
    "write to jane.doe@example.org now",
    "call +49 30 901820 or (415) 555-2671",
    "card 4111 1111 1111 1111",
    "DE89 3704 0044 0532 0130 00",
    "password=hunter2hunter2",
    "the password is Tr0ub4dor&3",
    "API_KEY: 9f8e7d6c5b4a39281706",
    "--token 0123456789abcdefABCDEF",
    "Authorization: Bearer abcdefghijklmnopqrstuvwxyz012345",
    "https://user:s3cretpass@host/x",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "sk-proj-abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    "ssn 536-22-1234",
    "X1234567L",
    "12345678Z",
    "RSSMRA85T10A562S",
    "1 85 05 78 006 084 91",
    "529.982.247-25",
    "756.9217.0769.85",
    "86 095 742 719",
    "xoxb-123456789012-123456789012-abcdefghijklmnopqrstuvwx",
)
pieces = (
    st.sampled_from(SAMPLES)
    | st.text(max_size=12)
    | st.sampled_from(["token:", "key", "secret is", "x" * 20, "1234", "a/b-c.d", "pwd ="])
)


@pytest.mark.parametrize("text", SAMPLES)
def test_the_first_look_sees_every_kind_in_every_case(text: str) -> None:
    assert mask(text).found == () or may_hold(text)


def test_most_of_the_samples_are_found_by_the_rules() -> None:
    assert sum(bool(mask(text).found) for text in SAMPLES) >= len(SAMPLES) - 3


@given(st.lists(pieces, max_size=6).map(" ".join) | st.lists(pieces, max_size=6).map("".join))
@example("pwd =\x00" + "1" * 30)
def test_what_the_first_look_passes_over_holds_nothing(text: str) -> None:
    assert Masker().text(text) == mask(text).text


def test_contents_and_arguments_are_masked() -> None:
    call = Message("assistant", "", (Call("read_file", {"path": "x", "deep": [{"password": "hunter2hunter2"}]}),))
    dirty = row(user("mail jane.doe@example.org"), call, result("token=abcdef0123456789abcdef"), say())
    clean = Masker().row(dirty)
    text = str(clean.messages)
    assert "jane" not in text
    assert "hunter2" not in text
    assert "abcdef0123456789" not in text
    assert clean.messages[3] == dirty.messages[3]
    assert Masker().row(clean) is clean


def test_a_clean_row_is_the_same_object() -> None:
    clean = row()
    assert Masker().row(clean) is clean


def test_the_rules_run_alone_as_they_stand_in_the_image() -> None:
    """The image has links to these files of the agent and nothing else of it."""
    shared = Path(__file__).parents[1] / "shared"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from loopbox_agent.mask import mask; print(mask(sys.argv[2]).text)"
    )
    told = subprocess.run(
        [sys.executable, "-I", "-c", program, str(shared), "to jane.doe@example.org"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "to [pii:email]\n"
    assert all(path.is_symlink() for path in (shared / "loopbox_agent").glob("*.py"))
