"""tokens: owns the counting of tokens before the engine does it: exact where it has told, estimated above it elsewhere.

A text's tokens are estimated from its bytes by kind (letters, digits, marks, white space, and the lead bytes of each
script), since a tokenizer spends very different lengths on them. The rates begin on the high side and are learnt from
the engine's own counts, each kind for itself, so that much English does not make Chinese look cheap.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Final

from pydantic import JsonValue
from pydantic_ai.messages import (
    CompactionPart,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    RetryFeedbackPart,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.tools import ToolDefinition

from loopbox_agent.errors import AgentError

#: Metadata of an answer whose usage tells of a prompt that is gone; see compaction.
STALE: Final = "loopbox_usage_is_stale"


class ContextFullError(AgentError):
    """The conversation does not fit the model's context; nothing was asked of the engine."""

    code: ClassVar[str] = "context_exceeded"
    status: ClassVar[int] = 422


@dataclass(frozen=True, slots=True)
class _Kind:
    """Bytes that cost alike; rates in tokens a byte (of other scripts: a lead byte, thus a character)."""

    bytes: bytes
    rate: float  #: before anything is learnt: above most tokenizers
    least: float
    most: float


def _span(first: int, last: int) -> bytes:
    return bytes(range(first, last + 1))


_WORDS: Final = _span(65, 90) + _span(97, 122)
_KINDS: Final = (
    _Kind(_WORDS, 0.28, 0.10, 0.7),
    _Kind(_span(48, 57), 1.0, 0.25, 1.0),
    _Kind(b" ", 0.10, 0.0, 0.6),
    _Kind(b"\n\r\t", 0.8, 0.1, 1.0),
    _Kind(bytes(set(range(33, 127)) - set(_WORDS) - set(range(48, 58))), 0.75, 0.2, 1.0),
    _Kind(_span(0xC2, 0xDF), 1.1, 0.2, 2.0),  # Latin with accents, Greek, Cyrillic, Hebrew, Arabic
    _Kind(_span(0xE3, 0xE9), 1.8, 0.3, 3.0),  # Chinese, Japanese
    _Kind(_span(0xEA, 0xED), 2.5, 0.3, 3.0),  # Korean
    _Kind(_span(0xE0, 0xE2) + _span(0xEE, 0xEF), 2.2, 0.3, 3.0),  # Indic, Thai, dashes and quotes
    _Kind(_span(0xF0, 0xF4), 3.2, 0.5, 4.0),  # emoji, rare ideographs
)
_MESSAGE: Final = (7.0, 2.0, 40.0)  #: tokens of a message's own marks: at first, least, most
_PROMPT: Final = (16.0, 0.0, 400.0)  #: of the template around everything
_FEATURES: Final = len(_KINDS) + 2
_LEARN: Final = 0.1  #: of an error downward; one upward is made good at once
_FORGET: Final = 0.9  #: of how far off the estimates were, a count
_LEAST_MARGIN: Final = 0.02
_FIRST_MARGIN: Final = 0.10  #: while nothing was learnt
_MOST_MARGIN: Final = 0.5
OVER: Final = 2  #: an estimate is never more than about so many times the count
MAX_METERS: Final = 64

Weights = tuple[float, ...]


def weigh(text: str) -> Weights:
    """Return how many bytes of each kind a text has."""
    raw = text.encode("utf-8", "surrogatepass")
    size = len(raw)
    return (*(float(size - len(raw.translate(None, kind.bytes))) for kind in _KINDS), 0.0, 0.0)


@lru_cache(maxsize=512)
def _weigh_tool(told: str) -> Weights:
    return weigh(told)


def _sum(parts: Iterable[Weights]) -> Weights:
    total = [0.0] * _FEATURES
    for part in parts:
        for place, value in enumerate(part):
            total[place] += value
    return tuple(total)


def texts_of(message: ModelMessage) -> list[str]:
    """Return what of a message reaches the model, a text for each message that the engine gets of it."""
    if isinstance(message, ModelResponse):
        words = [part.content for part in message.parts if isinstance(part, TextPart | ThinkingPart)]
        calls = [
            f"{part.tool_name}{part.args_as_json_str()}" for part in message.parts if isinstance(part, ToolCallPart)
        ]
        return ["\n".join([*words, *calls])]
    return [told for part in message.parts if (told := _part(part)) is not None]


def _part(part: object) -> str | None:
    match part:
        case SystemPromptPart(content=content):
            return content
        case UserPromptPart(content=content):
            return content if isinstance(content, str) else "\n".join(item for item in content if isinstance(item, str))
        case ToolReturnPart(tool_name=name):
            return f"{name}\n{part.model_response_str()}"
        case RetryFeedbackPart():
            return part.model_response()
        case CompactionPart(content=str(content)):
            return content
        case _:
            return None


@dataclass(slots=True)
class Meter:
    """Estimates one model's tokens and learns from what its engine counts. Estimates lie above the mean error."""

    rates: list[float] = field(default_factory=lambda: [*(kind.rate for kind in _KINDS), _MESSAGE[0], _PROMPT[0]])
    observed: int = 0
    _off: float = 0.0  #: how much too low, as a part of the count, with old ones fading

    def text(self, text: str) -> int:
        """Return the tokens of a text alone, from above."""
        return self._up(weigh(text))

    def messages(self, messages: Sequence[ModelMessage]) -> int:
        """Return the tokens of these messages, from above, with no template or tool around them."""
        return self._up(_sum(self._weigh(message) for message in messages)) if messages else 0

    def tools(self, tools: Sequence[ToolDefinition]) -> int:
        """Return the tokens of what the model is told of these tools, from above."""
        return self._up(_sum(_weigh_tool(_told(tool)) for tool in tools)) if tools else 0

    def count(self, messages: Sequence[ModelMessage], tools: Sequence[ToolDefinition] = ()) -> int:
        """Return the tokens of the next prompt, from above.

        Up to the last answer they are the engine's own figures, when it gave any; the rest is estimated.
        """
        return sum(self.split(messages, tools))

    def split(self, messages: Sequence[ModelMessage], tools: Sequence[ToolDefinition] = ()) -> tuple[int, int]:
        """Return the next prompt's tokens that the engine has counted, and those that are estimated."""
        for place in range(len(messages) - 1, -1, -1):
            if (known := _known(messages[place])) is not None:
                return known, self.messages(messages[place + 1 :])
        return 0, self.messages(messages) + self.around(messages, tools)

    def around(self, messages: Sequence[ModelMessage], tools: Sequence[ToolDefinition] = ()) -> int:
        """Return the tokens, from above, of what stands around a history: instructions, tools, template."""
        return self._instructions(messages) + self.tools(tools) + round(self.rates[-1])

    def observe(self, texts: Sequence[str], counted: int) -> None:
        """Learn from a prompt's texts, one a message, and the engine's count of them."""
        self.learn((*_sum(weigh(text) for text in texts)[:-2], float(len(texts)), 1.0), counted)

    def learn(self, weights: Weights, counted: int) -> None:
        """Learn from weights and the engine's count of them."""
        size = sum(weights[: len(_KINDS)])
        # An engine that leaves out what its cache held counts next to nothing; that is no measure of the text.
        if counted <= 0 or size <= 0 or counted < size / 20:
            return
        guess = self._mean(weights)
        short = max(0.0, (counted - guess) / counted)
        self._off = max(short, self._off * _FORGET) if self.observed else short
        norm = sum(value * value for value in weights)
        step = (1.0 if guess < counted else _LEARN) * (counted - guess) / norm
        for place, value in enumerate(weights):
            least, most = _bounds(place)
            self.rates[place] = min(max(self.rates[place] + step * value, least), most)
        self.observed += 1

    def _weigh(self, message: ModelMessage) -> Weights:
        texts = texts_of(message)
        return (*_sum(weigh(text) for text in texts)[:-2], float(len(texts)), 0.0)

    def _instructions(self, messages: Sequence[ModelMessage]) -> int:
        for message in reversed(messages):
            if isinstance(message, ModelRequest) and message.instructions:
                return self.text(message.instructions) + round(self.rates[-2])
        return 0

    def _mean(self, weights: Weights) -> float:
        return sum(rate * value for rate, value in zip(self.rates, weights, strict=True))

    def _up(self, weights: Weights) -> int:
        margin = _FIRST_MARGIN if not self.observed else min(_LEAST_MARGIN + self._off, _MOST_MARGIN)
        return round(self._mean(weights) * (1 + margin) + 0.5)


def _known(message: ModelMessage) -> int | None:
    """Return the engine's count of the prompt and the answer, None when it gave none or tells of another prompt."""
    if not isinstance(message, ModelResponse) or (message.metadata or {}).get(STALE):
        return None
    return message.usage.input_tokens + message.usage.output_tokens if message.usage.input_tokens > 0 else None


def _bounds(place: int) -> tuple[float, float]:
    if place < len(_KINDS):
        return _KINDS[place].least, _KINDS[place].most
    return (_MESSAGE if place == len(_KINDS) else _PROMPT)[1:]


def _told(tool: ToolDefinition) -> str:
    schema: JsonValue = tool.parameters_json_schema
    return f'{{"type":"function","name":"{tool.name}","description":"{tool.description or ""}",{json.dumps(schema)}'


@dataclass(frozen=True, slots=True)
class Room:
    """How full a context is, in tokens."""

    used: int  #: of the next prompt, from above
    limit: int  #: what a prompt may have: the context less what is kept for the answer
    least: int  #: the same from below; over the limit it surely does not fit

    @property
    def ok(self) -> bool:
        """Whether it surely fits."""
        return self.used <= self.limit

    @property
    def part(self) -> float:
        """How much of the limit is used."""
        return self.used / self.limit


def fits(
    meter: Meter,
    messages: Sequence[ModelMessage],
    tools: Sequence[ToolDefinition] = (),
    *,
    num_ctx: int,
    reserve: int,
) -> Room:
    """Say whether the next prompt fits the context with so many tokens kept for the answer.

    Raises ContextFullError when the reserve alone fills the context.
    """
    limit = num_ctx - reserve
    if limit <= 0:
        raise ContextFullError(
            f"The answer may have {reserve} tokens, which leaves nothing of the context of {num_ctx} for the "
            "question; nothing was generated. Ask for fewer max_output_tokens."
        )
    known, estimated = meter.split(messages, tools)
    return Room(known + estimated, limit, known + estimated // OVER)


class Meters:
    """The meter of each model, the least used forgotten first."""

    def __init__(self, most: int = MAX_METERS) -> None:
        self._most = most
        self._kept: OrderedDict[str, Meter] = OrderedDict()

    def of(self, model: str) -> Meter:
        """Return the model's own meter; a new one knows nothing yet."""
        meter = self._kept.setdefault(model, Meter())
        self._kept.move_to_end(model)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return meter


METERS: Final = Meters()  #: shared: a tokenizer is the same from run to run
