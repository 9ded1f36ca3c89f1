"""host_files: owns the files `up` puts for people: directories, the settings file and the link to loopctl."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from loopd.cli.host_parts import Host
from loopd.config import PREFIX, Settings, config_path
from loopd.cpu_group import remove_group
from loopd.host import FILE as STARTED_FILE
from loopd.host import HostError, is_shared, write_atomically
from loopd.images import FILE as IMAGES_FILE

LINK = "loopctl"
MARKERS = (STARTED_FILE, IMAGES_FILE, "state.db")  # what makes a directory a home of ours
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
    return "\n".join([_HEAD.format(prefix=PREFIX), *_lines(settings, plain), *_sections(settings, plain, "")]) + "\n"


def _sections(settings: BaseModel, plain: BaseModel, prefix: str) -> Iterator[str]:
    for name in type(settings).model_fields:
        value, default = getattr(settings, name), getattr(plain, name)
        if isinstance(value, BaseModel):
            yield from ("", f"[{prefix}{name}]", *_lines(value, default))
            yield from _sections(value, default, f"{prefix}{name}.")


def ensure_link(host: Host) -> str:
    """Put loopctl on everybody's PATH, unless something else has that name or this is not the host's one instance."""
    link, target = host.places.bin_dir / LINK, host.places.scripts / LINK
    if host.settings.instance != Settings.model_fields["instance"].default:
        return f"{target}: only the default instance has a link"
    if _is_ours(host, link):
        return f"{link} is there"
    if link.exists() or link.is_symlink():
        return f"{link} is another's and was left; use {target}"
    try:
        link.symlink_to(target)
    except OSError as error:
        return f"{link} cannot be made ({error.strerror}); use {target}"
    return f"{link} → {target}"


def remove_files(host: Host) -> str:
    """Remove home, run_dir and the link; return what went. Raises HostError for a home that is not ours to remove."""
    home, run_dir = host.settings.home, host.settings.run_dir
    if any(home.iterdir()) and not any((home / name).is_file() for name in MARKERS):
        raise HostError(f"{home} holds none of {', '.join(MARKERS)}, so it is not loopbox's: it was left as it is")
    remove_group()
    link = host.places.bin_dir / LINK
    gone = [home, run_dir]
    if _is_ours(host, link):
        link.unlink()
        gone.append(link)
    for path in (run_dir, home):  # home last: a purge that was broken off must find it again
        if is_shared(path, host.places.repository):
            raise HostError(f"{path} is where others have files, too: remove loopbox's own by hand")
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            gone.remove(path)
        except OSError as error:
            raise HostError(f"{error.filename} cannot be removed: {error.strerror}. Repeat `make purge`") from error
    return ", ".join(map(str, gone))


def next_commands(host: Host) -> tuple[str, ...]:
    """Return what to type next, each with what it does."""
    plain = Settings.model_construct()
    command = LINK if (host.places.bin_dir / LINK).exists() else str(host.places.scripts / LINK)
    if host.settings.home != plain.home:
        command = f"{PREFIX}HOME={host.settings.home} {host.places.scripts / LINK}"
    return (
        f'{command} ask "What is the capital of France?"',
        f"{command} status",
        f"TOKEN=$({command} token issue)    # for a client: Authorization: Bearer $TOKEN",
        f"cp my.gguf {host.layout.incoming}/    # becomes the next model, traffic unharmed",
    )


def environment_of() -> dict[str, str]:
    """Return the variables that loopd must be started with to have the settings this command has."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    if "DOCKER_HOST" in os.environ:
        kept["DOCKER_HOST"] = os.environ["DOCKER_HOST"]
    return dict(sorted(kept.items()))


def _is_ours(host: Host, link: Path) -> bool:
    plain = Settings.model_fields["instance"].default
    return host.settings.instance == plain and link.is_symlink() and link.readlink() == host.places.scripts / LINK


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
    if isinstance(value, BaseModel):
        return f"{{ {', '.join(f'{key} = {toml(item)}' for key, item in value)} }}"
    if isinstance(value, tuple):
        return f"[{', '.join(toml(item) for item in value)}]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    if isinstance(value, str | Path) and text.isprintable():
        return f'"{text}"'
    raise HostError(f"{value!r} cannot be written into the settings file: set it in the environment alone")
