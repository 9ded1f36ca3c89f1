"""engine: owns the seam to the container engine, the types that cross it, and the fake that ships with it.

A *unit* is what loopd wants to run; an *instance* is what the engine runs of it. Nobody but loopd restarts an
instance: units carry no restart policy. Addresses come from instances, never from names.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal, Protocol

from loopd.errors import NotFoundError, UnavailableError

# "egress": a network of its own with a way out; whatever is on it reaches nothing else of ours.
Network = Literal["host", "internal", "egress", "none"]

EVENT_QUEUE = 1000  # events kept for a slow reader; past that one Relist replaces them all


class EngineDownError(UnavailableError):
    """The container engine does not answer; containers that run go on running."""

    code = "engine_down"


class ImageMissingError(NotFoundError):
    """An image that a unit needs is not on this host: `make images`."""

    code = "image_missing"


class StartFailedError(UnavailableError):
    """The engine could not start a unit."""

    code = "start_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A host directory seen inside the container."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an instance may use at most."""

    memory_bytes: int
    cpus: float | None = None  #: cores; None: not limited
    pids: int = 512
    weight: int = 1024  #: of CPU time beside others when there is not enough for all; 2..262144


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What holds an instance in beyond the least privilege that every unit gets."""

    seccomp: str = ""  #: profile, JSON; '': the engine's own
    masked_paths: tuple[str, ...] = ()  #: that read as empty; (): the engine's own choice
    runtime: str = ""  #: by name, such as runsc; '': the engine's default
    oom_score_adj: int = 0  #: -1000..1000; the higher, the sooner it is killed for want of memory
    open_files: int = 0  #: of each process at most; 0: the engine's own choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One container loopd wants. Least privilege is not a field: every unit gets it."""

    name: str  #: unique on the host, e.g. ``engine-0123456789ab``
    image: str
    user: str  #: numeric uid:gid
    network: Network
    limits: Limits
    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    tmpfs: tuple[tuple[str, str], ...] = (("/tmp", "size=64m,nosuid,nodev"),)  # noqa: S108 inside the container
    stop_grace_s: int = 10
    gpus: bool = False  #: sees every NVIDIA GPU of the host
    confinement: Confinement = Confinement()

    @property
    def fingerprint(self) -> str:
        """Digest of the whole specification: an instance with another one is out of date."""
        told = asdict(self)
        if self.confinement == Confinement():  # units made before there was any are as they were
            del told["confinement"]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


class InstanceState(StrEnum):
    """Where an instance is in its life."""

    CREATED = "created"  #: made, never started
    RUNNING = "running"
    STOPPED = "stopped"  #: exited, by itself or by someone's hand


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One container as the engine shows it."""

    unit: str
    ordinal: int = 0  #: 0 while every unit has one instance
    host: str = "local"
    id: str
    image_id: str  #: digest of the image it runs
    fingerprint: str
    state: InstanceState
    address: str | None  #: IP address; None: no network, or not running
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened to an instance."""

    unit: str
    action: Literal["started", "died", "oom", "removed", "killed", "renamed"]
    at: datetime
    container: str = ""  #: its id
    exit_code: int | None = None
    signal: int | None = None  #: of a "killed" one, which may live on


@dataclass(frozen=True, slots=True)
class Relist:
    """Events may have been missed: observe everything anew."""

    back: bool = False  #: the engine had gone away and is back


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an instance uses."""

    cpu_s: float  #: seconds of CPU time since its start
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a one-shot container ended."""

    exit_code: int
    output: str  #: stdout and stderr, at most 64 KiB from the end


class Engine(Protocol):
    """What loopd needs of a container engine. Every call may be repeated. Raises EngineDownError."""

    async def open(self) -> None:
        """Connect and ensure the internal network; needed before all else, cheap when done."""
        ...

    async def close(self) -> None:
        """Let go of connections; containers stay."""
        ...

    @property
    def internal_address(self) -> str:
        """The host's own address on the internal network, where the gateway listens for the agent; '' before open()."""
        ...

    async def runtimes(self) -> frozenset[str]:
        """Return the names of the runtimes that a unit may ask for."""
        ...

    async def image_id(self, reference: str) -> str:
        """Return the image's digest. Raises ImageMissingError."""
        ...

    async def apply(self, unit: Unit) -> Instance:
        """Bring the unit to running as specified, from absent, stopped, running or out of date.

        Raises ImageMissingError, StartFailedError (also for a runtime that there is not).
        """
        ...

    async def remove(self, unit: str, *, grace_s: int = 10) -> None:
        """Stop (SIGTERM, SIGKILL after ``grace_s`` seconds) and remove; absent is fine."""
        ...

    async def observe(self) -> tuple[Instance, ...]:
        """Return one snapshot of all our instances, running or not."""
        ...

    def watch(self) -> AsyncIterator[Event | Relist]:
        """Yield events for ever; a Relist first and after every gap."""
        ...

    async def usage(self, unit: str) -> Usage:
        """Return what a running unit uses at this moment. Raises NotFoundError."""
        ...

    async def pids(self, unit: str) -> frozenset[int]:
        """Return a running unit's processes, as the host numbers them; none when it does not run."""
        ...

    async def weigh(self, unit: str, weight: int) -> None:
        """Give a running unit another weight of CPU time than its limits say, until its end; absent is fine."""
        ...

    async def signal(self, unit: str, name: str) -> None:
        """Send a signal such as ``SIGUSR2``. Raises NotFoundError when it does not run."""
        ...

    async def logs(self, unit: str, *, tail: int = 50) -> str:
        """Return the last lines of output, '' when there are none or no instance."""
        ...

    async def run(self, unit: Unit, *, timeout_s: float) -> JobResult:
        """Run the unit once to its end and remove it. Raises TimeoutError; the container is gone then, too."""
        ...


@dataclass
class InMemoryEngine:
    """A container engine in memory: same contract, no containers. Held to it by the suite DockerEngine passes."""

    images: dict[str, str] = field(default_factory=dict)  #: reference -> digest
    down: bool = False
    instances: dict[str, Instance] = field(default_factory=dict)
    job_result: JobResult = field(default_factory=lambda: JobResult(exit_code=0, output=""))
    signals: list[tuple[str, str]] = field(default_factory=list)
    usages: dict[str, Usage] = field(default_factory=dict)  #: by unit, for tests to set
    weights: dict[str, int] = field(default_factory=dict)  #: by unit, as weigh() set them
    internal_address: str = "127.0.0.1"
    known_runtimes: frozenset[str] = frozenset({"runc"})
    _made: int = 0
    _watchers: list[asyncio.Queue[Event | Relist]] = field(default_factory=list)

    async def open(self) -> None:
        """Connect."""
        self._require_up()

    async def close(self) -> None:
        """Disconnect."""

    async def runtimes(self) -> frozenset[str]:
        """Return ``known_runtimes``."""
        self._require_up()
        return self.known_runtimes

    async def image_id(self, reference: str) -> str:
        """Return the digest given in ``images``."""
        self._require_up()
        if reference not in self.images:
            raise ImageMissingError(f"image {reference} is not on this host: run `make images`")
        return self.images[reference]

    async def apply(self, unit: Unit) -> Instance:
        """Run the unit."""
        self._require_up()
        current = self.instances.get(unit.name)
        same = current is not None and current.fingerprint == unit.fingerprint
        image_id = current.image_id if current and same else await self.image_id(unit.image)
        if current and current.state is InstanceState.RUNNING and current.fingerprint == unit.fingerprint:
            return current
        if unit.confinement.runtime and unit.confinement.runtime not in self.known_runtimes:
            raise StartFailedError(f"{unit.name} could not be started: unknown runtime {unit.confinement.runtime}")
        self._made += 1
        instance = Instance(
            unit=unit.name,
            id=current.id if current and same else f"c{self._made:04d}",
            image_id=image_id,
            fingerprint=unit.fingerprint,
            state=InstanceState.RUNNING,
            address={
                "internal": f"10.0.0.{self._made % 250 + 1}",
                "egress": f"10.0.1.{self._made % 250 + 1}",
                "host": "127.0.0.1",
                "none": None,
            }[unit.network],
            started_at=datetime.now(UTC),
        )
        self.instances[unit.name] = instance
        self._emit(Event(unit=unit.name, action="started", at=datetime.now(UTC)))
        return instance

    async def remove(self, unit: str, *, grace_s: int = 10) -> None:
        """Forget the unit's instance."""
        del grace_s
        self._require_up()
        if self.instances.pop(unit, None):
            self._emit(Event(unit=unit, action="removed", at=datetime.now(UTC)))

    async def observe(self) -> tuple[Instance, ...]:
        """Return what runs."""
        self._require_up()
        return tuple(self.instances.values())

    async def watch(self) -> AsyncIterator[Event | Relist]:
        """Yield events as they are made."""
        queue: asyncio.Queue[Event | Relist] = asyncio.Queue(EVENT_QUEUE)
        self._watchers.append(queue)
        yield Relist()
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.remove(queue)

    async def usage(self, unit: str) -> Usage:
        """Return what a test set, nothing else being used."""
        self._require_up()
        if unit not in self.instances:
            raise NotFoundError(f"unit {unit} does not run")
        return self.usages.get(unit, Usage(cpu_s=0.0, memory_bytes=0))

    async def pids(self, unit: str) -> frozenset[int]:
        """Return one process for each unit that runs."""
        self._require_up()
        return frozenset({1}) if unit in self.instances else frozenset()

    async def weigh(self, unit: str, weight: int) -> None:
        """Record the weight."""
        self._require_up()
        if unit in self.instances:
            self.weights[unit] = weight

    async def signal(self, unit: str, name: str) -> None:
        """Record the signal."""
        self._require_up()
        instance = self.instances.get(unit)
        if instance is None or instance.state is not InstanceState.RUNNING:
            raise NotFoundError(f"unit {unit} does not run, so no {name} was sent")
        self.signals.append((unit, name))

    async def logs(self, unit: str, *, tail: int = 50) -> str:
        """Return nothing: there is no output in memory."""
        del unit, tail
        self._require_up()
        return ""

    async def run(self, unit: Unit, *, timeout_s: float) -> JobResult:
        """Return ``job_result``."""
        del timeout_s
        await self.image_id(unit.image)
        return self.job_result

    def touch(self, unit: str, signal: int) -> None:
        """Tell of a signal that somebody sent through the engine."""
        container = self.instances[unit].id
        self._emit(Event(unit=unit, action="killed", at=datetime.now(UTC), container=container, signal=signal))

    def die(self, unit: str, *, exit_code: int = 1, oom_killed: bool = False) -> None:
        """Let an instance end by itself, as a crash does."""
        self.instances[unit] = replace(
            self.instances[unit],
            state=InstanceState.STOPPED,
            exit_code=exit_code,
            oom_killed=oom_killed,
            address=None,
            finished_at=datetime.now(UTC),
        )
        self._emit(Event(unit=unit, action="died", at=datetime.now(UTC), exit_code=exit_code))

    def _emit(self, event: Event) -> None:
        for queue in self._watchers:
            queue.put_nowait(event)

    def _require_up(self) -> None:
        if self.down:
            raise EngineDownError("the container engine does not answer: start it (`systemctl start docker`)")
