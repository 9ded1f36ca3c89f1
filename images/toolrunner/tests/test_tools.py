"""Arguments and their schemas."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from loopbox_toolrunner import arguments
from loopbox_toolrunner.files import Listing
from loopbox_toolrunner.processes import parse_stat
from loopbox_toolrunner.runner import Outcome
from loopbox_toolrunner.settings import Settings
from loopbox_toolrunner.tools import readable

MODELS = (
    arguments.Bash,
    arguments.Code,
    arguments.ReadFile,
    arguments.WriteFile,
    arguments.EditFile,
    arguments.ListFiles,
    arguments.SearchFiles,
    arguments.FindFiles,
)


@pytest.mark.parametrize("model", MODELS)
def test_a_schema_is_flat_and_bounded(model: type[arguments.Arguments]) -> None:
    """A grammar made from alternatives and unbounded strings lets small models ramble."""
    schema = arguments.schema_of(model, timeout_s=7, max_timeout_s=9)
    assert schema["additionalProperties"] is False
    for name, told in schema["properties"].items():
        assert set(told) <= {"type", "description", "default", "minLength", "maxLength", "minimum", "maximum"}
        assert told["description"]
        assert "\n" not in told["description"]
        assert told["type"] == "boolean" or ("maxLength" if told["type"] == "string" else "maximum") in told
        assert told.get("maxLength", 0) <= 2000  # one more stops the engine's model process
        assert ("default" in told) == (name not in schema.get("required", []))
    if "timeout_s" in schema["properties"]:
        assert schema["properties"]["timeout_s"]["default"] == 7
        assert schema["properties"]["timeout_s"]["maximum"] == 9
        assert list(schema["properties"])[-1] == "timeout_s"


def test_result_schemas_keep_properties_named_like_keywords() -> None:
    """Dropping titles and descriptions must not drop a property."""
    assert list(arguments.schema_of(Outcome)["properties"]) == [
        "exit_code",
        "stdout",
        "stderr",
        "timed_out",
        "truncated",
        "duration_ms",
        "stdout_bytes",
        "stderr_bytes",
        "output_file",
        "error_file",
    ]
    assert set(arguments.schema_of(Listing)["properties"]) == {"entries", "truncated"}


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        (arguments.Bash, {}, "command"),
        (arguments.Bash, {"command": ""}, "command"),
        (arguments.Bash, {"command": "x" * 40_000}, "command"),
        (arguments.Bash, {"command": "x", "timeout_s": 0}, "timeout_s"),
        (arguments.Bash, {"command": "x", "other": 1}, "other"),
        (arguments.Bash, {"command": "\ud800"}, "surrogate"),
        (arguments.ReadFile, {"path": "x", "offset": -1}, "offset"),
        (arguments.WriteFile, {"path": 7, "content": ""}, "path"),
    ],
)
def test_wrong_arguments_are_named(model: type[arguments.Arguments], given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(given)
    assert words in arguments.explain(caught.value)


@pytest.mark.parametrize("text", ["a\0b", "é" * 70_000])
def test_what_no_argument_can_hold_is_refused(text: str) -> None:
    """The kernel would refuse it with an error that tells a model nothing."""
    with pytest.raises(arguments.ArgumentError):
        arguments.check_command(text)


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [
        ((0, "", ""), "(no output)"),
        ((0, "a\n", ""), "a"),
        ((1, "a\n", "b\n"), "a\n[stderr]\nb\n[exit code 1]"),
        ((2, "", ""), "[exit code 2]"),
    ],
)
def test_a_model_reads_output_first(outcome: tuple[int, str, str], shown: str) -> None:
    code, out, err = outcome
    told = Outcome(exit_code=code, stdout=out, stderr=err, timed_out=False, truncated=False, duration_ms=1)
    assert readable(told) == shown


def test_settings_are_frozen_and_reject_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLRUNNER_TIMEOUT_S", "soon")
    with pytest.raises(ValidationError, match="timeout_s"):
        Settings()
    monkeypatch.setenv("TOOLRUNNER_TIMEOUT_S", "5")
    settings = Settings()
    assert settings.timeout_s == 5
    with pytest.raises(ValidationError):
        settings.timeout_s = 6  # type: ignore[misc]  # that it cannot be set is the point


def test_a_process_name_cannot_fake_its_parent() -> None:
    """Names may hold spaces, parentheses and digits."""
    fields = b"S 42 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 3 0 100 1000 25 18446744073709551615"
    assert parse_stat(b"7 (x) S 1 (1) ) " + fields).parent == 42
    assert parse_stat(b"7 (x) S 1 (1) ) " + fields).threads == 3
