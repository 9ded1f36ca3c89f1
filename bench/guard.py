"""guard: what the threat detection finds, what it takes for a threat wrongly, and how long it takes.

``make bench BENCH=guard``; its last line is one JSON object. Flagged is a score of 31 or more, that is everything that
is not simply allowed. deepset's test split (116 texts) gives deepset_f1; NotInject (339 harmless texts with words of
attacks) gives notinject_fpr. Neither was trained on, nor was a threshold or pattern chosen by them. Where a set is not
on this machine its figures are null; images/agent/guard/sets.py says where they are looked for.
ms_per_request_p50 and _p95 are of assess() on the texts of both sets and on 15 documents each of 1,000, 4,000 and 8,000
characters, ROUNDS times (default 5); ms_at_N_chars are medians of the documents alone.
What goes out is measured too: mask_ms_per_1000_chars and, with the cleaning before it, show_us_per_piece for a stream
of pieces of 5 characters. moderation_* is of the project's own set (images/agent/tests/moderation.jsonl): its held-out
half mended no rule, but the same people wrote rules and set. moderation_public_fpr is of the public sets' harmless
texts. tool_result_cpu_ms is of 16,384 characters, what a tool's result has at most.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "images/agent/src"), str(ROOT / "images/agent/guard")]
import sets  # type: ignore[import-not-found]  # noqa: E402 — on the path that was just made

from loopbox_agent.clean import StreamShow  # noqa: E402 — as above
from loopbox_agent.mask import mask  # noqa: E402 — as above
from loopbox_agent.moderation import Moderation  # noqa: E402 — as above
from loopbox_agent.threats import ALLOW_UP_TO, Threats  # noqa: E402 — as above
from loopbox_agent.tool_results import ToolResults  # noqa: E402 — as above

ROUNDS = int(os.environ.get("ROUNDS", "5"))
PIECE = 5
RESULT = 16_384  # characters of a tool's result
MODERATED = ROOT / "images/agent/tests/moderation.jsonl"
SIZES = (1000, 4000, 8000)  # characters of the longer texts
EACH = 15  # longer texts of each size among the timed ones: with both sets here, one request in ten is a document
BARS = {
    "notinject_fpr": 0.05,
    "deepset_f1": 0.80,
    "ms_per_request_p95": 5.0,
    "tool_result_cpu_ms_p50": 5.0,
    "moderation_fpr": 0.05,
}


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


def timed(
    assess: Callable[[str], object], texts: Sequence[str], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Return the milliseconds of each assessment."""
    spent: list[float] = []
    for _ in range(ROUNDS):
        for text in texts:
            began = clock()
            assess(text)
            spent.append((clock() - began) * 1e3)
    return spent


def masking(texts: Sequence[str]) -> dict[str, float]:
    """Return what masking costs."""
    whole: list[float] = []
    pieces: list[float] = []
    for text in texts:
        began = time.perf_counter()
        mask(text)
        whole.append((time.perf_counter() - began) * 1e6 / len(text))
        stream = StreamShow()
        began = time.perf_counter()
        for at in range(0, len(text), PIECE):
            stream.feed(text[at : at + PIECE])
        pieces.append((time.perf_counter() - began) * 1e6 / (len(text) / PIECE))
    return {"mask_ms_per_1000_chars": round(median(whole), 3), "show_us_per_piece": round(median(pieces), 1)}


def moderating(harmless: Sequence[str]) -> dict[str, float | None]:
    """Return what moderation finds, and what it takes for something wrongly."""
    moderation = Moderation()
    rows = [json.loads(line) for line in MODERATED.read_text().splitlines()]
    figures: dict[str, float | None] = {"moderation_n": len(rows)}
    for name, some in (("moderation", rows), ("moderation_held_out", [row for row in rows if row["held"]])):
        good = [bool(moderation.assess(row["t"]).found) for row in some if not row["y"]]
        bad = [row["y"] in moderation.assess(row["t"]).categories for row in some if row["y"]]
        figures |= {f"{name}_fpr": round(sum(good) / len(good), 4), f"{name}_recall": round(sum(bad) / len(bad), 4)}
    wrong = sum(bool(moderation.assess(text).found) for text in harmless)
    figures |= {
        "moderation_public_fpr": round(wrong / len(harmless), 4) if harmless else None,
        "moderation_public_n": len(harmless),
    }
    answers = [text[:2000] for text in long_texts() if len(text) >= 2000][:60]
    return figures | {"moderation_ms_at_2000_chars": round(median(timed(moderation.assess, answers)), 3)}


def reading() -> dict[str, float]:
    """Return what looking at tools' results costs, and how many of the project's own pages it takes for orders."""
    results = ToolResults()
    pages = [path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "threats.md"]
    long = [(text * (RESULT // len(text) + 1))[:RESULT] for text in pages]
    spent = timed(results.assess, long, time.process_time)
    return {
        "tool_result_cpu_ms_p50": round(median(spent), 3),
        "tool_result_cpu_ms_p95": round(quantiles(spent, n=20)[-1], 3),
        "tool_result_pages_flagged": sum(results.assess(text).score > ALLOW_UP_TO for text in pages),
        "tool_result_pages_n": len(pages),
    }


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
        threats.assess,
        [text for text, _ in (*deepset, *notinject)] + [one for some in by_size.values() for one in some],
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
        **{f"ms_at_{size}_chars": round(median(timed(threats.assess, some)), 3) for size, some in by_size.items()},
        **masking(longer),
        **moderating([text for text, is_attack in (*deepset, *notinject) if not is_attack]),
        **reading(),
    }
    for name, bar in BARS.items():
        if (value := figures[name]) is not None and (value < bar if name == "deepset_f1" else value > bar):
            print(f"guard: {name} {value} misses its bar of {bar} by {abs(value - bar):.4f}", file=sys.stderr)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
