"""metrics: owns the Prometheus metrics of loopd, in a registry of its own. Names are loopbox_*, in base units."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

STEP_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1, 5, 30, 120, 600)


@dataclass(frozen=True, slots=True)
class Metrics:
    """Every metric loopd exports."""

    registry: CollectorRegistry
    rollouts: Counter
    rollout_step_seconds: Histogram
    flip_seconds: Histogram
    restarts: Counter
    death_seen_seconds: Histogram
    reconcile_seconds: Histogram
    reconciled_at: Gauge
    relists: Counter
    unit_ready: Gauge
    unit_crash_loop: Gauge
    release_weight: Gauge
    candidates: Counter
    sandboxes: Gauge
    lease_seconds: Histogram
    ledger_length: Gauge
    requests: Counter

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self.registry)


def build_metrics() -> Metrics:
    """Return metrics over a fresh registry."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return Metrics(
        registry=registry,
        rollouts=Counter("loopbox_rollouts", "Rollouts ended", ["outcome"], registry=registry),
        rollout_step_seconds=Histogram(
            "loopbox_rollout_step_seconds",
            "Time of a step",
            ["step"],
            buckets=STEP_BUCKETS,
            registry=registry,
        ),
        flip_seconds=Histogram(
            "loopbox_flip_seconds",
            "Time of the weight flip at the gateway",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.02, 0.1),
            registry=registry,
        ),
        restarts=Counter("loopbox_restarts", "Containers started again by loopd", ["unit", "cause"], registry=registry),
        death_seen_seconds=Histogram(
            "loopbox_death_seen_seconds",
            "From a container's end to loopd's knowing",
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 30),
            registry=registry,
        ),
        reconcile_seconds=Histogram(
            "loopbox_reconcile_seconds", "Time of one reconcile", buckets=STEP_BUCKETS, registry=registry
        ),
        reconciled_at=Gauge("loopbox_reconciled_timestamp_seconds", "Last reconcile that worked", registry=registry),
        relists=Counter("loopbox_relists", "Times everything was observed anew after a gap", registry=registry),
        unit_ready=Gauge("loopbox_unit_ready", "1 when the unit is ready", ["unit"], registry=registry),
        unit_crash_loop=Gauge(
            "loopbox_unit_crash_loop", "1 while the unit is in a crash loop", ["unit"], registry=registry
        ),
        release_weight=Gauge("loopbox_release_weight", "Gateway weight, 0..256", ["release"], registry=registry),
        candidates=Counter("loopbox_candidates", "Files that came in", ["verdict"], registry=registry),
        sandboxes=Gauge("loopbox_sandboxes", "Sandboxes", ["state"], registry=registry),
        lease_seconds=Histogram(
            "loopbox_lease_seconds",
            "Time to lend a sandbox",
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10),
            registry=registry,
        ),
        ledger_length=Gauge("loopbox_ledger_entries", "Entries in the ledger", registry=registry),
        requests=Counter("loopbox_control_requests", "Control API requests", ["route", "status"], registry=registry),
    )
