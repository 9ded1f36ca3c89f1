"""divide: owns the steps that look at all rows together: preferences, near duplicates, splits and the mix."""

from __future__ import annotations

from loopbox_trainer.counts import Step
from loopbox_trainer.curate_spec import CurateSpec
from loopbox_trainer.gather import Gathered, Kept, near_copies, tied
from loopbox_trainer.mix import plan_mix, rank
from loopbox_trainer.rows import parse_row
from loopbox_trainer.split import Item, plan_split
from loopbox_trainer.stream import Stream, preferred


def prefer(stream: Stream) -> None:
    """Add the preferences between good and bad answers to one request; drop what is called both good and bad."""
    bad = {item.prompt: item for item in reversed(stream.gathered.items) if item.role == "bad"}
    for item in list(stream.gathered.items):
        if item.role == "row" and item.outcome == "good" and item.prompt in bad:
            pair = preferred(parse_row(item.line), parse_row(bad[item.prompt].line))
            if pair is not None:
                stream.keep_pair(pair)


def divide(spec: CurateSpec, gathered: Gathered) -> tuple[dict[str, list[Kept]], list[Step]]:
    """Return what goes into each file, in order, and the counts of the steps that look at all rows together."""
    signatures = gathered.signatures()
    items = gathered.items
    is_row = [item.role == "row" for item in items]
    both = {item.id for item in items if item.role == "bad"}
    dropped: dict[int, str] = {
        place: "contradictory" for place, item in enumerate(items) if is_row[place] and item.id in both
    }
    near = Step("near_dedup", taken=sum(is_row))
    dropped |= dict.fromkeys(near_copies(items, signatures, spec.near), "near_copy")
    near.dropped.update(dropped.values())
    near.given = near.taken - len(dropped)

    left = [place for place in range(len(items)) if place not in dropped]
    kept = [items[place] for place in left]
    roots = tied(kept, signatures[left], spec.apart)
    split = Step("split", taken=near.given)
    plan = plan_split(
        [Item(item.id, item.role == "row", item.held_out) for item in kept],
        roots,
        valid=spec.valid,
        test=spec.test,
        seed=spec.seed,
    )
    split.noted["components"] = len(set(roots))
    parts: dict[str, list[Kept]] = {"train": [], "valid": [], "test": [], "pairs": [], "bad": []}
    for item, part in zip(kept, plan, strict=True):
        if item.role == "row":
            if part is None:
                split.drop("held_out_but_like_training")
            else:
                split.given += 1
                parts[part].append(item)
        elif part == "train":
            parts["pairs" if item.role == "pair" else "bad"].append(item)
        else:
            split.noted[f"{item.role}_not_in_training"] += 1
    mixed = Step("mix", taken=split.given)
    _mix(spec, parts, mixed)
    for chosen in parts.values():
        chosen.sort(key=lambda item: (rank(spec.seed, item.id), item.id))
    return parts, [near, split, mixed]


def _mix(spec: CurateSpec, parts: dict[str, list[Kept]], step: Step) -> None:
    weights = {source.name: source.weight for source in spec.sources}
    if spec.synthetic is not None:
        weights["synthetic"] = spec.synthetic.weight
    by_source: dict[str, list[Kept]] = {}
    for item in sorted(parts["train"], key=lambda one: (rank(spec.seed, one.id), one.id)):
        by_source.setdefault(item.source, []).append(item)
    available = {name: len(items) for name, items in sorted(by_source.items())}
    taken = plan_mix(available, weights, spec.total)
    parts["train"] = [item for name, items in sorted(by_source.items()) for item in items[: taken[name]]]
    step.dropped["not_in_the_mix"] = sum(available.values()) - len(parts["train"])
    step.given = step.taken - step.dropped["not_in_the_mix"]
