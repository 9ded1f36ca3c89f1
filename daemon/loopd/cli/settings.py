"""settings: owns `loopctl config`, `loopctl token path` and `loopctl version`, which need no running loopd."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, SecretStr

from loopd.cli.screen import Cell, Sheet, open_screen
from loopd.cli.session import open_client, own_version, read_settings
from loopd.errors import LoopdError

config = typer.Typer(help="Show and check the settings; works without loopd.", no_args_is_help=True)

MASK = "**********"

Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]


class VersionView(BaseModel):
    """The versions as JSON."""

    loopctl: str
    loopd: str | None  #: of the one that answers


@config.command()
def show(*, json: Json = False) -> None:
    """Show every setting, and whether environment, file or default gave it."""
    from loopd.config import PREFIX, config_path  # noqa: PLC0415 takes longer than --help may

    screen = open_screen()
    settings = read_settings()
    if json:
        screen.json(settings)
        return
    written = _file(config_path())
    rows = [
        (Cell(key), Cell(value), Cell(origin(key, written, os.environ, PREFIX))) for key, value in flatten(settings)
    ]
    screen.show([Sheet(("SETTING", "VALUE", "FROM"), tuple(rows))])


@config.command()
def check() -> None:
    """Check the settings: exits 0 when loopd can use them, 78 with each fault named when not."""
    from loopd.config import config_path  # noqa: PLC0415 takes longer than --help may

    read_settings()
    path = config_path()
    from_file = f"{path} and the environment" if path.is_file() else f"the environment; there is no {path}"
    open_screen().line(f"the settings can be used (read from {from_file})", "good")


@config.command("path")
def config_file() -> None:
    """Write the path of the settings file; it may be absent."""
    from loopd.config import config_path  # noqa: PLC0415 takes longer than --help may

    screen = open_screen()
    path = config_path()
    screen.write(f"{path}\n")
    if not path.is_file():
        screen.remark("it does not exist: every setting comes from the environment or is the default")


def token_file() -> None:
    """Write the path of the file with the control API's token; never the token itself."""
    from loopd.units import layout_of  # noqa: PLC0415 takes longer than --help may

    screen = open_screen()
    path = layout_of(read_settings()).token
    screen.write(f"{path}\n")
    if not path.exists():
        screen.remark("it does not exist yet (or may not be seen by this user): loopd makes it when it starts")


def version(*, json: Json = False) -> None:
    """Show this loopctl's version, and that of the loopd that runs."""
    screen = open_screen()
    running: str | None = None
    trouble = ""
    try:
        with open_client() as client:
            running = client.health().version
    except LoopdError as error:
        trouble = str(error)
    view = VersionView(loopctl=own_version(), loopd=running)
    if json:
        screen.json(view)
    else:
        screen.line(f"loopctl {view.loopctl}")
        screen.line(f"loopd {running}" if running else f"loopd: {trouble}")


def flatten(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, value as text) of each setting; secrets are masked."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        key = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from flatten(value, f"{key}.")
        elif isinstance(value, SecretStr):
            yield key, MASK
        else:
            yield key, "-" if value is None else str(value)


def origin(key: str, written: Mapping[str, object], environment: Mapping[str, str], prefix: str) -> str:
    """Say where a setting's value comes from."""
    name = prefix + key.replace(".", "__").upper()
    outer = prefix + key.partition(".")[0].upper()
    for variable in (name, outer):
        if any(given.upper() == variable for given in environment):
            return variable
    level: object = written
    for part in key.split("."):
        if not isinstance(level, Mapping) or part not in level:
            return "default"
        level = level[part]
    return "file"


def _file(path: Path) -> Mapping[str, object]:
    """Return the settings file, {} for none; load_settings() has read it without fault before."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        return {}
