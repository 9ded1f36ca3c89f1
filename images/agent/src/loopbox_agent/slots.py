"""slots: owns how many runs may be under way at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from loopbox_agent.errors import AgentError
from loopbox_agent.metrics import Metrics


class BusyError(AgentError):
    """As many runs are under way as may be."""

    code: ClassVar[str] = "too_many_runs"
    status: ClassVar[int] = 429


class Slots:
    """A count with a limit; there is no queue, because a client can wait better than a server."""

    def __init__(self, most: int, metrics: Metrics) -> None:
        self.most = most
        self.taken = 0
        self._metrics = metrics

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold one slot. Raises BusyError."""
        if self.taken >= self.most:
            raise BusyError(
                f"{self.taken} runs are under way, which is as many as may be; nothing was started. "
                "Try again in a second, or raise AGENT_MAX_CONCURRENT_RUNS.",
                retry_after_s=1,
            )
        self.taken += 1
        self._metrics.running_runs.set(self.taken)
        try:
            yield
        finally:
            self.taken -= 1
            self._metrics.running_runs.set(self.taken)
