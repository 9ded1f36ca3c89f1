"""golden: owns what is asked of every candidate before it gets traffic, and when an answer shows broken weights. Pure.

Bounds by measurement on Ollama 0.24, greedy, 32 tokens (mean log-probability of the chosen tokens, nats): SmolLM2-135M
-0.7 to -0.8; lively random models of 259 tokens -0.8 to -1.3; shuffled weights -2.7; all-zero weights -5.6 and -10.8,
one token for ever. Weights of NaN or noise end the engine's runner, which is an error of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

PROMPTS = ("Write one short sentence about the sea.", "What is two plus two?")
PROBE = "Name three colours."
TOKENS = 32
PROBE_TOKENS = 12
BOUND_PROMPT = "Answer in JSON: are you ready?"
BOUND_TOKENS = 64
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}

LEAST_MEAN_LOGPROB = math.log(0.1)  # the model gives the token it chooses one chance in ten, on average, or less
LEAST_SHORT_LOGPROB = 1.5 * LEAST_MEAN_LOGPROB  # of answers too short for a fair mean
JUDGED_TOKENS = 8  # a shorter answer says nothing about repetition
LONGEST_RUN = 7  # of one token
LEAST_DISTINCT = 0.15  # of the tokens
MOST_UNREADABLE = 0.25  # of the characters: U+FFFD and control characters


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token."""

    text: str
    logprob: float  #: natural logarithm of the probability that the model gave it


def judge(text: str, tokens: Sequence[Token]) -> str:
    """Say what about a greedy answer shows broken weights, '' for nothing."""
    return next(_faults(text, tokens), "")


def _faults(text: str, tokens: Sequence[Token]) -> Iterator[str]:
    if not tokens and not text:
        yield "it generated no token"
    if any(not math.isfinite(token.logprob) or token.logprob > 1e-3 for token in tokens):  # noqa: PLR2004 rounding
        yield "the model's probabilities are no probabilities"
    unreadable = sum(1 for letter in text if letter == "\ufffd" or (letter < " " and letter not in "\n\r\t"))
    if unreadable > MOST_UNREADABLE * max(len(text), 4):
        yield f"{unreadable} of {len(text)} characters are unreadable"
    if tokens and sum(token.logprob for token in tokens) / len(tokens) < LEAST_SHORT_LOGPROB:
        yield f"it guesses: even its {len(tokens)} likeliest tokens are unlikely"
    if len(tokens) >= JUDGED_TOKENS:
        yield from _faults_of_tokens([token.text for token in tokens], [token.logprob for token in tokens])


def _faults_of_tokens(texts: Sequence[str], logprobs: Sequence[float]) -> Iterator[str]:
    mean = sum(logprobs) / len(logprobs)
    if mean < LEAST_MEAN_LOGPROB:
        yield f"it guesses: mean log-probability {mean:.2f}, the least is {LEAST_MEAN_LOGPROB:.2f}"
    token, run = max(((text, len(list(same))) for text, same in groupby(texts)), key=lambda pair: pair[1])
    if run > LONGEST_RUN:
        yield f"it said {token!r} {run} times in a row"
    distinct = len(set(texts)) / len(texts)
    if distinct < LEAST_DISTINCT:
        yield f"it goes round in circles: {distinct:.0%} of its tokens differ, the least is {LEAST_DISTINCT:.0%}"


def judge_bound(text: str) -> str:
    """Say how an answer under SCHEMA disobeys it, '' when it does not."""
    try:
        parsed = json.loads(text)
    except ValueError:
        return f"not JSON under a schema: {text[:200]!r}"
    if not isinstance(parsed, dict) or list(parsed) != ["ok"] or not isinstance(parsed["ok"], bool):
        return f"the schema was not obeyed: {text[:200]!r}"
    return ""
