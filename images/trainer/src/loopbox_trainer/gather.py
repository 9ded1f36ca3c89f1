"""gather: owns the rows that came through the filters, with what later steps look at, and when two are the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from loopbox_trainer.dedup import MINIMA, MinHash, Signatures, join_near, said
from loopbox_trainer.errors import TrainerError
from loopbox_trainer.rows import Message
from loopbox_trainer.split import Components

Role = Literal["row", "bad", "pair"]  #: what is trained, what is an example of how not to, and preferences
_BATCH: Final = 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """One row, or one pair."""

    role: Role
    id: str
    source: str
    conversation: str
    line: bytes  #: as it is written
    outcome: str = ""
    kind: str = ""  #: what its first answer does
    prompt: bytes = b""  #: stands for what was asked, so that two answers to it are found
    held_out: bool = False
    keep_near: bool = False


@dataclass
class Gathered:
    """All that was kept, each content once."""

    most_bytes: int  #: of all lines together, which are kept in memory
    items: list[Kept] = field(default_factory=list)
    _bytes: int = 0
    _ids: set[tuple[Role, str]] = field(default_factory=set)
    _texts: list[str] = field(default_factory=list)
    _signatures: list[Signatures] = field(default_factory=list)
    _minhash: MinHash = field(default_factory=MinHash)

    def has(self, role: Role, name: str) -> bool:
        """Return whether this content is there already."""
        return (role, name) in self._ids

    def add(self, kept: Kept, messages: tuple[Message, ...]) -> None:
        """Keep one. messages: what tells whether it is like others. Raises TrainerError: too_many_bytes."""
        self._bytes += len(kept.line)
        if self._bytes > self.most_bytes:
            raise TrainerError("too_many_bytes", "What is kept has more bytes than most_bytes. Nothing was written.")
        self._ids.add((kept.role, kept.id))
        self.items.append(kept)
        self._texts.append(said(messages))
        if len(self._texts) >= _BATCH:
            self._flush()

    def signatures(self) -> Signatures:
        """Return the signatures of all items."""
        self._flush()
        return np.concatenate(self._signatures) if self._signatures else np.empty((0, MINIMA), np.uint32)

    def _flush(self) -> None:
        if self._texts:
            self._signatures.append(self._minhash.signatures(self._texts))
            self._texts = []


def near_copies(items: list[Kept], signatures: Signatures, threshold: float) -> set[int]:
    """Return the places of rows to training that nearly repeat an earlier one.

    Rows that vary on purpose are neither dropped nor compared, nor is what is held out.
    """
    places = [n for n, item in enumerate(items) if item.role == "row" and not (item.keep_near or item.held_out)]
    components = Components(len(places))
    if places:
        join_near(components, signatures[places], threshold)
    return {place for number, place in enumerate(places) if components.root(number) != number}


def tied(items: list[Kept], signatures: Signatures, threshold: float) -> list[int]:
    """Return the component of each item: of one conversation, of one prompt, or nearly alike."""
    components = Components(len(items))
    components.join_equal(item.conversation for item in items)
    components.join_equal(item.prompt.hex() for item in items)
    if items:
        join_near(components, signatures, threshold)
    return [components.root(place) for place in range(len(items))]
