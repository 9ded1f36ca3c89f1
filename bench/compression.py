"""compression: prints how much the eight-segment compression saves on made-up long conversations, and what survives.

python bench/compression.py [how many]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "images/agent/src")]

from images.agent.tests.histories import conversation, truth  # noqa: E402 the paths come first

from loopbox_agent.compaction import TRIGGER, plan  # noqa: E402 the paths come first
from loopbox_agent.summarise import compact  # noqa: E402 the paths come first
from loopbox_agent.tokens import Meter  # noqa: E402 the paths come first

CONTEXTS = (2048, 4096, 8192, 32_768)


def main() -> None:
    """Print the figures, one line a context."""
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    for num_ctx in CONTEXTS:
        limit = num_ctx - min(512, num_ctx // 4)
        saved, took, rules, owed, turns = [], [], 0, 0, []
        for seed in range(many):
            long = conversation(
                seed, round(1.03 * TRIGGER * limit), turn_steps=1 + seed % 12, lines=max(2, min(12, num_ctx // 1024))
            )
            before = truth(long.messages)
            begun = time.perf_counter()
            planned = plan(long.messages, used_tokens=before, limit_tokens=max(limit, before), meter=Meter())
            assert planned is not None, "a full context is compressed"  # noqa: S101 a bench that measures nothing must fail
            result = asyncio.run(compact(planned, None))
            took.append((time.perf_counter() - begun) * 1e3)
            after = truth(result.history)
            saved.append(100 * (1 - after / before))
            text = "\n".join(str(getattr(part, "content", "")) for message in result.history for part in message.parts)
            rules += all(rule in text for rule in long.rules)
            owed += all(item in text for item in long.open_items)
            turns.append(len(planned.kept))
        tenths = statistics.quantiles(saved, n=10)
        print(
            f"num_ctx={num_ctx} n={many} saved_pct_p10={tenths[0]:.1f} p50={tenths[4]:.1f} p90={tenths[8]:.1f} "
            f"min={min(saved):.1f} rules_kept={rules}/{many} open_items_kept={owed}/{many} "
            f"kept_messages_p50={statistics.median(turns):.0f} ms_p50={statistics.median(took):.1f}"
        )


if __name__ == "__main__":
    main()
