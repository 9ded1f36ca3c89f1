"""host_parts: owns what the steps of `up`, `down` and `purge` work with, and the one door for each."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from loopd.cli.host_commands import Commands, Say, SystemCommands
from loopd.config import Settings
from loopd.docker_engine import Connection
from loopd.docker_images import DockerImages, Swept, Version
from loopd.errors import ConflictError
from loopd.host import HostError, Places, Started, find_repository, load_started, save_started
from loopd.images import Recipe
from loopd.units import Layout, layout_of


class ContainerHost(Protocol):
    """The container engine, opened: DockerImages, or a stand-in for it."""

    def version(self) -> Version:
        """Ask what it is."""
        ...

    def has(self, tag: str) -> bool:
        """Tell whether an image is there."""
        ...

    def build(self, recipe: Recipe, say: Say) -> None:
        """Build an image."""
        ...

    def container_ids(self) -> tuple[str, ...]:
        """Return this instance's containers."""
        ...

    def foreign(self) -> tuple[str, ...]:
        """Return the running containers of others."""
        ...

    def remove_containers(self) -> int:
        """Remove this instance's containers and networks."""
        ...

    def remove_images(self, also: Iterable[str] = ()) -> Swept:
        """Remove what was built and nobody uses."""
        ...


@dataclass(frozen=True, kw_only=True)
class Host:
    """One instance on one host."""

    settings: Settings
    places: Places
    commands: Commands
    open_engine: Callable[[], AbstractContextManager[ContainerHost]]  #: raises EngineDownError

    @property
    def layout(self) -> Layout:
        """Where its files are."""
        return layout_of(self.settings)

    @property
    def logs(self) -> Path:
        """Where the logs of what runs without systemd are."""
        return self.settings.home / "log"

    @property
    def started(self) -> Started:
        """What was started, as recorded."""
        return load_started(self.settings.home)

    def remember(self, started: Started) -> None:
        """Record what was started. Raises HostError."""
        save_started(self.settings.home, started)


def this_host(settings: Settings) -> Host:
    """Return the real one. Raises HostError outside a checkout."""
    connection = Connection(settings.docker_host, settings.instance)
    return Host(
        settings=settings,
        places=Places(repository=find_repository()),
        commands=SystemCommands(),
        open_engine=lambda: DockerImages(connection),
    )


@contextlib.contextmanager
def sole(home: Path) -> Iterator[None]:
    """Be the only `up`, `down` or `purge` on a home. Raises ConflictError; the lock ends with this process."""
    try:
        home.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise HostError(f"{home} cannot be used: {error.strerror}. Run this as root, or set LOOPBOX_HOME") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConflictError(
            f"another `up`, `down` or `purge` is at work on {home}; nothing was done. Wait for its end and try again"
        ) from error
    finally:
        os.close(handle)
