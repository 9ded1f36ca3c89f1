"""host_engine: owns bringing up the container engine where none answers, and stopping the one we started."""

from __future__ import annotations

import os
import time

from loopd.cli.host_commands import Say
from loopd.cli.host_parts import Host
from loopd.engine import EngineDownError
from loopd.host import HostError, Process, end_process, find_process, read_tail

ANSWER_S = 60.0
INSTALL_S = 1800.0
SYSTEMCTL_S = 120.0
STOP_S = 30.0
POLL_S = 0.2
LOG = "dockerd.log"
PACKAGES = (("dockerd", "docker.io"), ("iptables", "iptables"))  # program, and Debian's package of it
APT = ("apt-get", "--yes", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0")


def ensure_engine(host: Host, say: Say, *, install: bool = True) -> str:
    """Bring a container engine to answering: found, else installed, else started. Raises HostError."""
    if number := _answers(host):
        return f"Docker {number} answers"
    named = host.settings.docker_host or os.environ.get("DOCKER_HOST")
    if named:
        raise HostError(
            f"the container engine at {named} does not answer. Nothing was installed or started, since that one was "
            "asked for: start it, or unset docker_host and DOCKER_HOST"
        )
    if missing := [package for program, package in PACKAGES if host.commands.find(program) is None]:
        if not install:
            raise HostError("no container engine is installed")
        _install(host, missing, say)
    say("starting the engine")
    process = _start(host)
    if process:
        host.remember(host.started.model_copy(update={"dockerd": process}))
    number = _await(host, process)
    if process is None and (found := _running(host)):  # systemd's, or one that its package's script started
        host.remember(host.started.model_copy(update={"dockerd": found}))
    return f"Docker {number} {'installed and ' if missing else ''}started"


def find_engine(host: Host, say: Say) -> str:
    """Bring a stopped engine back for a clean-up; without one there is nothing to clean."""
    try:
        return ensure_engine(host, say, install=False)
    except HostError as error:
        return f"none: {str(error).splitlines()[0]}"


def remove_containers(host: Host) -> str:
    """Remove this instance's containers and networks."""
    try:
        with host.open_engine() as engine:
            return f"{engine.remove_containers()} removed"
    except EngineDownError:
        if _running(host):
            raise
        return "none runs: no engine answers"


def stop_engine(host: Host) -> str:
    """Stop the engine if we started it and nobody else uses it; return what was done."""
    process = host.started.dockerd
    if process is None:
        return "not ours: left as it was"
    if not process.alive(host.places.proc):
        host.remember(host.started.model_copy(update={"dockerd": None}))
        return "already stopped"
    try:
        with host.open_engine() as engine:
            if others := engine.foreign():
                return f"left running: {', '.join(sorted(others)[:5])} of others run on it"
    except EngineDownError:
        pass  # it runs but does not answer; ours to end all the same
    if host.places.booted:
        host.commands.run(("systemctl", "stop", "docker.socket", "docker.service"), timeout_s=SYSTEMCTL_S)
    else:
        end_process(process, grace_s=STOP_S)
    host.remember(host.started.model_copy(update={"dockerd": None}))
    return "stopped"


def _answers(host: Host) -> str:
    try:
        with host.open_engine() as engine:
            return engine.version().number
    except EngineDownError:
        return ""


def _install(host: Host, packages: list[str], say: Say) -> None:
    names = " ".join(packages)
    if host.commands.find("apt-get") is None:
        raise HostError(f"{names} is missing, and this is no Debian to install it on: install Docker Engine ≥ 20.10")
    # The engine loads a profile into each container where the kernel has AppArmor, and fails without its parser.
    if (host.places.proc.parent / "sys/kernel/security/apparmor").is_dir():
        packages = [*packages, "apparmor"]
    environment = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l"}
    for argv in ((*APT, "update"), (*APT, "install", "--no-install-recommends", "ca-certificates", *packages)):
        outcome = host.commands.run(argv, timeout_s=INSTALL_S, say=say, env=environment)
        if not outcome.good:
            raise HostError(
                f"`{' '.join(argv)}` failed ({outcome.code}):\n{outcome.tail}\n"
                "Nothing was started. Mend that (is the package mirror reachable?) and repeat `make up`"
            )


def _start(host: Host) -> Process | None:
    """Start the engine; return its process where it is our child."""
    if host.places.booted:
        outcome = host.commands.run(("systemctl", "start", "docker.service"), timeout_s=SYSTEMCTL_S)
        if not outcome.good:
            raise HostError(f"systemd could not start docker.service:\n{outcome.tail}\n`journalctl -u docker` says why")
        return None
    if _running(host):  # coming up this moment, or started by its package's script
        return None
    program = host.commands.find("dockerd")
    if program is None:
        raise HostError(
            "Docker was installed, but there is no `dockerd` on PATH: start it by hand and repeat `make up`"
        )
    host.logs.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Warnings alone: its log has no bound while it runs.
    return host.commands.start((str(program), "--log-level=warn"), log=host.logs / LOG)


def _running(host: Host) -> Process | None:
    try:
        return find_process(int(host.places.docker_pid.read_text()), host.places.proc)
    except (OSError, ValueError):
        return None


def _await(host: Host, process: Process | None) -> str:
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        if number := _answers(host):
            return number
        if process and not process.alive(host.places.proc):
            raise HostError(f"dockerd ended at once. Its last lines ({host.logs / LOG}):\n{read_tail(host.logs / LOG)}")
        time.sleep(POLL_S)
    tail = read_tail(host.logs / LOG)
    raise HostError(f"the container engine does not answer after {ANSWER_S:g} s. Last lines of its log:\n{tail}")
