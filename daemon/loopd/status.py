"""status: owns the truthful view of everything: what the engine and the gateway show now, beside what is recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from loopd import version
from loopd.api.schema import (
    AdapterView,
    LineageView,
    ReleaseView,
    RolloutView,
    SandboxView,
    ServiceView,
    StatusView,
    StepView,
)
from loopd.config import Settings
from loopd.engine import Engine, EngineDownError, Instance, InstanceState
from loopd.errors import LoopdError
from loopd.gateway import Gateway, GatewayDownError, Server, ServerState
from loopd.journal import Journal
from loopd.metrics import Metrics
from loopd.registry import Listed, Registry, Serving
from loopd.release import SHORT, engine_unit
from loopd.restarts import Restarts
from loopd.rollout import Rollout, Rollouts
from loopd.runner import Runner
from loopd.sandbox import Broker
from loopd.steps import detail, key, kind
from loopd.supervise import Supervisor, metric_unit
from loopd.units import AGENT, ENGINE_PREFIX, GATEWAY

Role = Literal["champion", "candidate", "previous", "draining", "idle"]
State = Literal["serving", "degraded", "starting", "down"]


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at engine and gateway; None: it does not answer."""

    instances: Mapping[str, Instance] | None
    servers: Mapping[tuple[str, str], Server] | None  #: (pool, server) -> as the gateway has it

    def server(self, pool: str, name: str) -> Server | None:
        """Return the gateway's entry."""
        return (self.servers or {}).get((pool, name))


@dataclass(frozen=True, kw_only=True)
class Status:
    """Looks and tells."""

    settings: Settings
    engine: Engine
    gateway: Gateway
    registry: Registry
    rollouts: Rollouts
    journal: Journal
    runner: Runner
    supervisor: Supervisor
    restarts: Restarts
    broker: Broker
    metrics: Metrics
    started_at: datetime
    trouble: Callable[[], str] = lambda: ""  #: why the state cannot be written, '' when it can

    async def look(self) -> Sight:
        """Observe engine and gateway once."""
        instances: dict[str, Instance] | None = None
        servers: dict[tuple[str, str], Server] | None = None
        with contextlib.suppress(EngineDownError):
            instances = {i.unit: i for i in await self.engine.observe()}
        with contextlib.suppress(GatewayDownError):
            servers = {(s.pool, s.server): s for s in await self.gateway.observe()}
        return Sight(instances, servers)

    async def view(self) -> StatusView:
        """Return what `loopctl status` shows."""
        sight = await self.look()
        serving = await self.registry.serving()
        active = await self.rollouts.active()
        services = [await self.service(unit.name, sight) for unit in await self.supervisor.desired()]
        releases = [view for view in await self.releases(sight) if view.role != "idle" or view.container]
        state, reason = judge(sight, services, serving, active)
        if trouble := self.trouble():
            state, reason = "degraded" if state == "serving" else state, "; ".join(filter(None, (trouble, reason)))
        for service in services:
            self.metrics.unit_ready.labels(unit=metric_unit(service.name)).set(service.ready)
        return StatusView(
            instance=self.settings.instance,
            version=version(),
            state=state,
            reason=reason,
            started_at=self.started_at,
            public_url=f"http://127.0.0.1:{self.settings.public_port}",
            home=str(self.settings.home),
            services=services,
            releases=releases,
            rollout=await self.rollout(active) if active else None,
            sandboxes=SandboxView(
                warm=len(self.broker.warm),
                leased=self.broker.lent,
                most=self.settings.sandbox.most,
                runtime=self.broker.boxes.runtime,
            ),
        )

    async def service(self, unit: str, sight: Sight) -> ServiceView:
        """Return one unit as it is."""
        instance = (sight.instances or {}).get(unit)
        ready, reason = readiness(unit, sight)
        history = await self.restarts.of(unit)
        if not ready and await self.supervisor.looping(unit):
            reason = f"{reason}; it is in a crash loop, `loopctl why {unit}` says more"
        return ServiceView(
            name=unit,
            state=instance.state.value if instance else "absent",
            ready=ready,
            reason=reason,
            container=instance.id[:SHORT] if instance else None,
            image=instance.image_id if instance else None,
            address=instance.address if instance else None,
            started_at=instance.started_at if instance else None,
            restarts=await self.restarts.count(unit),
            last_restart_cause=history[-1].cause if history else None,
            last_restart_code=history[-1].code.value if history else None,
            last_restart_at=history[-1].at if history else None,
        )

    async def releases(self, sight: Sight | None = None) -> list[ReleaseView]:
        """Return every release as it is, newest first."""
        sight = sight or await self.look()
        serving = await self.registry.serving()
        active = await self.rollouts.active()
        return [self._release(listed, serving, active, sight) for listed in await self.registry.releases()]

    def _release(self, listed: Listed, serving: Serving, active: Rollout | None, sight: Sight) -> ReleaseView:
        release = listed.release
        server = sight.server("engine", release.short)
        instance = (sight.instances or {}).get(release.unit)
        self.metrics.release_weight.labels(release=release.short).set(server.weight if server else 0)
        return ReleaseView(
            id=release.id,
            short=release.short,
            name=release.name,
            architecture=release.architecture,
            size_bytes=release.size_bytes,
            num_ctx=release.num_ctx,
            gguf_sha256=release.gguf_sha256,
            engine_image=release.engine_image,
            source=listed.source,
            created_at=datetime.fromisoformat(listed.created_at),
            system=release.system,
            adapters=[AdapterView(sha256=one.sha256, size_bytes=one.size_bytes) for one in release.adapters],
            lineage=LineageView.model_validate(listed.lineage.model_dump()),
            signer=listed.signer,
            pinned=listed.pinned,
            collected_at=datetime.fromisoformat(listed.removed_at) if listed.removed_at else None,
            role=role_of(release.id, serving, active),
            share_percent=serving.shares.get(release.id, 0),
            weight=server.weight if server else None,
            sessions=server.sessions if server else 0,
            container=instance.id[:SHORT] if instance else None,
            ready=readiness(release.unit, sight)[0],
        )

    async def rollout(self, rollout: Rollout, *, steps: bool = True) -> RolloutView:
        """Return one rollout with its journaled steps and, while it is under way, those still planned."""
        views: list[StepView] = []
        if steps:
            rows = await self.journal.rows(rollout.id)
            views = [
                StepView(
                    step=row.step,
                    detail=detail(row.key),
                    state=row.state,
                    begun_at=datetime.fromisoformat(row.begun_at),
                    finished_at=datetime.fromisoformat(row.finished_at) if row.finished_at else None,
                    error=row.error,
                )
                for row in rows
            ]
            views += await self._planned(rollout, {row.key for row in rows if row.state == "begun"})
        return RolloutView(
            id=rollout.id,
            kind=rollout.kind,
            candidate=rollout.candidate[:SHORT],
            candidate_name=(await self.registry.get(rollout.candidate)).name,
            champion=rollout.champion[:SHORT] if rollout.champion else None,
            phase=rollout.phase.value,
            policy=rollout.policy.kind,
            strategy=rollout.strategy,
            reason=rollout.reason,
            created_at=datetime.fromisoformat(rollout.created_at),
            finished_at=datetime.fromisoformat(rollout.finished_at) if rollout.finished_at else None,
            steps=views,
        )

    async def _planned(self, rollout: Rollout, begun: set[str]) -> list[StepView]:
        if rollout.finished_at is not None:
            return []
        try:
            steps = await self.runner.plan(rollout)
        except LoopdError:
            return []
        return [
            StepView(
                step=kind(step), detail=detail(key(step)), state="planned", begun_at=None, finished_at=None, error=""
            )
            for step in steps
            if key(step) not in begun
        ]


def role_of(release: str, serving: Serving, active: Rollout | None) -> Role:
    """Say what a release is at the moment."""
    if release == serving.champion:
        return "champion"
    if active and release == active.candidate:
        return "candidate"
    if release in serving.shares:
        return "draining"
    if release == serving.previous:
        return "previous"
    return "idle"


def readiness(unit: str, sight: Sight) -> tuple[bool, str]:
    """Tell whether a unit does its work, as the gateway's own probes see it, and if not, why."""
    if sight.instances is None:
        return False, "the container engine does not answer"
    instance = sight.instances.get(unit)
    if instance is None or instance.state is not InstanceState.RUNNING:
        return False, f"its container is {instance.state.value if instance else 'absent'}"
    if sight.servers is None:
        return False, "the gateway does not answer" if unit != GATEWAY else "its admin socket does not answer"
    return (True, "") if unit == GATEWAY else _attached(unit, sight)


def _attached(unit: str, sight: Sight) -> tuple[bool, str]:
    """Tell how the gateway finds an engine or the agent."""
    pool, name = ("agent", AGENT) if unit == AGENT else ("engine", unit.removeprefix(ENGINE_PREFIX))
    server = sight.server(pool, name)
    if server is None:
        return False, "the gateway does not know it yet"
    if server.state not in (ServerState.UP, ServerState.DRAIN):
        return False, f"the gateway's probe finds it {server.state.value}"
    return True, ""


def judge(sight: Sight, services: list[ServiceView], serving: Serving, active: Rollout | None) -> tuple[State, str]:
    """Say how the whole appliance is, and why it is not serving."""
    if sight.instances is None:
        return (
            "down",
            "the container engine does not answer; start it (`systemctl start docker`, or `make up`)",
        )
    if serving.champion is None:
        if active is not None:
            return "starting", f"the first release is being rolled out ({active.candidate[:SHORT]})"
        return "starting", "no release yet: drop a GGUF file into models/incoming"
    unready = [f"{service.name}: {service.reason}" for service in services if not service.ready]
    if not unready:
        return "serving", ""
    essential = {GATEWAY, engine_unit(serving.champion)}
    state: State = "down" if any(s.name in essential and not s.ready for s in services) else "degraded"
    return state, "; ".join(unready)
