"""search_child: owns the looking through files for search_files and glob, in a process that can be killed.

A regular expression can take for ever on one line; nothing in Python stops it but the end of its process. Standard
library only, for speed. Started with one argument, a JSON object; writes one JSON object a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass

LINE_SHOWN = 300  # characters
LINE_SEARCHED = 10_000  # characters
FILE_BYTES = 8 << 20
MOST_ENTRIES = 200_000  # looked at
SKIPPED = frozenset({".git", ".outputs", "node_modules", "__pycache__"})  # when only patterns lead there
ANSWER_BYTES = 48 << 10
EXIT_WRONG = 2


@dataclass(frozen=True, slots=True)
class Ask:
    """What to look for."""

    root: str  #: the workspace
    start: str  #: directory or file in it, without links
    pattern: str  #: of text
    names: str  #: of files
    literal: bool
    ignore_case: bool
    most: int


def translate(pattern: str) -> re.Pattern[str]:
    """Return a path pattern as a regular expression: ``*`` and ``?`` within a name, ``**`` over directories.

    A pattern without a slash is one of names, wherever they are.
    """
    if "/" not in pattern:
        pattern = f"**/{pattern}"
    made = ""
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            made, at = made + "(?:[^/]+/)*", at + 3
        elif pattern.startswith("**", at):
            made, at = made + ".*", at + 2
        elif pattern[at] == "*":
            made, at = made + "[^/]*", at + 1
        elif pattern[at] == "?":
            made, at = made + "[^/]", at + 1
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : end].replace("\\", r"\\").replace("[", r"\[")
            inside = "^" + inside[1:] if inside[0] == "!" else inside
            made, at = f"{made}(?!/)[{inside}]", end + 1
        else:
            made, at = made + re.escape(pattern[at]), at + 1
    return re.compile(made + r"\Z", re.DOTALL)


def walk(root: str, start: str) -> Iterator[str]:
    """Yield files below ``start``, by name, as paths relative to ``root``; links are not followed."""
    if not os.path.isdir(start):  # noqa: PTH112 strings throughout: a Path for each entry doubles the time
        yield os.path.relpath(start, root)
        return
    for folder, folders, files in os.walk(start):
        folders[:] = sorted(name for name in folders if name not in SKIPPED)
        inside = os.path.relpath(folder, root)
        for name in sorted(files):
            yield name if inside == "." else f"{inside}/{name}"


def find(ask: Ask) -> Iterator[dict[str, object]]:
    """Yield one object for each hit, and at last a count."""
    names = translate(ask.names)
    text = None
    if ask.pattern:
        flags = re.IGNORECASE if ask.ignore_case else 0
        text = re.compile(re.escape(ask.pattern) if ask.literal else ask.pattern, flags)
    below = os.path.relpath(ask.start, ask.root)
    looked = searched = skipped = found = size = 0
    for path in walk(ask.root, ask.start):
        looked += 1
        if looked > MOST_ENTRIES:
            break
        inner = path if below == "." else os.path.relpath(path, below)
        if inner != "." and not names.match(inner):
            continue
        if text is None:
            only: list[dict[str, object]] = [{"path": path}]
            hits = iter(only)
        else:
            content = read(f"{ask.root}/{path}")
            searched += content is not None
            skipped += content is None
            hits = lines(path, content or "", text)
        for hit in hits:
            size += len(json.dumps(hit))
            if found == ask.most or size > ANSWER_BYTES:
                yield {"searched": searched, "skipped": skipped, "more": True}
                return
            found += 1
            yield hit
    yield {"searched": searched, "skipped": skipped, "more": looked > MOST_ENTRIES}


def lines(path: str, content: str, pattern: re.Pattern[str]) -> Iterator[dict[str, object]]:
    """Yield the lines with a match, as read_file counts them: from 0."""
    for number, line in enumerate(content.splitlines()):
        if match := pattern.search(line, 0, LINE_SEARCHED):
            first = max(0, min(match.start() - LINE_SHOWN // 3, len(line) - LINE_SHOWN))
            yield {"path": path, "line": number, "text": line[first : first + LINE_SHOWN]}


def read(path: str) -> str | None:
    """Return a text file; None for what is none, or too big."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            info = os.fstat(handle)
            if stat.S_ISREG(info.st_mode) and info.st_size <= FILE_BYTES:
                raw = file.read(FILE_BYTES)
                return None if b"\0" in raw[:8192] else raw.decode(errors="replace")
    return None


def main() -> int:
    """Search as told; what was found before a kill is already written."""
    try:
        for found in find(Ask(**json.loads(sys.argv[1]))):
            # A name may be no UTF-8: JSON's escapes keep it apart from what cannot be written.
            sys.stdout.write(json.dumps(found) + "\n")
    except re.error as error:
        sys.stderr.write(f"the pattern cannot be used: {error}\n")
        return EXIT_WRONG
    return 0


if __name__ == "__main__":
    sys.exit(main())
