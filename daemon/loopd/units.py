"""units: owns what each container is: image, user, network, mounts, limits. Pure but for the paths it names.

Users are numeric and differ by unit, so that one unit's files mean nothing to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loopd.config import Settings
from loopd.engine import Confinement, Limits, Mount, Unit
from loopd.release import Release
from loopd.seccomp import sandbox_profile

GATEWAY = "gateway"
AGENT = "agent"
SANDBOX_PREFIX = "sandbox-"
ENGINE_PREFIX = "engine-"
EGRESS = "egress"
TRAINER_PREFIX = "trainer-"
KEPT_BY_OTHERS = (SANDBOX_PREFIX, EGRESS, TRAINER_PREFIX)  # units whose names begin so are not the supervisor's

ENGINE_UID = 10001
AGENT_UID = 10002
TOOLRUNNER_UID = 10003
GATEWAY_UID = 10004
EGRESS_UID = 10005
TRAINER_UID = 10006

ENGINE_PORT = 11434
AGENT_PORT = 8000

AGENT_STATE = "/var/lib/agent"
AGENT_EGRESS = "/run/egress"
AGENT_SECRETS = "/run/secrets"

TOOL_SOCKET = "mcp.sock"
EGRESS_SOCKET = "egress.sock"
CONTROL_SOCKET = "control.sock"  # where the proxy comes for its orders

# In a sandbox, of what the host's kernel tells: what describes the machine or other containers, and no program needs.
MASKED_PATHS = (
    *("/proc/acpi", "/proc/asound", "/proc/bus", "/proc/cmdline", "/proc/config.gz", "/proc/driver", "/proc/fs"),
    *("/proc/interrupts", "/proc/iomem", "/proc/ioports", "/proc/irq", "/proc/kallsyms", "/proc/kcore", "/proc/keys"),
    *("/proc/key-users", "/proc/kmsg", "/proc/kpagecount", "/proc/kpageflags", "/proc/latency_stats", "/proc/modules"),
    *("/proc/mtrr", "/proc/partitions", "/proc/sched_debug", "/proc/scsi", "/proc/slabinfo", "/proc/swaps"),
    *("/proc/sysrq-trigger", "/proc/sysvipc", "/proc/timer_list", "/proc/timer_stats", "/proc/vmallocinfo"),
    *("/sys/block", "/sys/bus", "/sys/class/dmi", "/sys/dev", "/sys/devices/pci0000:00", "/sys/devices/virtual/dmi"),
    *("/sys/devices/virtual/powercap", "/sys/firmware", "/sys/hypervisor", "/sys/kernel", "/sys/module", "/sys/power"),
)

SandboxKind = Literal["tools", "browser"]

# Of CPU time, when there is not enough for all.
# Where control groups have the newer interface, an ordinary service of the host has what is 2600 here.
GATEWAY_WEIGHT = 16384  # all traffic passes it, and it needs little
SERVING_WEIGHT = 4096
CANDIDATE_WEIGHT = 256  # while it starts, loads and is checked: what serves comes first
SANDBOX_WEIGHT = 1024
TRAINER_WEIGHT = 32  # it has time
STARTING_WEIGHT = 64  # a sandbox that starts must not slow those that are lent

TRAINER_OOM_ADJ = 900  # for want of memory on the host, training ends first: it goes on from its checkpoint
SANDBOX_OOM_ADJ = 800  # for want of memory on the host, sandboxes end before all else of ours

# The runner's process and its buffers beside the weights and the key-value cache; measured 80 MB for a tiny model.
ENGINE_OVERHEAD_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are on this host."""

    home: Path
    run_dir: Path

    @property
    def state(self) -> Path:
        """state.db."""
        return self.home / "state.db"

    @property
    def audit(self) -> Path:
        """The audit trail."""
        return self.home / "audit.db"

    @property
    def alerts(self) -> Path:
        """Alerts that nobody has taken yet."""
        return self.home / "alerts"

    @property
    def agent(self) -> Path:
        """What the agent keeps: threads, memories, workspaces."""
        return self.home / "agent"

    @property
    def token(self) -> Path:
        """The control API's bearer token."""
        return self.home / "control.token"

    @property
    def keys(self) -> Path:
        """The keys that sign tokens."""
        return self.home / "keys"

    @property
    def incoming(self) -> Path:
        """Where people drop models."""
        return self.home / "models" / "incoming"

    @property
    def jobs(self) -> Path:
        """One directory for each job of the trainer."""
        return self.home / "training" / "jobs"

    @property
    def datasets(self) -> Path:
        """What the trainer may read to learn from."""
        return self.home / "training" / "data"

    @property
    def rejected(self) -> Path:
        """Where refused models go, each with its reason."""
        return self.home / "models" / "rejected"

    @property
    def blobs(self) -> Path:
        """Accepted weights by digest."""
        return self.home / "models" / "blobs"

    @property
    def engines(self) -> Path:
        """One engine directory for each release."""
        return self.home / "engines"

    @property
    def gateway(self) -> Path:
        """The gateway's configuration and sockets."""
        return self.run_dir / "gateway"

    @property
    def broker(self) -> Path:
        """The lease broker's socket."""
        return self.run_dir / "broker"

    @property
    def leases(self) -> Path:
        """Sockets of leased sandboxes, as the agent sees them."""
        return self.run_dir / "leases"

    @property
    def sandboxes(self) -> Path:
        """One socket directory for each sandbox."""
        return self.run_dir / "sandboxes"

    @property
    def egress(self) -> Path:
        """The agent's own way out: a socket, where the operator granted it hosts."""
        return self.run_dir / "egress"

    @property
    def egress_control(self) -> Path:
        """Where the proxy finds loopd."""
        return self.run_dir / "egress-control"

    @property
    def control_socket(self) -> Path:
        """The control API for root."""
        return self.run_dir / "control.sock"

    def blob(self, sha256: str) -> Path:
        """Return where weights of this digest are kept."""
        return self.blobs / f"{sha256}.gguf"

    def directories(self) -> tuple[tuple[Path, int, int], ...]:
        """Return (path, mode, owner) of each directory loopd makes at start, parents first."""
        return (
            (self.home, 0o755, 0),
            (self.keys, 0o700, 0),
            (self.home / "models", 0o755, 0),
            (self.incoming, 0o755, 0),
            (self.rejected, 0o755, 0),
            (self.blobs, 0o755, 0),
            (self.engines, 0o755, 0),
            (self.home / "training", 0o700, 0),
            (self.jobs, 0o755, 0),
            (self.datasets, 0o755, 0),
            (self.agent, 0o700, AGENT_UID),
            (self.run_dir, 0o755, 0),
            (self.gateway, 0o750, GATEWAY_UID),
            (self.broker, 0o750, AGENT_UID),
            (self.leases, 0o700, AGENT_UID),
            (self.sandboxes, 0o711, 0),
            (self.egress, 0o711, 0),
            (self.egress_control, 0o700, EGRESS_UID),
        )


def layout_of(settings: Settings) -> Layout:
    """Return the layout the settings ask for."""
    return Layout(settings.home, settings.run_dir)


def gateway_unit(settings: Settings, image: str) -> Unit:
    """Return the gateway: on the host's network, so that the host's firewall governs what it opens."""
    return Unit(
        name=GATEWAY,
        image=image,
        user=f"{GATEWAY_UID}:{GATEWAY_UID}",
        network="host",
        limits=Limits(memory_bytes=256 << 20, pids=64, weight=GATEWAY_WEIGHT),
        mounts=(Mount(source=str(layout_of(settings).gateway), target="/run/gateway"),),
        stop_grace_s=5,
    )


def agent_unit(settings: Settings, image: str, *, internal_address: str) -> Unit:
    """Return the agent, which reaches the model only through the gateway."""
    layout = layout_of(settings)
    environment = {
        "AGENT_ENGINE_URL": f"http://{internal_address}:{settings.internal_port}",
        "AGENT_MODEL": settings.model_alias,
        "AGENT_NUM_CTX": str(settings.num_ctx),
        "AGENT_MAX_BODY_BYTES": str(settings.max_body_bytes),
        "AGENT_BROKER_SOCKET": "/run/broker/broker.sock",
        "AGENT_LEASES_DIR": "/run/leases",
        "AGENT_PORT": str(AGENT_PORT),
        "AGENT_MAX_TURNS": str(settings.agent.max_turns),
        "AGENT_MAX_TOOL_CALLS": str(settings.agent.max_tool_calls),
        "AGENT_RUN_TIMEOUT_S": str(settings.agent.run_timeout_s),
        "AGENT_MAX_CONCURRENT_RUNS": str(settings.agent.max_concurrent_runs),
        "AGENT_DATABASE_URL": settings.agent.database_url,
        "AGENT_SEARCH_URL": settings.agent.search_url,
        "AGENT_HOLD_OUTPUT_FROM": str(settings.agent.hold_output_from),
        "AGENT_THREATS": settings.agent.threats,
        "AGENT_LEARN": settings.learn,
        "AGENT_LEARN_DAYS": str(settings.agent.learn_days),
    }
    if settings.egress.agent:
        environment["AGENT_EGRESS_PROXY"] = f"unix:{AGENT_EGRESS}/{EGRESS_SOCKET}"
    secrets: tuple[Mount, ...] = ()
    if settings.agent.secrets_dir is not None:
        environment["AGENT_SECRETS_DIR"] = AGENT_SECRETS
        environment["AGENT_DATABASE_PASSWORD_FILE"] = f"{AGENT_SECRETS}/database-password"
        secrets = (Mount(source=str(settings.agent.secrets_dir), target=AGENT_SECRETS, read_only=True),)
    return Unit(
        name=AGENT,
        image=image,
        user=f"{AGENT_UID}:{AGENT_UID}",
        network="internal",
        limits=Limits(memory_bytes=settings.agent.memory_bytes, pids=128, weight=SERVING_WEIGHT),
        environment=tuple(sorted(environment.items())),
        mounts=(
            Mount(source=str(layout.broker), target="/run/broker", read_only=True),
            Mount(source=str(layout.leases), target="/run/leases", read_only=True),
            Mount(source=str(layout.agent), target=AGENT_STATE),
            Mount(source=str(layout.egress), target=AGENT_EGRESS, read_only=True),
            *secrets,
        ),
    )


def engine_unit(settings: Settings, release: Release) -> Unit:
    """Return the engine of one release, with its own copy of nothing: the weights are a hard link."""
    return Unit(
        name=release.unit,
        image=release.engine_image,
        user=f"{ENGINE_UID}:{ENGINE_UID}",
        network="internal",
        limits=Limits(memory_bytes=memory_needed(release), pids=256, weight=SERVING_WEIGHT),
        environment=(
            ("OLLAMA_KEEP_ALIVE", "-1"),
            ("OLLAMA_NOPRUNE", "1"),
            ("OLLAMA_NUM_PARALLEL", str(settings.engine_parallel)),
        ),
        mounts=(Mount(source=str(layout_of(settings).engines / release.short), target="/models"),),
        gpus=settings.engine_gpu,
    )


def sandbox_unit(
    settings: Settings, image: str, sandbox: str, *, kind: SandboxKind = "tools", runtime: str = ""
) -> Unit:
    """Return one sandbox: no network, nothing of the host but the directory of its own sockets."""
    box = settings.sandbox
    browser = kind == "browser"
    limits = Limits(
        memory_bytes=box.browser_memory_bytes if browser else box.memory_bytes,
        cpus=box.cpus,
        pids=box.browser_pids if browser else box.pids,
        weight=STARTING_WEIGHT,
    )
    held = "nosuid,nodev,nr_inodes=65536"  # an inode takes kernel memory, and a file of no bytes no room
    return Unit(
        name=f"{SANDBOX_PREFIX}{sandbox}",
        image=image,
        user=f"{TOOLRUNNER_UID}:{TOOLRUNNER_UID}",
        network="none",
        limits=limits,
        environment=(("TOOLRUNNER_SOCKET", f"/run/toolrunner/{TOOL_SOCKET}"),),
        mounts=(Mount(source=str(layout_of(settings).sandboxes / sandbox), target="/run/toolrunner"),),
        tmpfs=(
            ("/tmp", f"size={box.tmp_bytes},{held},mode=1777"),  # noqa: S108 inside the container
            ("/dev/shm", f"size={box.tmp_bytes},{held},noexec,mode=1777"),  # noqa: S108 inside the container
            (
                "/workspace",
                f"size={box.workspace_bytes},{held},exec,uid={TOOLRUNNER_UID},gid={TOOLRUNNER_UID},mode=0700",
            ),
        ),
        stop_grace_s=0,
        confinement=Confinement(
            seccomp=sandbox_profile(),
            masked_paths=MASKED_PATHS,
            runtime=runtime,
            oom_score_adj=SANDBOX_OOM_ADJ,
            open_files=box.open_files,
        ),
    )


def egress_unit(settings: Settings, image: str) -> Unit:
    """Return the proxy: the one container with a way out, and nothing of the host but the door to loopd, read-only."""
    limits = settings.egress
    environment = {
        "EGRESS_CONTROL": f"/run/egress/{CONTROL_SOCKET}",
        "EGRESS_CONNECTIONS": str(limits.connections),
        "EGRESS_CONNECTION_BYTES": str(limits.connection_bytes),
        "EGRESS_LISTENER_BYTES": str(limits.session_bytes),
        "EGRESS_CONNECTION_S": str(limits.connection_s),
    }
    return Unit(
        name=EGRESS,
        image=image,
        user=f"{EGRESS_UID}:{EGRESS_UID}",
        network="egress",
        limits=Limits(memory_bytes=128 << 20, cpus=1.0, pids=64, weight=SANDBOX_WEIGHT),
        environment=tuple(sorted(environment.items())),
        mounts=(Mount(source=str(layout_of(settings).egress_control), target="/run/egress", read_only=True),),
        stop_grace_s=1,
        confinement=Confinement(seccomp=sandbox_profile(), masked_paths=MASKED_PATHS, open_files=8192),
    )


def trainer_unit(settings: Settings, image: str, job: str, command: str) -> Unit:
    """Return the container of a job by its id: no network, its own folder, and the weights and data to read."""
    layout, limits = layout_of(settings), settings.training
    work = layout.jobs / job / "work"
    return Unit(
        name=f"{TRAINER_PREFIX}{job.removeprefix('job-')}",
        image=image,
        user=f"{TRAINER_UID}:{TRAINER_UID}",
        network="none",
        limits=Limits(memory_bytes=limits.memory_bytes, cpus=limits.cpus, pids=512, weight=TRAINER_WEIGHT),
        command=(command,),
        mounts=(
            Mount(source=str(work), target="/job"),
            Mount(source=str(work.parent / "spec.json"), target="/job/spec.json", read_only=True),
            Mount(source=str(layout.datasets), target="/data", read_only=True),
            Mount(source=str(layout.blobs), target="/models", read_only=True),
        ),
        tmpfs=(("/tmp", "size=1g,nosuid,nodev"),),  # noqa: S108 inside the container
        stop_grace_s=30,
        gpus=limits.gpu,
        confinement=Confinement(oom_score_adj=TRAINER_OOM_ADJ),
    )


def memory_needed(release: Release) -> int:
    """Return the bytes an engine of this release is admitted with and limited to.

    Weights (mapped, so counted once), as much again for the key-value cache and compute buffers, and the
    runner's own; generous, since too small a limit kills the engine in the middle of an answer.
    """
    return 2 * release.size_bytes + ENGINE_OVERHEAD_BYTES + release.num_ctx * (64 << 10)
