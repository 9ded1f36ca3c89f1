"""doctor_facts: owns what `loopctl doctor` knows of a host: one snapshot. None: it could not be seen."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from loopd.cli.host_ports import Holder


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The host itself."""

    system: str
    machine: str
    kernel: str
    uid: int  #: who looks
    cpus: int
    memory: int  #: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The host's time."""

    now: datetime
    synchronised: bool | None  #: as the kernel has it
    newest_entry: datetime | None  #: of the ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Docker:
    """The container engine that answers."""

    version: str
    cgroup: str
    storage: str
    live_restore: bool
    runtimes: tuple[str, ...]
    missing_images: tuple[str, ...] | None  #: None: it is unknown which images to run


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A file system that is written to."""

    path: Path
    free: int  #: bytes
    total: int
    inodes_free: int
    inodes_total: int  #: 0: the file system makes them as needed
    needed: int  #: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What there is of NVIDIA's."""

    devices: tuple[str, ...]
    driver: str  #: '' for none


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A directory, socket or file as it should be and as it is."""

    path: Path
    kind: Literal["directory", "socket", "file"]
    mode: int
    uid: int
    found_mode: int | None  #: None: it is not there, or is something else
    found_uid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """loopd's systemd unit."""

    installed: bool
    enabled: bool
    active: bool
    watchdog: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """state.db in depth."""

    problem: str  #: '' when it is whole
    schema: int
    entries: int
    releases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupFacts:
    """The folder of backups."""

    count: int
    newest: str
    newest_at: datetime | None
    problem: str  #: of the newest, '' when it is good
    every_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A unit as loopd tells of it."""

    name: str
    ready: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loopd:
    """The daemon that answers."""

    version: str
    state: str
    reason: str
    services: tuple[Service, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything seen."""

    machine: Machine
    clock: Clock
    docker: Docker | None
    docker_trouble: str
    volumes: tuple[Volume, ...]
    linkable: bool | None  #: a hard link from models/incoming to models/blobs
    gpu: Gpu
    ports: tuple[Holder, ...]
    places: tuple[Place, ...]
    unit: Unit | None  #: None: no systemd here
    state: State | None  #: None: not there, or not for this user to see
    state_trouble: str  #: why it could not be seen
    backups: BackupFacts | None
    loopd: Loopd | None
    loopd_trouble: str
    version: str  #: loopctl's own
    gateway: bool  #: says that it answers requests
