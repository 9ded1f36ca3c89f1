"""agent_plain: owns the peer of the agent bench: a plain pydantic-ai script that asks the same stub at the same rate.

No service, no store, no sandbox: what is above it is what the agent's own layers cost. It reads orders from stdin, one
JSON object a line (rate, seconds), and answers each with one line: milliseconds of each run from when it was due, lag
of its own loop, CPU seconds, errors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time

import uvloop
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

INSTRUCTION = "Write one short sentence about the sea."


class Plain:
    """The script, and what it measures of itself."""

    def __init__(self, url: str, tokens: int) -> None:
        model = OpenAIChatModel("agent", provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))
        self._agent = Agent(model, model_settings=ModelSettings(max_tokens=tokens))
        self._took: list[float] = []
        self._lags: list[float] = []
        self._errors = 0

    async def _run(self, due: float) -> None:
        self._lags.append((time.time() - due) * 1e3)
        try:
            async with self._agent.run_stream(INSTRUCTION) as run:
                async for _ in run.stream_text(delta=True, debounce_by=None):
                    pass
        except Exception as error:  # noqa: BLE001 whatever it is, it is one error of the peer
            self._errors += 1
            print(f"plain: {error!r}", file=sys.stderr)
            return
        self._took.append((time.time() - due) * 1e3)

    async def load(self, rate: float, seconds: float) -> dict[str, object]:
        """Run at a rate, whatever happens; return the figures."""
        self._took, self._lags, self._errors = [], [], 0
        cpu, begun = time.process_time(), time.time()
        async with asyncio.TaskGroup() as group:
            for number in range(round(rate * seconds)):
                due = begun + number / rate
                await asyncio.sleep(due - time.time())
                group.create_task(self._run(due))
        used = time.process_time() - cpu
        return {"ms": self._took, "lag_ms": self._lags, "cpu_s": used, "errors": self._errors}


async def _obey(url: str, tokens: int) -> None:
    plain = Plain(url, tokens)
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        print(json.dumps(await plain.load(order["rate"], order["seconds"])), flush=True)


def main() -> None:
    """Obey until stdin closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--tokens", required=True, type=int)
    given = parser.parse_args()
    uvloop.run(_obey(given.url, given.tokens))


if __name__ == "__main__":
    main()
