"""model: owns the pydantic-ai model over the engine's native chat dialect.

Native, because the OpenAI dialect cannot set the context length, and a request with another one makes the engine load
the model anew.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from pydantic_ai import RunContext
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
    UserContent,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.settings import ModelSettings, ToolOrOutput
from pydantic_ai.tools import ToolDefinition

from loopbox_agent.answer import PROVIDER, Answer, Counted, OllamaResponse
from loopbox_agent.tokens import Meter
from loopbox_agent.wire import (
    CalledFunction,
    CalledTool,
    ChatChunk,
    ChatOrder,
    Message,
    OfferedFunction,
    OfferedTool,
    Options,
)

__all__ = ["PROVIDER", "Chats", "OllamaModel", "OllamaResponse", "OllamaSettings", "Served", "ServedLike"]

_PROFILE: Final = ModelProfile(
    supports_json_schema_output=True,
    supports_image_input=False,
    supports_document_input=False,
    supports_thinking=True,
    # The engine renders the model's own template and reads control tokens in the result, so a tool's output could
    # otherwise open a turn of its own.
    may_tokenize_special_tokens_in_content=True,
)
_LEFT_OUT: Final = "[a file was left out: this model reads text only]"


class ServedLike(Protocol):
    """How the model is served; the service's settings are one, Served is another."""

    @property
    def model(self) -> str:
        """The alias."""

    @property
    def num_ctx(self) -> int:
        """The context, in tokens: the release's own, because another makes the engine load the model anew."""

    @property
    def max_output_tokens(self) -> int:
        """The tokens of one answer, unless the request says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """How the model is served."""

    model: str
    num_ctx: int
    max_output_tokens: int


class Chats(Protocol):
    """What answers a chat: one engine, or several behind one face."""

    def chat(self, order: ChatOrder) -> AbstractAsyncContextManager[AsyncIterator[ChatChunk]]:
        """Ask; the chunks come as generated, the last one has ``done``. Leaving early stops the generation."""


class OllamaSettings(ModelSettings, total=False):
    """What one request may set beyond what every model knows."""

    ollama_num_ctx: int  #: tokens
    ollama_min_p: float
    ollama_repeat_penalty: float


class OllamaModel(Model):
    """One alias behind the gateway.

    meter: learns from the engine's counts, so that the next prompt is counted before it is sent.
    """

    def __init__(
        self,
        engine: Chats,
        served: ServedLike,
        *,
        meter: Meter | None = None,
        settings: ModelSettings | None = None,
    ) -> None:
        super().__init__(settings=settings, profile=_PROFILE)
        self._engine = engine
        self._own = served
        self._meter = meter

    @property
    def model_name(self) -> str:
        """The alias."""
        return self._own.model

    @property
    def system(self) -> str:
        """The provider's name."""
        return PROVIDER

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Ask and wait for the whole answer."""
        async with self.request_stream(messages, model_settings, model_request_parameters) as streamed:
            async for _ in streamed:
                pass
            return streamed.get()

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,  # Any: the framework's own signature
    ) -> AsyncGenerator[StreamedResponse]:
        """Ask and yield the answer as it is generated."""
        del run_context
        asked, parameters = self.prepare_request(model_settings, model_request_parameters)
        order = self.order(messages, asked or {}, parameters)
        answer = Answer(
            # Under a schema the whole answer is JSON that may well look like a call.
            offered=frozenset(tool.function.name for tool in order.tools or ())
            if order.format is None
            else frozenset(),
            taken={
                part.tool_call_id for message in messages for part in message.parts if isinstance(part, ToolCallPart)
            },
        )
        async with self._engine.chat(order) as chunks:
            yield OllamaResponse(
                parameters, chunks=chunks, alias=self.model_name, answer=answer, counted=self._learn(order)
            )

    def order(
        self, messages: Sequence[ModelMessage], asked: ModelSettings, parameters: ModelRequestParameters
    ) -> ChatOrder:
        """Return the request's body."""
        wanted = parameters.output_object.json_schema if parameters.output_object else None
        return ChatOrder(
            model=self.model_name,
            messages=self._messages(messages, parameters),
            options=self._options(asked),
            tools=tuple(_offer(tool) for tool in _chosen(asked, parameters)) or None,
            format=wanted if parameters.output_mode == "native" else None,
            think=_think(parameters.thinking),
        )

    def _options(self, asked: ModelSettings) -> Options:
        stop = asked.get("stop_sequences")
        own: dict[str, Any] = dict(asked)  # Any: settings of one provider, which the framework does not type
        return Options(
            num_ctx=own.get("ollama_num_ctx", self._own.num_ctx),
            num_predict=asked.get("max_tokens", self._own.max_output_tokens),
            temperature=asked.get("temperature"),
            top_p=asked.get("top_p"),
            top_k=asked.get("top_k"),
            min_p=own.get("ollama_min_p"),
            repeat_penalty=own.get("ollama_repeat_penalty"),
            presence_penalty=asked.get("presence_penalty"),
            frequency_penalty=asked.get("frequency_penalty"),
            seed=asked.get("seed"),
            stop=tuple(stop) if stop else None,
        )

    def _messages(self, messages: Sequence[ModelMessage], parameters: ModelRequestParameters) -> tuple[Message, ...]:
        """Return the history in the engine's form: one system message first, with the newest instructions in it."""
        turn = max((place for place, message in enumerate(messages) if _asks(message)), default=-1)
        told = [made for place, message in enumerate(messages) for made in _tell(message, thinking=place > turn)]
        first = 0
        while first < len(told) and told[first].role == "system":
            first += 1
        instructions = self._get_instruction_parts(messages, parameters) or []
        rules = [*(made.content for made in told[:first]), *(part.content for part in instructions)]
        text = "\n\n".join(filter(None, rules))
        return (*([Message(role="system", content=text)] if text else []), *told[first:])

    def _learn(self, order: ChatOrder) -> Counted:
        meter = self._meter

        def counted(prompt: int, answer: int) -> None:
            del answer  # its text is part of the next prompt, where it is counted together with its marks
            if meter is not None:
                meter.observe(_texts(order), prompt)

        return counted


def _texts(order: ChatOrder) -> list[str]:
    texts = [
        "\n".join(
            [made.content, made.thinking or "", *(call.function.model_dump_json() for call in made.tool_calls or ())]
        )
        for made in order.messages
    ]
    return [*texts, *(tool.model_dump_json() for tool in order.tools or ())]


def _chosen(asked: ModelSettings, parameters: ModelRequestParameters) -> list[ToolDefinition]:
    """Return the tools to offer. The engine knows no tool choice, so what was not chosen is not offered."""
    choice = asked.get("tool_choice")
    tools, outputs = parameters.declared_function_tools, parameters.output_tools
    if choice == "none":
        return [*outputs]
    if isinstance(choice, ToolOrOutput):
        return [*(tool for tool in tools if tool.name in choice.function_tools), *outputs]
    if isinstance(choice, list):
        return [tool for tool in (*tools, *outputs) if tool.name in choice]
    return [*tools, *outputs]


def _think(level: bool | str | None) -> bool | Literal["low", "medium", "high"] | None:  # noqa: FBT001 the setting's own type
    match level:
        case None | True | False | "low" | "medium" | "high":
            return level
        case "minimal":
            return "low"
        case _:
            return "high"


def _offer(tool: ToolDefinition) -> OfferedTool:
    function = OfferedFunction(
        name=tool.name, description=tool.description or "", parameters=tool.parameters_json_schema
    )
    return OfferedTool(function=function)


def _asks(message: ModelMessage) -> bool:
    return isinstance(message, ModelRequest) and any(isinstance(part, UserPromptPart) for part in message.parts)


def _tell(message: ModelMessage, *, thinking: bool) -> Iterator[Message]:
    """Yield a message of the history in the engine's form; thoughts only while their turn goes on."""
    if isinstance(message, ModelRequest):
        yield from (told for part in message.parts if (told := _part(part)) is not None)
        return
    text = "".join(part.content for part in message.parts if isinstance(part, TextPart))
    thought = "".join(part.content for part in message.parts if isinstance(part, ThinkingPart)) if thinking else ""
    calls = tuple(
        CalledTool(id=part.tool_call_id, function=CalledFunction(name=part.tool_name, arguments=part.args_as_dict()))
        for part in message.parts
        if isinstance(part, ToolCallPart)
    )
    if text or thought or calls:
        yield Message(role="assistant", content=text, thinking=thought or None, tool_calls=calls or None)


def _part(part: object) -> Message | None:
    match part:
        case SystemPromptPart(content=content):
            return Message(role="system", content=content)
        case UserPromptPart(content=content):
            return Message(role="user", content=content if isinstance(content, str) else _joined(content))
        case CompactionPart(content=str(content)):
            return Message(role="user", content=content)
        case ToolReturnPart(tool_name=name, tool_call_id=call):
            return Message(role="tool", content=part.model_response_str(), tool_name=name, tool_call_id=call)
        case RetryFeedbackPart():
            return Message(role="user", content=part.model_response())
        case _:
            return None


def _joined(content: Sequence[UserContent]) -> str:
    return "\n".join(item if isinstance(item, str) else getattr(item, "content", None) or _LEFT_OUT for item in content)
