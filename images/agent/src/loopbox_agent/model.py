"""model: owns the pydantic-ai model over the engine's native chat dialect.

Native, because the OpenAI dialect cannot set the context length, and a request with another one makes the engine load
the model anew.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    ModelResponseStreamEvent,
    RetryPromptPart,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from loopbox_agent.engine import Engine
from loopbox_agent.settings import Settings
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

PROVIDER = "ollama"


class OllamaModel(Model):
    """One alias behind the gateway."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        super().__init__()
        self._engine = engine
        self._own = settings

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
        order = self.order(messages, model_settings or {}, model_request_parameters)
        async with self._engine.chat(order) as chunks:
            yield OllamaResponse(model_request_parameters, chunks=chunks, alias=self.model_name)

    def order(
        self, messages: Iterable[ModelMessage], asked: ModelSettings, parameters: ModelRequestParameters
    ) -> ChatOrder:
        """Return the request's body."""
        offered = tuple(_offer(tool) for tool in (*parameters.function_tools, *parameters.output_tools))
        wanted = parameters.output_object.json_schema if parameters.output_object else None
        return ChatOrder(
            model=self.model_name,
            messages=tuple(told for message in messages for told in _tell(message)),
            options=Options(
                num_ctx=self._own.num_ctx,
                num_predict=asked.get("max_tokens", self._own.max_output_tokens),
                temperature=asked.get("temperature"),
                top_p=asked.get("top_p"),
                seed=asked.get("seed"),
            ),
            tools=offered or None,
            format=wanted if parameters.output_mode == "native" else None,
        )


def _offer(tool: ToolDefinition) -> OfferedTool:
    function = OfferedFunction(
        name=tool.name, description=tool.description or "", parameters=tool.parameters_json_schema
    )
    return OfferedTool(function=function)


def _tell(message: ModelMessage) -> list[Message]:
    """Return a message of the history in the engine's form."""
    if isinstance(message, ModelResponse):
        text = "".join(part.content for part in message.parts if isinstance(part, TextPart))
        calls = tuple(
            CalledTool(
                id=part.tool_call_id, function=CalledFunction(name=part.tool_name, arguments=part.args_as_dict())
            )
            for part in message.parts
            if isinstance(part, ToolCallPart)
        )
        return [Message(role="assistant", content=text, tool_calls=calls or None)]
    return [*_instructions(message), *(told for part in message.parts if (told := _part(part)) is not None)]


def _instructions(message: ModelRequest) -> list[Message]:
    return [Message(role="system", content=message.instructions)] if message.instructions else []


def _part(part: object) -> Message | None:
    match part:
        case SystemPromptPart(content=content):
            return Message(role="system", content=content)
        case UserPromptPart(content=str(content)):
            return Message(role="user", content=content)
        case ToolReturnPart(tool_name=name, tool_call_id=call):
            return Message(role="tool", content=part.model_response_str(), tool_name=name, tool_call_id=call)
        case RetryPromptPart(tool_name=None):
            return Message(role="user", content=part.model_response())
        case RetryPromptPart(tool_name=str(name), tool_call_id=call):
            return Message(role="tool", content=part.model_response(), tool_name=name, tool_call_id=call)
        case _:
            return None


@dataclass
class OllamaResponse(StreamedResponse):
    """An answer while it comes."""

    chunks: AsyncIterator[ChatChunk] = field(kw_only=True)
    alias: str = field(kw_only=True)
    begun_at: datetime = field(default_factory=lambda: datetime.now(UTC), kw_only=True)

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        async for chunk in self.chunks:
            if chunk.message.content:
                for event in self._parts_manager.handle_text_delta(
                    vendor_part_id="content", content=chunk.message.content
                ):
                    yield event
            for call in chunk.message.tool_calls:
                identity = call.id or f"call_{secrets.token_hex(6)}"
                yield self._parts_manager.handle_tool_call_part(
                    vendor_part_id=identity,
                    tool_name=call.function.name,
                    args=dict(call.function.arguments),
                    tool_call_id=identity,
                )
            if chunk.done:
                self._usage = RequestUsage(input_tokens=chunk.prompt_eval_count, output_tokens=chunk.eval_count)
                self.finish_reason = "length" if chunk.done_reason == "length" else "stop"

    @property
    def model_name(self) -> str:
        """The alias."""
        return self.alias

    @property
    def provider_name(self) -> str:
        """The provider's name."""
        return PROVIDER

    @property
    def provider_url(self) -> str | None:
        """Nothing to tell: the gateway's address is internal."""
        return None

    @property
    def timestamp(self) -> datetime:
        """When it began."""
        return self.begun_at
