"""wire: owns the records of the engine's native chat dialect, as sent and as read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

MAX_TOOL_CALLS = 32  #: in one piece of an answer; a model that loops would name hundreds

LONGEST_ARGUMENTS = 262_144  #: characters, of one call that is text

ToolName = Annotated[str, Field(min_length=1, max_length=256)]


class _Record(BaseModel):
    # Engines add fields over time; those we do not use are none of our business.
    model_config = ConfigDict(frozen=True, extra="ignore")


class CalledFunction(_Record):
    """What a model wants called."""

    name: ToolName
    #: Sent as an object, always; read as text, too, from engines that hand on what they could not parse.
    arguments: dict[str, JsonValue] | Annotated[str, Field(max_length=LONGEST_ARGUMENTS)] | None = {}


class CalledTool(_Record):
    """One tool call in an answer or in the history."""

    id: Annotated[str, Field(max_length=256)] | None = None
    function: CalledFunction


class Message(_Record):
    """One message of the conversation sent."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str | None = None
    tool_calls: tuple[CalledTool, ...] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OfferedFunction(_Record):
    """A tool as the model sees it."""

    name: str
    description: str
    parameters: dict[str, JsonValue]


class OfferedTool(_Record):
    """A tool offered."""

    type: Literal["function"] = "function"
    function: OfferedFunction


class Options(_Record):
    """Sampling and sizes of one request, in tokens; None leaves the release's own value."""

    num_ctx: int
    num_predict: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None


class ChatOrder(_Record):
    """The body of POST /api/chat."""

    model: str
    messages: tuple[Message, ...]
    options: Options
    tools: tuple[OfferedTool, ...] | None = None
    format: dict[str, JsonValue] | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    stream: Literal[True] = True
    # Both False: the engine refuses a prompt that is too long and ends at the brim of the context, where it would
    # otherwise drop the oldest messages without a word.
    truncate: Literal[False] = False
    shift: Literal[False] = False


class AnswerPiece(_Record):
    """The message part of one chunk."""

    content: str = ""
    thinking: str = ""
    tool_calls: Annotated[tuple[CalledTool, ...], Field(max_length=MAX_TOOL_CALLS)] = ()


class ChatChunk(_Record):
    """One line of the answer; the last one has ``done`` and the counts in tokens."""

    message: AnswerPiece = AnswerPiece()
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: Annotated[int, Field(ge=0)] = 0
    eval_count: Annotated[int, Field(ge=0)] = 0
    error: str | None = None
