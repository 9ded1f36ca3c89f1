"""host_checks: owns what a host must have before `up` changes anything: the facts, and the refusals they lead to.

``find_refusals`` is pure and names every fault at once; ``look`` gathers the facts.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loopd.cli.host_parts import Host
from loopd.cli.host_ports import Holder, find_holders
from loopd.cli.words import size
from loopd.engine import EngineDownError
from loopd.host import HostError, is_shared
from loopd.images import ImagesError, image_set, load_images, plan_here

MACHINES = ("x86_64", "aarch64")
MEMORY_BYTES = 1900 << 20  # the embedded model, the agent and two sandboxes; a "2 GB" host shows this much
BUILD_BYTES = 5 << 30  # measured: 1.2 GB for the engine's build stage, 0.6 GB for the images; the rest is slack
RUN_BYTES = 1 << 30  # with all images there: logs and containers
HOME_BYTES = 1 << 30  # state, and room for the embedded model twice


@dataclass(frozen=True, slots=True)
class Disk:
    """Room that is needed at a place."""

    path: Path
    device: int  #: places of one device share its room
    free: int  #: bytes
    needed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the host is like."""

    uid: int
    system: str
    machine: str
    memory: int  #: bytes
    disks: tuple[Disk, ...]
    holders: tuple[Holder, ...]  #: of the ports we need
    home: Path
    run_dir: Path
    repository: Path


def check(host: Host) -> str:
    """Refuse a host that cannot serve, before anything is changed. Raises HostError naming every fault."""
    facts = look(host)
    if refusals := find_refusals(facts):
        raise HostError("\n".join(["this host is not ready; nothing was changed:", *(f"  - {r}" for r in refusals)]))
    free = min(disk.free for disk in facts.disks)
    return f"{facts.machine}, {size(facts.memory)} memory, {size(free)} free"


def look(host: Host) -> Facts:
    """Gather the facts."""
    root = Path("/var/lib/docker")
    containers: tuple[str, ...] = ()
    try:
        with host.open_engine() as engine:
            root = engine.version().root
            containers = engine.container_ids()
    except EngineDownError:
        pass  # the next step's business
    settings = host.settings
    ports = {name: getattr(settings, name) for name in ("public_port", "internal_port", "control_port")}
    started = host.started
    ours = {p.pid for p in (started.loopd,) if p and p.alive(host.places.proc)}
    return Facts(
        uid=os.geteuid(),
        system=platform.system(),
        machine=platform.machine(),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        disks=(
            _disk(root, RUN_BYTES if _built(host) else BUILD_BYTES),
            _disk(settings.home, HOME_BYTES),
        ),
        holders=find_holders(ports, ours, containers, host.places.proc),
        home=settings.home,
        run_dir=settings.run_dir,
        repository=host.places.repository,
    )


def find_refusals(facts: Facts) -> tuple[str, ...]:
    """Return what makes this host unfit, each with what to do; () when it is fit."""
    found: list[str] = []
    if facts.system != "Linux":
        found.append(f"this is {facts.system}: containers share the host's kernel, and the appliance needs Linux")
    if facts.machine not in MACHINES:
        found.append(f"the processor is {facts.machine}: images can be built for {' and '.join(MACHINES)} only")
    if facts.uid != 0:
        found.append("this is not root, who alone may give containers their users and files: run `sudo make up`")
    if facts.memory < MEMORY_BYTES:
        found.append(f"the host has {size(facts.memory)} memory: {size(MEMORY_BYTES)} is the least that serves a model")
    for name, path in (("home", facts.home), ("run_dir", facts.run_dir)):
        if is_shared(path, facts.repository):
            found.append(
                f"{name} is {path}, where others have files, too: set LOOPBOX_{name.upper()} to one of its own"
            )
    found += _no_room(facts.disks)
    found += [
        f"port {h.port} ({h.setting}) is held by {h.name}: stop it, or choose another with "
        f"LOOPBOX_{h.setting.upper()}=… or in {facts.home}/loopbox.toml"
        for h in facts.holders
        if not h.ours
    ]
    return tuple(found)


def _no_room(disks: Iterable[Disk]) -> list[str]:
    devices: dict[int, list[Disk]] = {}
    for disk in disks:
        devices.setdefault(disk.device, []).append(disk)
    found = []
    for shared in devices.values():
        needed = sum(disk.needed for disk in shared)
        free = min(disk.free for disk in shared)
        if free < needed:
            places = " and ".join(str(disk.path) for disk in shared)
            found.append(
                f"{places}: {size(free)} free, {size(needed)} needed. Free some, or set LOOPBOX_HOME elsewhere"
            )
    return found


def _disk(path: Path, needed: int) -> Disk:
    place = path
    while not place.exists():
        place = place.parent
    return Disk(path, place.stat().st_dev, shutil.disk_usage(place).free, needed)


def _built(host: Host) -> bool:
    """Tell whether the images of this checkout were all built before; a guess, made before the engine runs."""
    try:
        return load_images(host.settings.home) == image_set(plan_here(host.places.repository, host.places.proc))
    except ImagesError:
        return False
