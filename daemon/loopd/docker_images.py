"""docker_images: owns what `up`, `down` and `purge` ask of the container engine: builds, and taking away what is ours.

Beside docker_engine the only module that imports ``docker``. It blocks, and is used by the command line alone.
Every stage of an image we build carries LABEL_BUILT, so that `purge` finds also the untagged ones.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import docker
import docker.errors
import requests.exceptions

from loopd.docker_engine import LABEL_INSTANCE, Connection
from loopd.engine import EngineDownError
from loopd.errors import LoopdError
from loopd.images import REPOSITORY, Entry, Recipe, read_folder

LABEL_BUILT = "loopbox.built"  # its value is the image's name
CA_FILE = "ca-certificates.crt"  # at the root of every build context
CA_PLACES = ("/etc/ssl/certs/ca-certificates.crt",)

SILENCE_S = 1800.0  # compiling the engine writes nothing for minutes
BUILD_S = 3 * 3600.0
TAIL_LINES = 30
LINE_CHARACTERS = 400
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # the engine paints what a step writes to stderr
_FROM = re.compile(rb"^(\s*FROM\s[^\n]*)$", re.IGNORECASE | re.MULTILINE)

Say = Callable[[str], None]


class BuildError(LoopdError):
    """An image could not be built; those built before stay, and what runs goes on running."""

    code = "build_failed"


@dataclass(frozen=True, slots=True)
class Version:
    """The engine that answers."""

    number: str
    root: Path  #: where it keeps images and containers


@dataclass(frozen=True, slots=True)
class Swept:
    """What was removed, and what was left because another uses it."""

    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


class DockerImages:
    """The container engine as `up` sees it. A context; every call raises EngineDownError when it does not answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client = connection.client()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def version(self) -> Version:
        """Ask the engine what it is."""
        with _asked("ask for its version"):
            told: dict[str, Any] = self._client.info()  # Any: the API's JSON
        return Version(str(told.get("ServerVersion", "")), Path(str(told.get("DockerRootDir", "/var/lib/docker"))))

    def details(self) -> dict[str, Any]:  # Any: the API's JSON
        """Return everything the engine tells of itself."""
        with _asked("ask how it is"):
            return dict(self._client.info())

    def has(self, tag: str) -> bool:
        """Tell whether an image is on this host."""
        with _asked(f"look for {tag}"):
            try:
                self._client.images.get(tag)
            except docker.errors.ImageNotFound:
                return False
        return True

    def build(self, recipe: Recipe, say: Say) -> None:
        """Build one image under its tag, telling ``say`` each step. Raises BuildError with the last lines."""
        context = build_context(recipe.name, read_folder(recipe.folder), find_bundle(os.environ))
        lines: deque[str] = deque(maxlen=TAIL_LINES)
        deadline = time.monotonic() + BUILD_S
        with contextlib.closing(context), _asked(f"build {recipe.name}"):
            try:
                for part in self._build(recipe, context):
                    if "error" in part:
                        raise BuildError(_failure(recipe, str(part["error"]), lines))
                    for line in str(part.get("stream") or part.get("status") or "").splitlines():
                        if text := _COLOUR.sub("", line).strip()[:LINE_CHARACTERS]:
                            lines.append(text)
                            say(text)
                    if time.monotonic() > deadline:
                        raise BuildError(_failure(recipe, f"not done after {BUILD_S:g} s", lines))
            except docker.errors.APIError as error:  # a Dockerfile that cannot be read, for one
                raise BuildError(_failure(recipe, str(error.explanation or error), lines)) from error
        if not self.has(recipe.tag):
            raise BuildError(_failure(recipe, "the engine ended the build without a word", lines))

    def _build(self, recipe: Recipe, context: io.BytesIO) -> Iterator[dict[str, Any]]:  # Any: the API's JSON
        return self._client.api.build(
            fileobj=context,
            custom_context=True,
            tag=recipe.tag,
            buildargs=dict(recipe.arguments) | proxies(os.environ),
            network_mode="host",
            timeout=int(SILENCE_S),
            rm=True,
            forcerm=True,
            nocache=False,
            pull=False,
            decode=True,
        )

    def container_ids(self) -> tuple[str, ...]:
        """Return the ids of this instance's containers, stopped ones too."""
        with _asked("list containers"):
            return tuple(str(c.id) for c in self._client.containers.list(all=True, filters=self._ours, sparse=True))

    def foreign(self) -> tuple[str, ...]:
        """Return the names of running containers that are not this instance's."""
        with _asked("list containers"):
            running = self._client.containers.list(ignore_removed=True)
        return tuple(str(c.name) for c in running if c.labels.get(LABEL_INSTANCE) != self.instance)

    def remove_containers(self) -> int:
        """Remove this instance's containers and networks; return how many containers there were."""
        with _asked("remove containers"):
            found = self._client.containers.list(all=True, filters=self._ours, ignore_removed=True)
            for container in found:
                with contextlib.suppress(docker.errors.NotFound):
                    container.remove(force=True, v=True)
            for network in self._client.networks.list(filters=self._ours):
                with contextlib.suppress(docker.errors.NotFound):
                    network.remove()
        return len(found)

    def remove_images(self, also: Iterable[str] = ()) -> Swept:
        """Remove every image we built, and ``also`` these tags, but none that a container uses."""
        ends: dict[str, list[str]] = {"removed": [], "kept": [], "gone": []}
        for name in self.built():
            ends[self.remove_image(name)].append(name)
        for name in [*ends.pop("kept"), *also]:  # a parent younger than its child, whose child has gone by now
            ends.setdefault(self.remove_image(name), []).append(name)
        return Swept(tuple(ends["removed"]), tuple(ends.get("kept", ())))

    def built(self) -> tuple[str, ...]:
        """Return what the images we built are removed by: tags, ids of untagged ones; youngest first.

        An image with children cannot go, and a removed child takes its untagged parents along.
        """
        with _asked("list images"):
            found = self._client.api.images(filters={"label": LABEL_BUILT})
        young = sorted(found, key=lambda image: int(image["Created"]), reverse=True)
        return tuple(name for image in young for name in _names(image))

    def remove_image(self, name: str) -> Literal["removed", "kept", "gone"]:
        """Remove one image, unless a container or a child needs it; tell how it ended."""
        with _asked(f"remove {name}"):
            try:
                self._client.images.remove(name)
            except docker.errors.ImageNotFound:
                return "gone"
            except docker.errors.APIError as error:
                if error.status_code != requests.codes.conflict:
                    raise
                return "kept"
        return "removed"

    @property
    def instance(self) -> str:
        """Whose containers are ours."""
        return self._connection.instance

    @property
    def _ours(self) -> dict[str, Any]:  # Any: the SDK's own type for filters
        return {"label": f"{LABEL_INSTANCE}={self.instance}"}


def build_context(name: str, entries: Iterable[Entry], bundle: bytes) -> io.BytesIO:
    """Return the tar that the engine builds from: the folder, the CA bundle, and our label in every stage."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for entry in (*entries, Entry(CA_FILE, 0o644, bundle)):
            info = tarfile.TarInfo(entry.path)
            info.mode = entry.mode
            if entry.link:
                info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(entry.content)
                tar.addfile(info)
                continue
            content = entry.content
            if entry.path == "Dockerfile":
                content = _FROM.sub(rb"\1\nLABEL " + f"{LABEL_BUILT}={name}".encode(), content)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    packed.seek(0)
    return packed


def find_bundle(environment: Mapping[str, str]) -> bytes:
    """Return the certificates that this host trusts, b'' for none: builds then trust what Debian brings."""
    for place in (environment.get("SSL_CERT_FILE"), *CA_PLACES):
        if place:
            with contextlib.suppress(OSError):
                return Path(place).read_bytes()
    return b""


def proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the proxies to pass on; the engine keeps these arguments out of the image and its history."""
    names = [*_PROXIES, *(name.lower() for name in _PROXIES)]
    return {name: environment[name] for name in names if environment.get(name)}


def _names(image: Mapping[str, Any]) -> list[str]:  # Any: the API's JSON
    """Return what to remove an image by: our tags, or its id when it has none; another's tag is not ours to take."""
    tags = [str(tag) for tag in image.get("RepoTags") or () if tag != "<none>:<none>"]
    return [tag for tag in tags if tag.startswith(f"{REPOSITORY}/")] if tags else [str(image["Id"])]


def _failure(recipe: Recipe, cause: str, lines: Iterable[str]) -> str:
    shown = "\n".join(f"  {line}" for line in lines)
    return (
        f"image {recipe.name} could not be built: {cause.strip()[:LINE_CHARACTERS]}\n{shown}\n"
        "What ran before runs on. Mend the cause above (is the package registry reachable?) and repeat `make up`: "
        "it goes on where it stopped"
    )


@contextlib.contextmanager
def _asked(what: str) -> Iterator[None]:
    try:
        yield
    except docker.errors.APIError as error:
        raise EngineDownError(f"the container engine refused to {what}: {error.explanation or error}") from error
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise EngineDownError(
            f"the container engine did not answer when asked to {what} ({str(error)[:200]}); `make up` starts it"
        ) from error
