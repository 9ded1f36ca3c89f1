"""metrics: owns the agent's Prometheus metrics, in a registry of their own."""

from __future__ import annotations

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Tried(Protocol):
    """One try of one model."""

    @property
    def member(self) -> str:
        """Its name in the pool."""

    @property
    def category(self) -> str | None:
        """Of its failure; None: it answered."""


class Metrics:
    """Every metric, named loopbox_agent_*, in base units."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.run_seconds = Histogram(
            "loopbox_agent_run_seconds",
            "Time of a run by how it ended.",
            ["outcome"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            "loopbox_agent_first_token_seconds",
            "Time from asking the engine to its first token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "loopbox_agent_prompt_tokens_total", "Prompt tokens, as the engine counts them.", registry=self.registry
        )
        self.generation_tokens = Counter(
            "loopbox_agent_generation_tokens_total",
            "Generated tokens, as the engine counts them.",
            registry=self.registry,
        )
        self.tool_calls = Counter(
            "loopbox_agent_tool_calls_total",
            "Tool calls by tool and outcome.",
            ["tool", "outcome"],
            registry=self.registry,
        )
        self.tool_results = Counter(
            "loopbox_agent_tool_results_total",
            "Tool results from outside by what was done about them.",
            ["band"],
            registry=self.registry,
        )
        self.outputs_flagged = Counter(
            "loopbox_agent_outputs_flagged_total",
            "Answers that moderation found something in, by category and verdict.",
            ["category", "verdict"],
            registry=self.registry,
        )
        self.model_tries = Counter(
            "loopbox_agent_model_tries_total",
            "Requests to each model by what came of them.",
            ["member", "outcome"],
            registry=self.registry,
        )
        self.running_runs = Gauge("loopbox_agent_running_runs", "Runs under way.", registry=self.registry)

    def tried(self, tried: Tried) -> None:
        """Count one try of one model."""
        self.model_tries.labels(member=tried.member, outcome=tried.category or "ok").inc()
