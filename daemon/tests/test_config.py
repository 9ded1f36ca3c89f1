from __future__ import annotations

import os
from pathlib import Path

import pytest

from loopd.config import ConfigError, Settings, load_settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in list(os.environ):
        if name.startswith("LOOPBOX_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LOOPBOX_HOME", str(tmp_path))
    return tmp_path


def test_the_environment_is_stronger_than_the_file(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clean / "loopbox.toml").write_text("public_port = 9000\ncontrol_port = 9001\n[sandbox]\nwarm = 3\n")
    monkeypatch.setenv("LOOPBOX_PUBLIC_PORT", "9100")
    settings = load_settings()
    assert (settings.public_port, settings.control_port, settings.sandbox.warm) == (9100, 9001, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("public_prot = 80", "public_prot"),
        ("public_port = 0", "public_port"),
        ("public_port = 8090", "must differ"),
        ('run_dir = "relative"', "absolute"),
        ("[sandbox]\nwarm = 20", "sandbox.most"),
        ("[rollout]\ndrain = 1", "rollout.drain"),
        ("num_ctx =", "not TOML"),
        (f'run_dir = "/{"x" * 60}"', "unix sockets"),
    ],
)
def test_each_wrong_setting_is_refused_by_its_name(clean: Path, text: str, said: str) -> None:
    (clean / "loopbox.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_settings()


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typo in a variable would else be ignored in silence."""
    monkeypatch.setenv("LOOPBOX_PUBLIC_PROT", "80")
    with pytest.raises(ConfigError, match="LOOPBOX_PUBLIC_PROT"):
        load_settings()


def test_a_named_file_that_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPBOX_CONFIG", "/no/such/file.toml")
    with pytest.raises(ConfigError, match="not a file"):
        load_settings()


def test_settings_cannot_change_once_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().public_port = 1  # type: ignore[misc]  # that it cannot be done is the point


def test_two_engines_share_the_cores() -> None:
    assert Settings(engine_threads=3).threads == 3
    assert Settings().threads >= 1
