"""split: owns which rows are for training, for validation and for testing, so that nothing of one is in another. Pure.

Rows of one conversation, and near duplicates, are one component; a component is never divided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from loopbox_trainer.mix import rank

Part = Literal["train", "valid", "test"]
_TAKEN_OUT: Final[tuple[Part, ...]] = ("test", "valid")
_MOST_OF_TEST: Final = 0.5  #: of the rows that a split is asked for; a bigger component stays in training


class Components:
    """Sets that grow together: a union-find whose roots are the smallest members, whatever the order of the unions."""

    def __init__(self, size: int) -> None:
        self.parents = list(range(size))

    def root(self, item: int) -> int:
        """Return the smallest member of an item's set."""
        parents = self.parents
        while parents[item] != item:
            parents[item] = parents[parents[item]]
            item = parents[item]
        return item

    def join(self, one: int, other: int) -> None:
        """Make two sets one."""
        first, second = self.root(one), self.root(other)
        if first != second:
            self.parents[max(first, second)] = min(first, second)

    def join_equal(self, keys: Iterable[str]) -> None:
        """Make one set of all items with one key. keys: of every item, in order; '' for none."""
        seen: dict[str, int] = {}
        for item, key in enumerate(keys):
            if key:
                self.join(seen.setdefault(key, item), item)


@dataclass(frozen=True, slots=True)
class Item:
    """What the split looks at."""

    key: str  #: stable name; decides the order
    counted: bool = True  #: a row that counts towards a split's size
    held_out: bool = False  #: made to be tested with; never trained


def plan_split(
    items: Sequence[Item], roots: Sequence[int], *, valid: float, test: float, seed: int
) -> list[Part | None]:
    """Return the split of each item; None: it is held out, but tied to what is trained, and so is of no use.

    roots: the component of each item. valid, test: shares of the counted items that are not held out. Held-out items go
    to test, and the share is filled up from the rest.
    """
    members: dict[int, list[int]] = {}
    for place, root in enumerate(roots):
        members.setdefault(root, []).append(place)
    parts: list[Part | None] = ["train"] * len(items)
    counted = sum(item.counted and not item.held_out for item in items)
    room: dict[Part, int] = {"test": round(counted * test), "valid": round(counted * valid)}
    limits: Mapping[Part, float] = {part: max(1.0, size * _MOST_OF_TEST) for part, size in room.items()}
    free: list[list[int]] = []
    for places in members.values():
        others = [place for place in places if not items[place].held_out]
        for place in places:
            if items[place].held_out:
                parts[place] = None if others else "test"
        if others:
            free.append(others)
        else:
            room["test"] -= sum(items[place].counted for place in places)
    for places in sorted(free, key=lambda some: min(rank(seed, items[place].key) for place in some)):
        size = sum(items[place].counted for place in places)
        part = next((part for part in _TAKEN_OUT if 0 < size <= min(room[part], limits[part])), None)
        if part is not None:
            room[part] -= size
            for place in places:
                parts[place] = part
    return parts
