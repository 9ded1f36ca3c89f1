"""packing: owns putting conversations with the same system turn into one sequence, so that it is read once.

The tools that a model is offered are most of what it reads, and nearly every conversation of one appliance begins with
the same ones. In a packed sequence each conversation sees that beginning and itself, no other, at the places it would
have alone: the loss is the sum of the losses alone. Pure.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from loopbox_trainer.chat_format import IGNORED
from loopbox_trainer.examples import Example


@dataclass(frozen=True, slots=True)
class Pack:
    """One sequence."""

    tokens: tuple[int, ...]
    labels: tuple[int, ...]
    positions: tuple[int, ...]
    owners: tuple[int, ...]  #: 0: the shared beginning, else the conversation


def pack(examples: Sequence[Example], *, longest: int, seed: int) -> list[Pack]:
    """Return every example in one sequence of at most ``longest`` tokens, in an order that the seed decides.

    The order is drawn anew here only; epochs shuffle sequences. No example may be longer than that.
    """
    drawn = random.Random(seed)  # noqa: S311 - an order, no secret
    order = list(range(len(examples)))
    drawn.shuffle(order)
    open_packs: dict[tuple[int, ...], list[Example]] = {}
    sizes: dict[tuple[int, ...], int] = {}
    packs: list[Pack] = []
    for number in order:
        example = examples[number]
        key = example.prefix
        size = sizes.get(key, len(key)) + len(example.body)
        if key in open_packs and size > longest:
            packs.append(_close(key, open_packs.pop(key)))
            size = len(key) + len(example.body)
        open_packs.setdefault(key, []).append(example)
        sizes[key] = size
    packs += [_close(key, members) for key, members in open_packs.items()]
    drawn.shuffle(packs)
    return packs


def _close(prefix: tuple[int, ...], members: Sequence[Example]) -> Pack:
    tokens, labels = list(prefix), [IGNORED] * len(prefix)
    positions, owners = list(range(len(prefix))), [0] * len(prefix)
    for number, member in enumerate(members, start=1):
        tokens += member.body
        labels += member.labels
        positions += range(len(prefix), len(prefix) + len(member.body))
        owners += [number] * len(member.body)
    return Pack(tuple(tokens), tuple(labels), tuple(positions), tuple(owners))
