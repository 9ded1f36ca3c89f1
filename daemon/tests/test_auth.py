from __future__ import annotations

from pathlib import Path

import pytest

from loopd.auth import UnauthenticatedError, ensure_token
from loopd.errors import LoopdError


def test_the_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "control.token"
    first, second = ensure_token(path), ensure_token(path)
    assert first == second
    assert path.stat().st_mode & 0o777 == 0o600
    first.require(f"Bearer {path.read_text().strip()}")


def test_the_token_does_not_show_itself(tmp_path: Path) -> None:
    token = ensure_token(tmp_path / "control.token")
    assert token.secret.get_secret_value() not in repr(token)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic abc", "bearer\u00e9"])
def test_anything_else_is_refused(tmp_path: Path, header: str | None) -> None:
    with pytest.raises(UnauthenticatedError):
        ensure_token(tmp_path / "control.token").require(header)


def test_an_empty_token_file_is_refused(tmp_path: Path) -> None:
    """An empty file would make the empty token valid."""
    path = tmp_path / "control.token"
    path.write_text("\n")
    with pytest.raises(LoopdError, match="no usable token"):
        ensure_token(path)


def test_a_link_in_place_of_the_token_is_not_followed_when_made(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    (tmp_path / "control.token").symlink_to(target)
    with pytest.raises((LoopdError, OSError)):
        ensure_token(tmp_path / "control.token")
    assert not target.exists()
