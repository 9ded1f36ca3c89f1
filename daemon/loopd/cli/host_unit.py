"""host_unit: owns loopd's systemd unit: its name, its text, and what systemd is asked to do with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loopd.cli.host_parts import Host
from loopd.config import Settings
from loopd.host import HostError, Places, write_atomically

SYSTEMCTL_S = 120.0
TEMPLATE = Path("systemd") / "loopd.service"
_PRIVATE = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 what PrivateTmp replaces
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))  # what ProtectHome hides
_STATE = Path("/var/lib")
_RUNTIME = Path("/run")


def unit_name(settings: Settings) -> str:
    """Return the unit's name: one for each instance."""
    plain = Settings.model_fields["instance"].default
    return "loopd.service" if settings.instance == plain else f"loopd-{settings.instance}.service"


def render(template: str, settings: Settings, places: Places, environment: Mapping[str, str]) -> str:
    """Return the unit for an instance. Pure. Raises HostError for a path that a unit file cannot hold."""
    home, run_dir = settings.home, settings.run_dir
    paths = (home, run_dir, places.repository)
    for path in paths:
        if any(c.isspace() or c in "%\"'\\$:" or not c.isprintable() for c in str(path)):
            raise HostError(f"{path} has a character that systemd cannot take in a path: choose another directory")
    directories = []
    if home.is_relative_to(_STATE):
        directories += [f"StateDirectory={home.relative_to(_STATE)}", "StateDirectoryMode=0755"]
    if run_dir.is_relative_to(_RUNTIME):
        directories += [f"RuntimeDirectory={run_dir.relative_to(_RUNTIME)}", "RuntimeDirectoryMode=0755"]
    seen = (*paths, places.interpreter, Path(environment.get("LOOPBOX_CONFIG", "/")))
    homes = any(path.is_relative_to(top) for path in seen for top in _HOMES)
    shared_tmp = any(path.is_relative_to(top) for path in seen for top in _PRIVATE)
    values = {
        "INSTANCE": settings.instance,
        "PROGRAM": str(places.scripts / "loopd"),
        "ENVIRONMENT": "\n".join(f"Environment={_quoted(key, value)}" for key, value in environment.items()),
        "DIRECTORIES": "\n".join(directories),
        "WRITABLE": f"{home} {run_dir}",
        "PROTECT_HOME": "read-only" if homes else "yes",
        "PRIVATE_TMP": "no" if shared_tmp else "yes",
    }
    for key, value in values.items():
        template = template.replace(f"@{key}@", value)
    return template


def read_template(places: Places) -> str:
    """Return the checkout's unit file. Raises HostError."""
    try:
        return (places.repository / TEMPLATE).read_text()
    except OSError as error:
        raise HostError(f"{error.filename} cannot be read: {error.strerror}. Is this checkout whole?") from error


def unit_path(host: Host) -> Path:
    """Return where the unit is installed."""
    return host.places.unit_dir / unit_name(host.settings)


def systemctl(host: Host, *words: str) -> None:
    """Ask systemd. Raises HostError."""
    outcome = host.commands.run(("systemctl", *words), timeout_s=SYSTEMCTL_S)
    if not outcome.good:
        name = unit_name(host.settings)
        log = host.commands.run(("journalctl", "--no-pager", "--lines=20", "--unit", name), timeout_s=SYSTEMCTL_S)
        raise HostError(f"`systemctl {' '.join(words)}` failed:\n{outcome.tail}\nlast lines of {name}:\n{log.tail}")


def is_active(host: Host) -> bool:
    """Tell whether the unit runs."""
    return host.commands.run(
        ("systemctl", "is-active", "--quiet", unit_name(host.settings)), timeout_s=SYSTEMCTL_S
    ).good


def install(host: Host, text: str) -> None:
    """Put the unit in place. Raises HostError."""
    path = unit_path(host)
    if not path.is_file() or path.read_text() != text:
        write_atomically(path, text)
        systemctl(host, "daemon-reload")


def uninstall(host: Host) -> bool:
    """Take the unit away; return whether there was one."""
    path = unit_path(host)
    if not path.is_file():
        return False
    path.unlink()
    systemctl(host, "daemon-reload")
    return True


def _quoted(key: str, value: str) -> str:
    if not value.isprintable():
        raise HostError(f"{key} holds a character that systemd cannot take: set it in the settings file instead")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{key}={escaped}"'
