"""context: owns the keeping of a run inside its context: counts before each request, compresses or refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from pydantic_ai.messages import ModelMessage
from pydantic_ai.tools import ToolDefinition

from loopbox_agent.compaction import CompactionPlan, plan
from loopbox_agent.summarise import TIMEOUT_S, Compacted, Summarise, compact
from loopbox_agent.tokens import ContextFullError, Meter, fits

log = structlog.get_logger("agent.context")


@dataclass
class KeepInContext:
    """Compresses the history of a run before the request that would fill the context."""

    meter: Meter
    num_ctx: int  #: tokens
    reserve: int  #: tokens kept for the answer: the request's max_tokens
    summarise: Summarise | None = None  #: None: by rules
    keep_turns: int = 3
    timeout_s: float = TIMEOUT_S
    open_items: Callable[[], Sequence[str]] | None = None  #: where the caller keeps a list of what is owed

    async def shorten(self, messages: Sequence[ModelMessage], tools: Sequence[ToolDefinition] = ()) -> Compacted | None:
        """Return a shorter history for the next request, None where it fits. Raises ContextFullError.

        Later requests go on from the short one; whoever stores a thread appends the originals as they come.
        """
        if (planned := self.plan(messages, tools)) is None:
            return None
        compacted = await compact(planned, self.summarise, timeout_s=self.timeout_s)
        log.info(
            "context.compressed",
            before=compacted.tokens_before,
            after=compacted.tokens_after,
            first=compacted.first,
            last=compacted.last,
            by=compacted.by,
        )
        return compacted

    def plan(self, messages: Sequence[ModelMessage], tools: Sequence[ToolDefinition]) -> CompactionPlan | None:
        """Return how to compress before the next request, None for not at all. Raises ContextFullError."""
        room = fits(self.meter, messages, tools, num_ctx=self.num_ctx, reserve=self.reserve)
        try:
            return plan(
                messages,
                used_tokens=room.used,
                limit_tokens=room.limit,
                meter=self.meter,
                keep_turns=self.keep_turns,
                fixed_tokens=min(self.meter.around(messages, tools), room.used),
                open_items=self.open_items() if self.open_items is not None else None,
            )
        except ContextFullError:
            if room.least > room.limit:
                raise
            # Estimates lie above the count. What may yet fit is asked of the engine, which refuses and never cuts.
            return None
