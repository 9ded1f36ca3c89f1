"""doctor_look: owns gathering the doctor's facts. Whatever does not answer is a fact, too; nothing is raised for it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from loopd.backup import BackupError, Told, tell_state, verify_backup
from loopd.backups import Shelf, open_shelf
from loopd.cli.doctor_facts import (
    BackupFacts,
    Clock,
    Docker,
    Facts,
    Gpu,
    Loopd,
    Machine,
    Place,
    Service,
    State,
    Unit,
    Volume,
)
from loopd.cli.host_checks import HOME_BYTES, RUN_BYTES
from loopd.cli.host_commands import Commands
from loopd.cli.host_ports import find_holders
from loopd.cli.session import gateway_answers, open_client, own_version
from loopd.config import Settings
from loopd.errors import LoopdError
from loopd.host import Places, load_started
from loopd.images import ImagesError, load_images
from loopd.state import StateError, check_file
from loopd.units import AGENT_UID, Layout, layout_of

TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
TIMEX_BYTES = 512  # more than the structure has on any machine
ASK_S = 10.0
Kind = Literal["directory", "socket", "file"]


class Engine(Protocol):
    """The container engine as the doctor sees it."""

    def details(self) -> dict[str, Any]:  # Any: the API's JSON
        """Return what it tells of itself."""
        ...

    def has(self, tag: str) -> bool:
        """Tell whether an image is there."""
        ...

    def container_ids(self) -> tuple[str, ...]:
        """Return this instance's containers."""
        ...


def look(
    settings: Settings, places: Places, commands: Commands, open_engine: Callable[[], AbstractContextManager[Engine]]
) -> Facts:
    """Look once. Blocks."""
    layout = layout_of(settings)
    docker, containers, root, trouble = _docker(settings, open_engine)
    loopd, loopd_trouble = _loopd(settings)
    told, state, state_trouble = _state(layout)
    started = load_started(settings.home).loopd
    names = {name: getattr(settings, name) for name in ("public_port", "internal_port", "control_port")}
    pids = {started.pid} if started and started.alive(places.proc) else set()
    return Facts(
        machine=Machine(
            system=platform.system(),
            machine=platform.machine(),
            kernel=platform.release(),
            uid=os.geteuid(),
            cpus=len(os.sched_getaffinity(0)),
            memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        ),
        clock=Clock(
            now=datetime.now(UTC),
            synchronised=_synchronised(),
            newest_entry=datetime.fromisoformat(told.newest_at) if told and told.newest_at else None,
        ),
        docker=docker,
        docker_trouble=trouble,
        volumes=_volumes(((settings.home, HOME_BYTES), (root, RUN_BYTES))),
        linkable=_linkable(layout),
        gpu=_gpu(places.proc),
        ports=find_holders(names, pids, containers, places.proc),
        places=_places(layout),
        unit=_unit(settings, places, commands),
        state=state,
        state_trouble=state_trouble,
        backups=_backups(settings, open_shelf(settings)),
        loopd=loopd,
        loopd_trouble=loopd_trouble,
        version=own_version(),
        gateway=gateway_answers(settings),
    )


def _docker(
    settings: Settings, open_engine: Callable[[], AbstractContextManager[Engine]]
) -> tuple[Docker | None, tuple[str, ...], Path, str]:
    root = Path("/var/lib/docker")
    try:
        with open_engine() as engine:
            told = engine.details()
            missing: tuple[str, ...] | None = None
            with contextlib.suppress(ImagesError):
                missing = tuple(tag for tag in load_images(settings.home).tags() if not engine.has(tag))
            docker = Docker(
                version=str(told.get("ServerVersion", "")),
                cgroup=str(told.get("CgroupVersion") or "1"),
                storage=str(told.get("Driver", "")),
                live_restore=bool(told.get("LiveRestoreEnabled")),
                runtimes=tuple(told.get("Runtimes") or ()),
                missing_images=missing,
            )
            return docker, engine.container_ids(), Path(str(told.get("DockerRootDir") or root)), ""
    except LoopdError as error:
        return None, (), root, str(error)


def _loopd(settings: Settings) -> tuple[Loopd | None, str]:
    try:
        with open_client(settings) as client:
            view = client.status()
    except LoopdError as error:
        return None, str(error)
    services = tuple(Service(name=s.name, ready=s.ready, reason=s.reason) for s in view.services)
    return Loopd(version=view.version, state=view.state, reason=view.reason, services=services), ""


def _state(layout: Layout) -> tuple[Told | None, State | None, str]:
    if not os.access(layout.state, os.R_OK):
        there = layout.home.exists() and not layout.state.exists()
        return None, None, "there is none: loopd makes it" if there else "not for this user to see, or not there"
    try:
        check_file(layout.state)
        told = tell_state(layout.state)
    except (StateError, BackupError, sqlite3.Error, OSError, ValueError) as error:
        return None, State(problem=f"{error}", schema=0, entries=0, releases=0), ""
    return told, State(problem="", schema=told.schema, entries=told.length, releases=len(told.releases)), ""


def _backups(settings: Settings, shelf: Shelf) -> BackupFacts | None:
    try:
        stored = shelf.stored()
    except BackupError:
        return None
    problem = ""
    if stored:
        try:
            with tempfile.TemporaryDirectory(prefix="loopbox-verify-") as into:
                verify_backup(stored[0].path, Path(into))
        except (BackupError, OSError) as error:
            problem = str(error)
    return BackupFacts(
        count=len(stored),
        newest=stored[0].name if stored else "",
        newest_at=stored[0].at if stored else None,
        problem=problem,
        every_s=settings.backup.every_s,
    )


def _synchronised() -> bool | None:
    """Ask the kernel, which whoever keeps the time tells (adjtimex(2), read only)."""
    try:
        answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else answer != TIME_ERROR


def _volumes(wanted: tuple[tuple[Path, int], ...]) -> tuple[Volume, ...]:
    found: dict[int, Volume] = {}
    for path, needed in wanted:
        place = path
        while not place.exists():
            place = place.parent
        device, room, usage = place.stat().st_dev, os.statvfs(place), shutil.disk_usage(place)
        before = found.get(device)
        found[device] = Volume(
            path=before.path if before else path,
            free=usage.free,
            total=usage.total,
            inodes_free=room.f_favail,
            inodes_total=room.f_files,
            needed=needed + (before.needed if before else 0),
        )
    return tuple(found.values())


def _linkable(layout: Layout) -> bool | None:
    """Try it: file systems differ in what they say and what they do. A name with a dot is passed over by loopd."""
    name = f".doctor-{os.getpid()}"
    source, target = layout.incoming / name, layout.blobs / name
    try:
        source.touch(exist_ok=False)
    except OSError:
        return None
    try:
        target.hardlink_to(source)
    except OSError:
        return False
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    return True


def _gpu(proc: Path) -> Gpu:
    driver = ""
    with contextlib.suppress(OSError):
        line = (proc / "driver/nvidia/version").read_text().partition("\n")[0]
        driver = next((word for word in line.split() if word[:1].isdigit()), line.strip())
    devices = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    return Gpu(devices=tuple(devices), driver=driver)


def _places(layout: Layout) -> tuple[Place, ...]:
    wanted: list[tuple[Path, Kind, int, int]] = [
        (path, "directory", mode, uid) for path, mode, uid in layout.directories()
    ]
    wanted.append((layout.control_socket, "socket", 0o600, 0))
    wanted.append((layout.broker / "broker.sock", "socket", 0o600, AGENT_UID))
    wanted.append((layout.token, "file", 0o600, 0))
    return tuple(_place(*one) for one in wanted)


def _place(path: Path, kind: Kind, mode: int, uid: int) -> Place:
    is_kind = {"directory": stat.S_ISDIR, "socket": stat.S_ISSOCK, "file": stat.S_ISREG}[kind]
    found_mode = found_uid = None
    with contextlib.suppress(OSError):
        status = path.lstat()
        if is_kind(status.st_mode):
            found_mode, found_uid = stat.S_IMODE(status.st_mode), status.st_uid
    return Place(path=path, kind=kind, mode=mode, uid=uid, found_mode=found_mode, found_uid=found_uid)


def _unit(settings: Settings, places: Places, commands: Commands) -> Unit | None:
    from loopd.cli.host_unit import unit_name  # noqa: PLC0415 only where systemd is

    if not places.booted:
        return None
    name = unit_name(settings)

    def says(*words: str) -> bool:
        return commands.run(("systemctl", *words, name), timeout_s=ASK_S).good

    shown = commands.run(("systemctl", "show", "--property=WatchdogUSec", "--value", name), timeout_s=ASK_S)
    return Unit(
        installed=(places.unit_dir / name).is_file(),
        enabled=says("is-enabled", "--quiet"),
        active=says("is-active", "--quiet"),
        watchdog=shown.good and shown.tail.strip() not in ("", "0", "infinity"),
    )
