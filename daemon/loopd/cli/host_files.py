"""host_files: owns the files `up` puts for people: directories, the settings file and the link to loopctl."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from loopd.cli.host_parts import Host
from loopd.config import PREFIX, Settings, config_path
from loopd.host import HostError, write_atomically

LINK = "loopctl"
# Where the file is found and whose it is cannot be said in the file itself.
_OUTSIDE = frozenset({"home"})
_HEAD = """\
# Settings of loopbox. Each line shows a default: take away the # and change it, then `make up`.
# Environment variables ({prefix}<NAME>, {prefix}<TABLE>__<NAME>) are stronger. `loopctl config check` checks.
"""


def ensure_directories(host: Host) -> None:
    """Make what is needed before loopd, which makes the rest, starts. Raises HostError."""
    layout = host.layout
    for path in (layout.home, host.logs, layout.home / "models", layout.incoming, layout.run_dir):
        try:
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.chmod(0o755)
        except OSError as error:
            raise HostError(f"{path} cannot be made: {error.strerror}. Run as root, or set LOOPBOX_HOME") from error


def ensure_settings(host: Host) -> str:
    """Write the settings file if there is none; what the environment gives goes in, so that later commands agree."""
    path = config_path()
    if path.exists():
        return f"{path} is there"
    write_atomically(path, settings_text(host.settings))
    return f"{path} written"


def settings_text(settings: Settings) -> str:
    """Return a settings file: every default as a comment, and each value that differs from it."""
    plain = Settings.model_construct()
    lines = [_HEAD.format(prefix=PREFIX), *_lines(settings, plain)]
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            lines += ["", f"[{name}]", *_lines(value, getattr(plain, name))]
    return "\n".join(lines) + "\n"


def ensure_link(host: Host) -> str:
    """Put loopctl on everybody's PATH, unless something else has that name or this is not the host's one instance."""
    link, target = host.places.bin_dir / LINK, host.places.scripts / LINK
    if host.settings.instance != Settings.model_fields["instance"].default:
        return "no link: only the default instance has one"
    if link.is_symlink() and link.readlink() == target:
        return f"{link} is there"
    if link.exists() or link.is_symlink():
        return f"{link} is another's and was left; use {target}"
    try:
        link.symlink_to(target)
    except OSError as error:
        return f"{link} cannot be made ({error.strerror}); use {target}"
    return f"{link} → {target}"


def remove_link(host: Host) -> bool:
    """Take the link away if it is ours; return whether it was."""
    link = host.places.bin_dir / LINK
    ours = (
        host.settings.instance == Settings.model_fields["instance"].default
        and link.is_symlink()
        and link.readlink() == host.places.scripts / LINK
    )
    if ours:
        link.unlink()
    return ours


def environment_of() -> dict[str, str]:
    """Return the variables that loopd must be started with to have the settings this command has."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    if "DOCKER_HOST" in os.environ:
        kept["DOCKER_HOST"] = os.environ["DOCKER_HOST"]
    return dict(sorted(kept.items()))


def _lines(settings: BaseModel, plain: BaseModel) -> Iterator[str]:
    for name in type(settings).model_fields:
        value, default = getattr(settings, name), getattr(plain, name, None)
        if isinstance(value, BaseModel) or name in _OUTSIDE:
            continue
        if value != default:
            yield f"{name} = {toml(value)}"
        elif default is None:
            yield f"# {name} ="
        else:
            yield f"# {name} = {toml(default)}"


def toml(value: object) -> str:
    """Return a setting's value in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    if isinstance(value, str | Path) and text.isprintable():
        return f'"{text}"'
    raise HostError(f"{value!r} cannot be written into the settings file: set it in the environment alone")
