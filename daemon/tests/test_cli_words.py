"""Words on a screen: times, sizes, exit codes, text that must not steer a terminal, tables, settings' origins."""

from __future__ import annotations

import io
import unicodedata
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from loopd.cli.exits import (
    MEANINGS,
    AnswerError,
    ApiError,
    ExitCode,
    MissingError,
    UnreachableError,
    code_word,
    exit_code,
)
from loopd.cli.screen import Cell, Screen, Sheet, is_fancy, lines
from loopd.cli.settings import MASK, flatten, origin
from loopd.cli.words import ago, clock, count, plain, scalar, size, span
from loopd.config import ConfigError
from loopd.errors import LoopdError
from loopd.images import ImagesError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@given(st.text())
def test_no_foreign_text_steers_a_terminal(text: str) -> None:
    """A file named with an escape sequence in it must not repaint the operator's screen."""
    shown = plain(text, keep="\n")
    assert all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") for c in shown)


def test_an_escape_is_shown_and_the_rest_is_kept() -> None:
    """Dropping it silently would hide that somebody tried."""
    assert plain("a\x1b[31mé✔b") == "a\\u001b[31mé✔b"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0.0 s"),
        (0, "0.0 s"),
        (4.14, "4.1 s"),
        (59.9, "59 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_spans(seconds: float, shown: str) -> None:
    """Each border of the units."""
    assert span(seconds) == shown


@pytest.mark.parametrize(
    ("bytes_", "shown"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (93 << 20, "93.0 MiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes(bytes_: int, shown: str) -> None:
    """Each border of the units."""
    assert size(bytes_) == shown


def test_times_and_values() -> None:
    """Times are UTC wherever the terminal is."""
    assert clock(NOON) == "2026-03-01 12:00:00Z"
    assert ago(NOON, NOON + timedelta(minutes=5)) == "5 min 0 s ago"
    assert [scalar(v) for v in (True, False, None, 3, "a\tb")] == ["yes", "no", "none", "3", "a\\u0009b"]
    assert [count(n, "time", "times") for n in (0, 1, 2)] == ["0 times", "1 time", "2 times"]


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (UnreachableError("x"), ExitCode.UNREACHABLE, "unreachable"),
        (AnswerError("x"), ExitCode.FAILED, "answer_not_understood"),
        (MissingError("x"), ExitCode.NOT_FOUND, "not_found"),
        (ConfigError("x"), ExitCode.CONFIG, "config_invalid"),
        (ImagesError("x"), ExitCode.CONFIG, "images_unknown"),
        (LoopdError("x"), ExitCode.FAILED, "internal"),
        (ApiError("x", answered_code="unauthenticated", http_status=401), ExitCode.REFUSED, "unauthenticated"),
        (ApiError("x", answered_code="no_such", http_status=404), ExitCode.NOT_FOUND, "no_such"),
        (ApiError("x", answered_code="conflict", http_status=409), ExitCode.CONFLICT, "conflict"),
        (ApiError("x", answered_code="unavailable", http_status=503), ExitCode.FAILED, "unavailable"),
    ],
)
def test_each_error_has_its_exit_code(error: LoopdError, code: ExitCode, word: str) -> None:
    """Scripts branch on these numbers."""
    assert (exit_code(error), code_word(error)) == (code, word)


def test_every_exit_code_is_explained() -> None:
    """The page of the command line is made from these."""
    assert set(MEANINGS) == set(ExitCode)


def test_a_table_lines_up_and_cuts_nothing() -> None:
    """On a pipe a long id must come through whole."""
    long = "x" * 200
    sheet = Sheet(("NAME", "STATE"), ((Cell("gateway"), Cell("ready", "good")), (Cell(long), Cell("absent", "off"))))
    head, first, second = lines([sheet])
    assert head.index("STATE") == first.index("✔ ready") == second.index("○ absent")
    assert second.startswith(long)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_where_it_suits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Escape codes in a log file or against NO_COLOR are a nuisance."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert is_fancy(Terminal())
    assert not is_fancy(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not is_fancy(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not is_fancy(Terminal())


def test_a_fancy_screen_shows_markup_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A model named [red] is a name, not a colour."""
    Screen(fancy=True, terminal=True).show([Cell("[red]name[/red]", "bad"), Sheet(("A",), ((Cell("[b]x"),),))])
    shown = capsys.readouterr().out
    assert "[red]name[/red]" in shown
    assert "[b]x" in shown


class Inner(BaseModel):
    password: SecretStr = SecretStr("hunter2")
    cpus: float = 1.0


class Outer(BaseModel):
    webhook_token: SecretStr = SecretStr("s3cret")
    sandbox: Inner = Inner()
    docker_host: str | None = None


def test_secrets_are_masked_at_any_depth() -> None:
    """`config show` ends up in bug reports."""
    shown = dict(flatten(Outer()))
    assert shown == {
        "webhook_token": MASK,
        "sandbox.password": MASK,
        "sandbox.cpus": "1.0",
        "docker_host": "-",
    }
    assert "hunter2" not in Outer().model_dump_json()


def test_the_origin_of_a_setting() -> None:
    """An operator who edits the file must see that the environment overrules it."""
    written = {"num_ctx": 1, "sandbox": {"warm": 1}}
    environment = {"LB_NUM_CTX": "2", "lb_rollout__load_s": "3", "LB_ROLLOUT": "{}"}
    expected = {
        "num_ctx": "LB_NUM_CTX",
        "sandbox.warm": "file",
        "sandbox.most": "default",
        "rollout.load_s": "LB_ROLLOUT__LOAD_S",
        "rollout.check_s": "LB_ROLLOUT",
        "home": "default",
    }
    assert {key: origin(key, written, environment, "LB_") for key in expected} == expected
