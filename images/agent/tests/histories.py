"""Long conversations of an agent, made from a seed: rules, open items, tools, and what a tokenizer counts of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from loopbox_agent.tokens import texts_of, weigh

#: Tokens a byte of each kind as a real tokenizer spends them (measured on SmolLM2's), a message's marks, a prompt's.
TRUE_RATES = (0.22, 1.0, 0.03, 0.6, 0.62, 0.75, 1.75, 2.2, 2.0, 2.8, 5.0, 10.0)

_SUBJECTS = ("the broker", "the gateway", "runs.py", "the lease", "src/app/routes.py", "the parser", "tests/test_io.py")
_VERBS = ("waits for", "rejects", "reads", "loses", "renames", "caches", "retries", "closes")
_OBJECTS = (
    "the socket",
    "a cut answer",
    "the second read",
    "old leases",
    "config/limits.yaml",
    "the token",
    "its queue",
)
_STARTS = (
    "I found that",
    "It looks as if",
    "We decided that",
    "I fixed it:",
    "The test failed because",
    "Next I will see why",
)
_ITEMS = (
    "move the read before the give-back",
    "ask Ada about the quota",
    "add a test for port 8443",
    "rename `old_lease`",
)
_RULES = ("Never push to main.", "Answer in English.", "Use only the sandbox's tools.", "Do not read /etc/shadow.")
_CHINESE = "这个代理在沙箱中运行工具并且在上下文快要满的时候压缩历史。"


@dataclass(frozen=True)
class Long:
    """One conversation and what must survive its compression."""

    messages: list[ModelMessage]
    rules: tuple[str, ...]
    open_items: tuple[str, ...]


def truth(messages: Sequence[ModelMessage]) -> int:
    """What the engine would count of these messages."""
    total = TRUE_RATES[-1]
    for message in messages:
        for text in texts_of(message):
            total += TRUE_RATES[-2] + sum(r * w for r, w in zip(TRUE_RATES, weigh(text), strict=True))
    return round(total)


def sentence(rng: random.Random) -> str:
    if rng.random() < 0.05:
        return _CHINESE
    said = (
        rng.choice(_STARTS),
        rng.choice(_SUBJECTS),
        rng.choice(_VERBS),
        rng.choice(_OBJECTS),
        f"{rng.randrange(99)}.",
    )
    return " ".join(said)


def words(rng: random.Random, most: int) -> str:
    return " ".join(sentence(rng) for _ in range(rng.randint(1, most)))


def output(rng: random.Random, most: int) -> str:
    lines = [
        f"{rng.randrange(10_000)}: def f_{rng.randrange(999)}(a, b):  # {sentence(rng)}"
        for _ in range(rng.randint(1, most))
    ]
    return "\n".join([*lines, rng.choice(("exit code 0", "Error: file not found", "3 passed, 1 failed"))])


def conversation(seed: int, tokens: int, *, turn_steps: int = 3, text: int = 4, lines: int = 8) -> Long:
    """Return a conversation of at least so many tokens; some calls go out together, the last turn is under way."""
    rng = random.Random(seed)  # noqa: S311 made-up texts
    rules = tuple(rng.sample(_RULES, rng.randint(1, 3)))
    open_items = [f"{item} ({seed})" for item in rng.sample(_ITEMS, rng.randint(1, 4))]
    first = "\n".join([words(rng, text), *(f"- [ ] {item}" for item in open_items), "- [ ] say hello", "Thanks."])
    messages: list[ModelMessage] = [
        ModelRequest(parts=[*(SystemPromptPart(rule) for rule in rules), UserPromptPart(first)])
    ]
    call = used = 0
    used = truth(messages)
    closed = False
    while used < tokens:
        for _ in range(rng.randint(1, turn_steps)):
            names = [rng.choice(("python", "bash", "files")) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
            calls = [ToolCallPart(name, {"code": words(rng, 2)}, f"c{seed}_{(call := call + 1)}") for name in names]
            answer = ModelResponse(parts=[*([TextPart(words(rng, text))] if rng.random() < 0.6 else []), *calls])
            returns = ModelRequest(
                parts=[ToolReturnPart(c.tool_name, output(rng, lines), c.tool_call_id) for c in calls]
            )
            messages += [answer, returns]
            used += truth([answer, returns]) - round(TRUE_RATES[-1])
            if used >= tokens:
                break
        if used < tokens:
            said = words(rng, text) if closed else f"{words(rng, text)}\n- [x] say hello"
            closed = True
            messages += [ModelResponse(parts=[TextPart(said)]), ModelRequest(parts=[UserPromptPart(words(rng, text))])]
            used += truth(messages[-2:]) - round(TRUE_RATES[-1])
    return Long(messages, rules, tuple(open_items))
