"""guard: what the threat detection finds, what it takes for a threat wrongly, and how long it takes.

``make bench BENCH=guard``; its last line is one JSON object. Flagged is a score of 31 or more, that is everything that
is not simply allowed. deepset's test split (116 texts) gives deepset_f1; NotInject (339 harmless texts with words of
attacks) gives notinject_fpr. Neither was trained on, nor was a threshold or pattern chosen by them. Where a set is not
on this machine its figures are null; images/agent/guard/sets.py says where they are looked for.
ms_per_request_p50 and _p95 are of assess() on the texts of both sets and on 15 documents each of 1,000, 4,000 and 8,000
characters, ROUNDS times (default 5); ms_at_N_chars are medians of the documents alone.
Masking is measured too: mask_ms_per_1000_chars, and mask_us_per_piece for a stream of pieces of 5 characters.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "images/agent/src"), str(ROOT / "images/agent/guard")]
import sets  # type: ignore[import-not-found]  # noqa: E402 — on the path that was just made

from loopbox_agent.mask import StreamMask, mask  # noqa: E402 — as above
from loopbox_agent.threats import ALLOW_UP_TO, Threats  # noqa: E402 — as above

ROUNDS = int(os.environ.get("ROUNDS", "5"))
PIECE = 5
SIZES = (1000, 4000, 8000)  # characters of the longer texts
EACH = 15  # longer texts of each size among the timed ones: with both sets here, one request in ten is a document
BARS = {"notinject_fpr": 0.05, "deepset_f1": 0.80, "ms_per_request_p95": 5.0}


def read(name: str) -> list[tuple[str, bool]]:
    """Return a public set, empty if it is not here."""
    try:
        return list(sets.public_set(name))
    except sets.SetMissingError as error:
        print(f"guard: {error}", file=sys.stderr)
        return []


def long_texts() -> list[str]:
    """Return what runs also carry: documents, code, logs; 1,000 to 8,000 characters."""
    pages = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    code = [path.read_text() for path in sorted((ROOT / "images/agent/src/loopbox_agent").glob("*.py"))]
    return [text[:size] for text in (*pages, *code) for size in SIZES if len(text) >= size]


def timed(threats: Threats, texts: Sequence[str]) -> list[float]:
    """Return the milliseconds of each assessment."""
    spent: list[float] = []
    for _ in range(ROUNDS):
        for text in texts:
            began = time.perf_counter()
            threats.assess(text)
            spent.append((time.perf_counter() - began) * 1e3)
    return spent


def masking(texts: Sequence[str]) -> dict[str, float]:
    """Return what masking costs."""
    whole: list[float] = []
    pieces: list[float] = []
    for text in texts:
        began = time.perf_counter()
        mask(text)
        whole.append((time.perf_counter() - began) * 1e6 / len(text))
        stream = StreamMask()
        began = time.perf_counter()
        for at in range(0, len(text), PIECE):
            stream.feed(text[at : at + PIECE])
        pieces.append((time.perf_counter() - began) * 1e6 / (len(text) / PIECE))
    return {"mask_ms_per_1000_chars": round(median(whole), 3), "mask_us_per_piece": round(median(pieces), 1)}


def main() -> None:
    """Measure and print."""
    threats = Threats()
    deepset, notinject, longer = read("deepset-test"), read("notinject"), long_texts()
    flagged = [(threats.assess(text).score > ALLOW_UP_TO, is_attack) for text, is_attack in deepset]
    right = sum(found and is_attack for found, is_attack in flagged)
    wrong_alarm = sum(found and not is_attack for found, is_attack in flagged)
    missed = sum(is_attack and not found for found, is_attack in flagged)
    false_alarms = sum(threats.assess(text).score > ALLOW_UP_TO for text, _ in notinject)
    long_alarms = sum(threats.assess(text).score > ALLOW_UP_TO for text in longer)
    by_size = {size: [text for text in longer if len(text) == size][:EACH] for size in SIZES}
    spent = timed(
        threats, [text for text, _ in (*deepset, *notinject)] + [one for some in by_size.values() for one in some]
    )
    figures = {
        "deepset_f1": round(2 * right / (2 * right + wrong_alarm + missed), 4) if deepset else None,
        "deepset_n": len(deepset),
        "deepset_missed": missed,
        "deepset_wrong_alarms": wrong_alarm,
        "notinject_fpr": round(false_alarms / len(notinject), 4) if notinject else None,
        "notinject_n": len(notinject),
        "own_documents_flagged": long_alarms,
        "own_documents_n": len(longer),
        "ms_per_request_p50": round(median(spent), 3),
        "ms_per_request_p95": round(quantiles(spent, n=20)[-1], 3),
        "requests_timed": len(spent),
        **{f"ms_at_{size}_chars": round(median(timed(threats, some)), 3) for size, some in by_size.items()},
        **masking(longer),
    }
    for name, bar in BARS.items():
        if (value := figures[name]) is not None and (value < bar if name == "deepset_f1" else value > bar):
            print(f"guard: {name} {value} misses its bar of {bar} by {abs(value - bar):.4f}", file=sys.stderr)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
