"""inputs: owns what commands take in and write out: texts, ids, files, and the answer to "are you sure?"."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import fdopen
from pathlib import Path
from tempfile import mkstemp
from typing import BinaryIO

import typer
from pydantic import JsonValue

from loopd.cli.exits import ExitCode
from loopd.cli.screen import Screen
from loopd.errors import LoopdError

MAX_TEXT_BYTES = 1 << 20
MAX_SCHEMA_BYTES = 256 << 10
STDIO = "-"

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_THREAD = re.compile(r"thread_[0-9a-f]{16}")


class FileError(LoopdError):
    """A file of the caller's cannot be read or written."""

    code = "file"


def check_id(text: str) -> str:
    """Refuse what can be no id."""
    if not _ID.fullmatch(text):
        raise typer.BadParameter("an id is 1 to 64 of A-Za-z0-9_-")
    return text


def check_thread(text: str) -> str:
    """Refuse what can be no thread's id."""
    if not _THREAD.fullmatch(text):
        raise typer.BadParameter("a thread's id is thread_ and 16 hex digits; `loopctl threads list` shows them")
    return text


def read_text(text: str, what: str) -> str:
    """Return the argument, or standard input for ``-``. Raises BadParameter when there is nothing or too much."""
    if text == STDIO:
        text = _take(sys.stdin.buffer, "standard input", MAX_TEXT_BYTES).decode("utf-8", "replace")
    if not text.strip():
        raise typer.BadParameter(f"there is no {what}")
    return text


def read_document(file: str) -> bytes:
    """Return the bytes of a text in UTF-8; ``-`` reads standard input. Raises FileError, BadParameter."""
    most = 64 << 20  # the agent's own limit is lower, and set by its operator
    if file == STDIO:
        raw = _take(sys.stdin.buffer, "standard input", most)
    else:
        with reading(Path(file)) as source:
            raw = _take(source, file, most)
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(
            f"{file} is no text in UTF-8 (byte {error.start}): give a text made from it"
        ) from error
    if not raw.strip():
        raise typer.BadParameter(f"{file} is empty")
    return raw


def read_schema(path: Path) -> dict[str, JsonValue]:
    """Return the JSON schema in a file. Raises FileError, BadParameter."""
    with reading(path) as source:
        raw = _take(source, str(path), MAX_SCHEMA_BYTES)
    try:
        schema = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{path} is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise typer.BadParameter(f"{path} is no JSON schema: it holds no object")
    return schema


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading. Raises FileError."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}. Nothing was sent") from error
    with file:
        yield file


@contextmanager
def writing(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Open a file that appears whole under its name, readable by its owner alone, or not at all. Raises FileError."""
    if path.exists() and not force:
        raise FileError(f"{path} exists and was left as it is; give another name, or --force")
    try:
        number, draft = mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
        try:
            with fdopen(number, "wb") as file:
                yield file
            Path(draft).replace(path)
        finally:
            with suppress(FileNotFoundError):
                Path(draft).unlink()
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}. Nothing is left of it") from error


def confirm(screen: Screen, question: str, word: str, *, yes: bool) -> None:
    """Go on when a person types ``word`` or --yes was given; else exit with 2. Without a terminal the answer is no."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        screen.remark(
            f"{question}\nIt asks first, and there is no terminal to ask on: repeat with --yes if you mean it"
        )
    else:
        screen.remark(f"{question}\nType {word} to go on:")
        if sys.stdin.readline().strip() in (word, "yes"):
            return
        screen.remark("nothing was done")
    raise typer.Exit(ExitCode.USAGE)


def _take(source: BinaryIO, name: str, most: int) -> bytes:
    try:
        raw = source.read(most + 1)
    except OSError as error:
        raise FileError(f"{name} cannot be read: {error.strerror}. Nothing was sent") from error
    if len(raw) > most:
        raise typer.BadParameter(f"{name} has more than {most} bytes")
    return raw
