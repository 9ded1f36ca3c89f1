"""images: owns which images belong to this checkout: each one's content digest, its tag and the order of building.

A tag names the content it is built from, so an image whose tag is on the host never needs building again. The
host's CA bundle and proxies are needed to build but are no content: another network gives the same tags.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loopd.config import ConfigError
from loopd.host import write_atomically

REPOSITORY = "loopbox"
TAG_DIGITS = 12
FILE = "images.json"
DEBIAN = "debian:bookworm-slim"  # the one image that is not built from a folder

MOST_FILES = 5_000  # of one image folder
MOST_BYTES = 64 << 20
MAX_FILE_BYTES = 64 << 10  # of images.json

# Not part of an image: documentation, tests, and what tools leave behind.
_LEFT_OUT = ("README*", "tests", "__pycache__", "*.pyc", "*.egg-info", ".*_cache", ".hypothesis", ".coverage*")
# Part of every digest: raised when building itself changes what comes out.
_RECIPE = b"loopbox-image-1"
_PARENT = re.compile(rf"^ARG\s+BASE={REPOSITORY}/([a-z0-9-]+)\b", re.IGNORECASE | re.MULTILINE)

Tag = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/-]{0,127}:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")]


class ImagesError(ConfigError):
    """Which images to use cannot be told; nothing was started or built."""

    code = "images_unknown"


class ImageSet(BaseModel):
    """The tags that belong together. The fields are the image folders that an appliance needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Tag
    gateway: Tag
    ollama: Tag
    agent: Tag
    toolrunner: Tag
    egress: Tag | None = None  #: absent in the file of an older version: then no host is granted
    browser: Tag | None = None  #: absent there, too: then no sandbox with a browser is lent
    trainer: Tag | None = None  #: absent there, too; told even while it is not built, see ON_DEMAND

    def tags(self) -> tuple[str, ...]:
        """Return all of them."""
        return tuple(tag for name in type(self).model_fields if (tag := getattr(self, name)) is not None)


NAMES: tuple[str, ...] = tuple(ImageSet.model_fields)
#: Built only when asked for by name: gigabytes, and nothing that serves needs them.
ON_DEMAND: frozenset[str] = frozenset({"trainer"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an image folder. Modes are reduced to executable or not, since a clone's umask is no content."""

    path: str  #: relative, with slashes
    mode: int  #: 0o755 or 0o644
    content: bytes  #: of a link: where it leads
    link: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What one image is made from, and the tag that follows from it."""

    name: str
    folder: Path
    tag: str
    parent: str | None  #: the parent image's tag
    arguments: tuple[tuple[str, str], ...]  #: build arguments that are content


def load_images(home: Path) -> ImageSet:
    """Read the tags that `up` wrote. Raises ImagesError."""
    path = home / FILE
    advice = "Nothing was started. `make up` builds the images and writes it"
    try:
        with path.open("rb") as file:
            return ImageSet.model_validate_json(file.read(MAX_FILE_BYTES))
    except FileNotFoundError as error:
        raise ImagesError(f"{path} is not there, so it is unknown which images to run. {advice}") from error
    except OSError as error:
        raise ImagesError(f"{path} cannot be read: {error.strerror}. {advice}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        raise ImagesError(f"{path} cannot be used ({where}: {fault['msg']}). {advice} anew") from error


def save_images(home: Path, images: ImageSet) -> None:
    """Write the tags, whole or not at all."""
    write_atomically(home / FILE, images.model_dump_json(indent=2) + "\n")


def plan_images(images: Path, names: Iterable[str] = NAMES, *, cpu: str | None = None) -> tuple[Recipe, ...]:
    """Return the recipes of the named folders below ``images`` and of their parents, parents first.

    cpu: a name of this machine's processor, to build the engine for it alone; None: for any of its kind.
    Raises ImagesError for a folder that is missing, too big, or its own ancestor.
    """
    folders: dict[str, tuple[Entry, ...]] = {}
    parents: dict[str, set[str]] = {}
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name in folders:
            continue
        folders[name] = read_folder(images / name)
        parents[name] = find_parents(folders[name])
        wanted += parents[name]
    try:
        order = tuple(TopologicalSorter(parents).static_order())
    except CycleError as error:
        raise ImagesError(f"images are built on each other in a circle: {' on '.join(error.args[1])}") from error
    recipes: dict[str, Recipe] = {}
    for name in order:
        parent = next((recipes[p].tag for p in parents[name]), None)
        arguments = arguments_of(name, parent, cpu)
        digest = digest_of(folders[name], arguments, salt=cpu if name == "ollama" and cpu else "")
        recipes[name] = Recipe(
            name=name,
            folder=images / name,
            tag=f"{REPOSITORY}/{name}:{digest[:TAG_DIGITS]}",
            parent=parent,
            arguments=arguments,
        )
    return tuple(recipes.values())


def plan_here(
    repository: Path, proc: Path, names: Iterable[str] = NAMES, *, portable: bool = False
) -> tuple[Recipe, ...]:
    """Return the recipes of a checkout, for this machine's processor unless ``portable``. Raises ImagesError."""
    try:
        cpu = None if portable else cpu_name((proc / "cpuinfo").read_text())
    except OSError:
        cpu = None
    return plan_images(repository / "images", names, cpu=cpu)


def image_set(recipes: Iterable[Recipe]) -> ImageSet:
    """Return the tags of a whole plan."""
    return ImageSet.model_validate({r.name: r.tag for r in recipes if r.name in NAMES})


def arguments_of(name: str, parent: str | None, cpu: str | None) -> tuple[tuple[str, str], ...]:
    """Return the build arguments that change what comes out."""
    arguments = [("BASE", parent)] if parent else []
    if name == "ollama" and cpu:
        arguments.append(("CPU_FLAGS", "-march=native"))
    return tuple(arguments)


def digest_of(entries: Iterable[Entry], arguments: Iterable[tuple[str, str]], *, salt: str = "") -> str:
    """Return the hex digest of an image's content; every part's length goes in, so no two contents can meet."""
    digest = hashlib.sha256(_RECIPE)
    for entry in sorted(entries, key=lambda e: e.path):
        kind = "link" if entry.link else f"{entry.mode:o}"
        _feed(digest.update, b"file", os.fsencode(entry.path), kind.encode(), entry.content)
    for key, value in sorted(arguments):
        _feed(digest.update, b"argument", key.encode(), value.encode())
    _feed(digest.update, b"salt", salt.encode())
    return digest.hexdigest()


def read_folder(folder: Path) -> tuple[Entry, ...]:
    """Return an image folder's files, sorted. Raises ImagesError."""
    entries: list[Entry] = []
    size = 0
    try:
        for path in _walk(folder):
            info = path.lstat()
            size += info.st_size
            if len(entries) >= MOST_FILES or size > MOST_BYTES:
                raise ImagesError(
                    f"{folder} holds more than {MOST_FILES} files or {MOST_BYTES >> 20} MiB: move out what is no source"
                )
            entries.append(_entry(path, folder, info.st_mode))
    except OSError as error:
        raise ImagesError(f"{error.filename} cannot be read: {error.strerror}. Nothing was built") from error
    if all(entry.path != "Dockerfile" for entry in entries):
        raise ImagesError(f"{folder} holds no Dockerfile: is this checkout whole? `git status` tells")
    return tuple(sorted(entries, key=lambda e: e.path))


def find_parents(entries: Iterable[Entry]) -> set[str]:
    """Return the folder this image builds on, named by the default of its argument BASE; empty for none."""
    text = next(e.content for e in entries if e.path == "Dockerfile").decode(errors="replace")
    found = _PARENT.search(text)
    return {found[1]} if found else set()


def cpu_name(cpuinfo: str) -> str:
    """Return a short digest of what a processor is and can (the text of /proc/cpuinfo), the same for all its cores."""
    first = cpuinfo.split("\n\n", 1)[0]
    lines = (line.partition(":") for line in first.splitlines())
    told: Mapping[str, str] = {key.strip(): value for key, _, value in lines}
    kept = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")
    words = [" ".join(sorted(told.get(key, "").split())) for key in kept]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:TAG_DIGITS]


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in _LEFT_OUT):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path


def _entry(path: Path, folder: Path, mode: int) -> Entry:
    name = path.relative_to(folder).as_posix()
    if stat.S_ISLNK(mode):
        if shared := _shared(path, folder):
            return Entry(name, 0o644, shared.read_bytes())
        return Entry(name, 0o644, os.fsencode(path.readlink()), link=True)
    if not stat.S_ISREG(mode):
        raise ImagesError(f"{path} is neither a file nor a link: remove it from the image folder")
    return Entry(name, 0o755 if mode & stat.S_IXUSR else 0o644, path.read_bytes())


def _shared(path: Path, folder: Path) -> Path | None:
    """Return the file of another image folder that a link leads to: both images have it, the checkout has it once."""
    leads_to, here = path.resolve(), folder.resolve()
    if leads_to.is_relative_to(here) or not leads_to.is_relative_to(here.parent) or not leads_to.is_file():
        return None
    return leads_to


def _feed(update: Callable[[bytes], None], *parts: bytes) -> None:
    for part in parts:
        update(len(part).to_bytes(8, "big"))
        update(part)
