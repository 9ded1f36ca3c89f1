"""run_records: owns what a client says of a run it wants, and what it is told of one that ended."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

MOST_TOOLS = 64
MOST_HOSTS = 32

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
ThreadId = Annotated[str, Field(pattern=r"^thread_[0-9a-f]{16}$")]
HostPattern = Annotated[str, Field(pattern=r"^(\*\.)?[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?$")]
StopWord = Annotated[str, Field(min_length=1, max_length=64)]

RunStatus = Literal["completed", "cancelled", "held"]


class ToolChoice(BaseModel):
    """One tool that must be called."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ToolName
    arguments: dict[str, JsonValue] | None = None  #: None: the model fills them in


class RunRequest(BaseModel):
    """The body of POST /agents/run-agent, and of a run over the WebSocket."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    instruction: Annotated[str, Field(min_length=1, max_length=32_000)]
    stream: bool = False
    background: bool = False  #: the run goes on without a client; the answer is its id
    thread_id: ThreadId | None = None  #: go on in this conversation; its history and workspace are there
    tools: Annotated[list[ToolName], Field(max_length=MOST_TOOLS)] = []
    capabilities: Annotated[list[ToolName], Field(max_length=16)] = []  #: offer the tools that match these words
    tool_choice: ToolChoice | None = None
    hosts: Annotated[list[HostPattern], Field(max_length=MOST_HOSTS)] = []  #: that the sandbox may reach
    system: Annotated[str, Field(max_length=16_000)] | None = None
    output_schema: dict[str, JsonValue] | None = None  #: JSON schema that the output must fit
    max_output_tokens: Annotated[int, Field(ge=1, le=1 << 17)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1, le=1000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0, le=4)] | None = None
    stop: Annotated[list[StopWord], Field(max_length=8)] = []
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    timeout_s: Annotated[float, Field(ge=1e-3, le=86_400, allow_inf_nan=False)] | None = None  #: at most the setting's

    @field_validator("tool_choice", mode="before", json_schema_input_type=ToolName | ToolChoice | None)
    @classmethod
    def _named(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @property
    def wants_tools(self) -> bool:
        """Whether the run may call any."""
        return bool(self.tools or self.capabilities or self.tool_choice)


class ToolCallView(BaseModel):
    """One tool call that was made."""

    name: str
    arguments: dict[str, JsonValue]
    result: dict[str, JsonValue]
    is_error: bool
    duration_ms: int


class Usage(BaseModel):
    """Tokens, as the engine counts them."""

    input_tokens: int = 0
    output_tokens: int = 0


class RunResult(BaseModel):
    """A run that ended well, was cancelled, or whose output waits for a review."""

    run_id: str
    status: RunStatus = "completed"
    output: str
    structured: Any = None  #: the output as JSON, where an output_schema was given. Any: the caller's own form
    tool_calls: list[ToolCallView] = []
    usage: Usage
    model: str
    duration_ms: int
    correlation_id: str
    thread_id: str | None = None


class SteerRequest(BaseModel):
    """The body of POST /agents/runs/{id}/steer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Annotated[str, Field(min_length=1, max_length=16_000)]


class RunView(BaseModel):
    """A run in a list."""

    run_id: str
    status: str
    thread_id: str | None = None
    user: str
    duration_ms: int
    result: Any = None  #: what the client was answered. Any: JSON
    error: Any = None  #: why it failed. Any: JSON
