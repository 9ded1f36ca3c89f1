"""sets: owns the texts that the classifier learns from and is measured on: which they are, and that they are unchanged.

What may be committed is beside this file. Three public sets are not, because they came from snapshots whose content
stays out of commits: they lie in a folder that GUARD_DATA names (default: shared/data/guard of the checkout, then
of the folder beside it). sets.json has the SHA-256 of each file, so another text under the same name is refused.
"""

# ruff: noqa: INP001 — a script beside its data, for the person who runs it

from __future__ import annotations

import hashlib
import json
import lzma
import os
from dataclasses import dataclass
from pathlib import Path

from wordings import expand, read_slots

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
DIGESTS: dict[str, str] = json.loads((HERE / "sets.json").read_text())


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled text."""

    text: str
    is_attack: bool
    source: str
    group: str  #: samples of one group are variants of each other and stay on one side of a split


class SetMissingError(FileNotFoundError):
    """A public set is not on this machine."""


def _folders() -> list[Path]:
    named = os.environ.get("GUARD_DATA")
    return [Path(named)] if named else [ROOT / "shared/data/guard", ROOT.parent / "shared/data/guard"]


def _rows(path: Path) -> list[dict[str, str | int]]:
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != DIGESTS[path.name]:
        raise ValueError(f"{path} is not the file that sets.json names; nothing was read. Put the original there")
    text = (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode()
    return [json.loads(line) for line in text.splitlines()]


def public_set(name: str) -> list[tuple[str, bool]]:
    """Return the texts of deepset-train, deepset-test or notinject, and whether each is an attack.

    Raises SetMissingError, and ValueError for a changed file.
    """
    for folder in _folders():
        if (path := folder / f"{name}.jsonl").is_file():
            return [(str(row["t"]), bool(row["y"])) for row in _rows(path)]
    raise SetMissingError(
        f"{name}.jsonl is in none of {', '.join(map(str, _folders()))}: put it there, or set GUARD_DATA. "
        "docs/threats.md says where it comes from"
    )


def own_samples() -> list[Sample]:
    """Return what is committed: texts from published packages, and sentences written for this project."""
    samples = [
        Sample(str(row["t"]), bool(row["y"]), str(row["s"]), f"public {index}")
        for index, row in enumerate(_rows(HERE / "public.jsonl.xz"))
    ]
    slots = read_slots(HERE / "slots.txt")
    for name, is_attack in (("attacks", True), ("benign", False)):
        samples += [
            Sample(text, is_attack, name, f"{name} {line}") for line, text in expand(HERE / f"{name}.txt", slots)
        ]
    return samples


def training_samples() -> list[Sample]:
    """Return what the classifier learns from. No text of deepset's test split or of NotInject is among it."""
    learned = [
        Sample(text, is_attack, "deepset", f"deepset {index}")
        for index, (text, is_attack) in enumerate(public_set("deepset-train"))
    ]
    return learned + own_samples()
