"""routes: owns which endpoints there are: the control API's, and the few of the broker that the agent is given."""

from __future__ import annotations

from dataclasses import dataclass, field

from loopd.alerts import Alerts
from loopd.api.audit import AuditIntake, AuditRoutes
from loopd.api.auth import AuthRoutes
from loopd.api.backups import BackupRoutes
from loopd.api.events import EventRoutes
from loopd.api.host import HostRoutes
from loopd.api.jobs import JobRoutes
from loopd.api.releases import ReleaseRoutes
from loopd.api.rollouts import RolloutRoutes
from loopd.api.sandboxes import SandboxRoutes
from loopd.api.users import UserRoutes
from loopd.api.web import Endpoint
from loopd.audit import Trail
from loopd.backup_schedule import Backups
from loopd.collect import Collector
from loopd.doors import DoorKeeper
from loopd.ledger import Ledger
from loopd.login import Login
from loopd.metrics import Metrics
from loopd.registry import Registry
from loopd.rollout import Rollouts
from loopd.sandbox import Broker
from loopd.status import Status
from loopd.toolbox import Toolbox
from loopd.units import Layout
from loopd.users import Users


@dataclass(kw_only=True)
class Routes:
    """Every endpoint over the parts of loopd."""

    status: Status
    registry: Registry
    rollouts: Rollouts
    ledger: Ledger
    broker: Broker
    toolbox: Toolbox
    metrics: Metrics
    layout: Layout
    collector: Collector
    backups: Backups
    trail: Trail
    alerts: Alerts
    login: Login
    users: Users
    doors: DoorKeeper
    jobs: JobRoutes
    events: EventRoutes = field(init=False)

    def __post_init__(self) -> None:
        self.events = EventRoutes(ledger=self.ledger)

    def control(self) -> tuple[Endpoint, ...]:
        """Return every endpoint of the control API."""
        host = HostRoutes(status=self.status, ledger=self.ledger, metrics=self.metrics, all=self.control)
        return (
            *host.endpoints(),
            *ReleaseRoutes(
                status=self.status,
                registry=self.registry,
                rollouts=self.rollouts,
                ledger=self.ledger,
                collector=self.collector,
            ).endpoints(),
            *RolloutRoutes(status=self.status, rollouts=self.rollouts).endpoints(),
            *self.jobs.endpoints(),
            *self.events.endpoints(),
            *BackupRoutes(backups=self.backups).endpoints(),
            *self._sandboxes().endpoints(),
            *self._sandboxes().leases(),
            *AuditRoutes(trail=self.trail, ledger=self.ledger).endpoints(),
            *self.login_routes(),
            *UserRoutes(users=self.users, doors=self.doors).endpoints(),
        )

    def login_routes(self) -> tuple[Endpoint, ...]:
        """Return the endpoints that clients reach through the gateway."""
        return AuthRoutes(login=self.login).endpoints()

    def leases(self) -> tuple[Endpoint, ...]:
        """Return the endpoints that the agent may use, too."""
        return (*self._sandboxes().leases(), *AuditIntake(trail=self.trail, alerts=self.alerts).endpoints())

    def _sandboxes(self) -> SandboxRoutes:
        return SandboxRoutes(ledger=self.ledger, broker=self.broker, toolbox=self.toolbox, layout=self.layout)
