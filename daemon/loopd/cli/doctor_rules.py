"""doctor_rules: owns what the doctor makes of the facts: a verdict, what was found, what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from loopd.cli.doctor_facts import Facts, Place, Volume
from loopd.cli.host_checks import MACHINES, MEMORY_BYTES
from loopd.cli.words import ago, count, size

Verdict = Literal["ok", "warn", "fail", "skip"]

INODES = 10_000  # an engine's directory and a sandbox's take some each
LOW = 0.05  # of a disk: soon full
OLDEST_DOCKER = 20  # 20.10: what the limits and networks used here were tried on
BACKWARDS = timedelta(seconds=5)
LATE = 2.0  # backups overdue by this much of their interval


@dataclass(frozen=True, slots=True)
class Finding:
    """One check."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""  #: what to do; '' when there is nothing to


def examine(facts: Facts) -> tuple[Finding, ...]:
    """Return every finding; none is left out, so that what was skipped is seen, too."""
    return (
        host(facts),
        clock(facts),
        docker(facts),
        images(facts),
        *(disk(volume) for volume in facts.volumes),
        links(facts),
        gpu(facts),
        ports(facts),
        permissions(facts),
        unit(facts),
        state(facts),
        backups(facts),
        loopd(facts),
        gateway(facts),
        *services(facts),
    )


def host(facts: Facts) -> Finding:
    """Judge the machine."""
    it = facts.machine
    cores = "core" if it.cpus == 1 else "cores"
    found = f"{it.system} {it.kernel} on {it.machine}, {it.cpus} {cores}, {size(it.memory)} memory"
    if it.system != "Linux" or it.machine not in MACHINES:
        return Finding("host", "fail", found, f"the appliance needs Linux on {' or '.join(MACHINES)}")
    if it.memory < MEMORY_BYTES:
        return Finding("host", "fail", found, f"{size(MEMORY_BYTES)} memory is the least that serves a model")
    if it.cpus < 2:  # noqa: PLR2004 champion and candidate
        return Finding("host", "warn", found, "two engines run during a rollout: give the host two cores")
    if it.uid != 0:
        return Finding("host", "warn", f"{found}; not seen by root", "run `sudo loopctl doctor`: some is hidden")
    return Finding("host", "ok", found)


def clock(facts: Facts) -> Finding:
    """Judge the time: leases, back-off and backups go by it."""
    it = facts.clock
    if it.newest_entry is not None and it.newest_entry - it.now > BACKWARDS:
        behind = ago(it.now, it.newest_entry).removesuffix(" ago")
        return Finding(
            "clock",
            "fail",
            f"it is {behind} behind the ledger's newest entry",
            "set the clock (`timedatectl`, `chronyc makestep`): it went backwards, or runs wrong since a boot",
        )
    found = f"{it.now:%Y-%m-%d %H:%M:%SZ}"
    if it.synchronised is None:
        return Finding("clock", "skip", f"{found}; the kernel does not say whether it is synchronised")
    if not it.synchronised:
        return Finding("clock", "warn", f"{found}, not synchronised", "run chrony or systemd-timesyncd where it may")
    return Finding("clock", "ok", f"{found}, synchronised")


def docker(facts: Facts) -> Finding:
    """Judge the container engine."""
    it = facts.docker
    if it is None:
        return Finding(
            "docker", "fail", facts.docker_trouble, "start it (`systemctl start docker`, or `make up`); look at its log"
        )
    found = f"{it.version}, cgroup v{it.cgroup}, {it.storage}, live-restore {'on' if it.live_restore else 'off'}"
    major = it.version.split(".")[0]
    if major.isdigit() and int(major) < OLDEST_DOCKER:
        return Finding("docker", "fail", found, "install Docker 20.10 or newer")
    if it.storage == "vfs":
        return Finding("docker", "warn", found, "vfs copies whole images for each container: use overlay2")
    if not it.live_restore:
        return Finding(
            "docker",
            "warn",
            found,
            'set "live-restore": true in daemon.json: without it an upgrade of Docker stops what serves',
        )
    return Finding("docker", "ok", found)


def images(facts: Facts) -> Finding:
    """Judge whether what loopd would start is there."""
    if facts.docker is None:
        return Finding("images", "skip", "Docker does not answer")
    missing = facts.docker.missing_images
    if missing is None:
        return Finding("images", "fail", "there is no images.json, so none are known", "run `make up`")
    if missing:
        return Finding("images", "fail", f"not on this host: {', '.join(missing)}", "run `make up`, which builds them")
    return Finding("images", "ok", "all on this host")


def disk(volume: Volume) -> Finding:
    """Judge one file system."""
    name = f"disk {volume.path}"
    found = f"{size(volume.free)} of {size(volume.total)} free"
    advice = "free some: `loopctl releases gc`, old logs, `docker system df`"
    if volume.free < volume.needed // 16:
        return Finding(name, "fail", found, advice)
    if volume.inodes_total and volume.inodes_free < INODES:
        return Finding(
            name, "warn", f"{volume.inodes_free} inodes free", "remove small files, or make a new file system"
        )
    if volume.free < volume.needed or volume.free < volume.total * LOW:
        return Finding(name, "warn", found, advice)
    return Finding(name, "ok", found)


def links(facts: Facts) -> Finding:
    """Judge whether weights are kept once."""
    if facts.linkable is None:
        return Finding("hard links", "skip", "models/ is not there, or not for this user to write")
    if not facts.linkable:
        return Finding(
            "hard links",
            "warn",
            "no hard link from models/incoming to models/blobs",
            "put models/ on one file system that has them: otherwise each model is copied, which takes room and time",
        )
    return Finding("hard links", "ok", "models/incoming and models/blobs share a file system")


def gpu(facts: Facts) -> Finding:
    """Judge the GPU."""
    it = facts.gpu
    if not it.devices and not it.driver:
        return Finding("gpu", "skip", "no GPU: engines run on the CPU")
    found = f"{count(len(it.devices), 'device', 'devices')}, driver {it.driver or 'not loaded'}"
    if not it.driver or not it.devices:
        return Finding(
            "gpu", "fail", found, "load NVIDIA's driver (`nvidia-smi` says why it is not), then restart Docker"
        )
    if facts.docker is not None and "nvidia" not in facts.docker.runtimes:
        return Finding(
            "gpu", "warn", f"{found}; Docker has no nvidia runtime", "install nvidia-container-toolkit, restart Docker"
        )
    return Finding("gpu", "ok", found)


def ports(facts: Facts) -> Finding:
    """Judge who listens where loopd and the gateway want to."""
    foreign = [
        holder
        for holder in facts.ports
        if not holder.ours and not (holder.setting == "control_port" and facts.loopd is not None)
    ]
    if not foreign:
        taken = [holder.port for holder in facts.ports]
        return Finding("ports", "ok", f"ours: {', '.join(map(str, taken))}" if taken else "free")
    found = "; ".join(f"{holder.port} ({holder.setting}) is held by {holder.name}" for holder in foreign)
    if facts.docker is None:
        return Finding("ports", "warn", f"{found}; whose it is, Docker does not tell", "start Docker, then look again")
    return Finding("ports", "fail", found, "stop it, or choose other ports in the settings")


def permissions(facts: Facts) -> Finding:
    """Judge directories, sockets and the token."""
    faults = [fault for place in facts.places for fault in _place_faults(place, facts)]
    there = [place for place in facts.places if place.found_mode is not None]
    if not faults and not there:
        return Finding("permissions", "skip", "nothing is there yet")
    if not faults:
        return Finding("permissions", "ok", count(len(there), "place", "places") + " as they should be")
    # loopd sets modes and owners when it starts; a token that others read must be changed besides.
    open_token = any(fault.startswith("control.token") and "mode" in fault for fault in faults)
    more = "; then delete control.token and restart loopd: others could read it" if open_token else ""
    return Finding("permissions", "fail", "; ".join(faults), f"restart loopd, which sets them{more}")


def _place_faults(place: Place, facts: Facts) -> Iterator[str]:
    name = place.path.name
    if place.found_mode is None:
        # Sockets, and what lies beside them, are there only while loopd runs.
        if facts.loopd is not None:
            yield f"{place.path} is not there, or no {place.kind}"
        return
    if place.found_mode != place.mode:
        yield f"{name} has mode {place.found_mode:04o}, not {place.mode:04o}"
    if facts.machine.uid == 0 and place.found_uid != place.uid:
        yield f"{name} is owned by {place.found_uid}, not {place.uid}"


def unit(facts: Facts) -> Finding:
    """Judge what starts loopd again after a crash or a boot."""
    it = facts.unit
    if it is None:
        return Finding("systemd", "skip", "systemd does not run here: nothing starts loopd again but `make up`")
    if not it.installed:
        return Finding("systemd", "fail", "loopd's unit is not installed", "run `make up`")
    faults = [
        fault
        for good, fault in (
            (it.enabled, "not started at boot"),
            (it.active, "not running"),
            (it.watchdog, "without a watchdog"),
        )
        if not good
    ]
    if faults:
        verdict: Verdict = "fail" if not it.active else "warn"
        return Finding(
            "systemd", verdict, f"loopd's unit is {', '.join(faults)}", "run `make up`, which mends the unit"
        )
    return Finding("systemd", "ok", "installed, enabled, running, watched")


def state(facts: Facts) -> Finding:
    """Judge state.db."""
    it = facts.state
    if it is None:
        return Finding("state.db", "skip", facts.state_trouble)
    if it.problem:
        return Finding(
            "state.db",
            "fail",
            it.problem,
            "stop loopd, `loopctl backup verify`, `loopctl backup restore`: what serves goes on serving meanwhile",
        )
    told = f"schema {it.schema}, {count(it.entries, 'ledger entry', 'ledger entries')} in an unbroken chain"
    return Finding("state.db", "ok", f"{told}, {count(it.releases, 'release', 'releases')}")


def backups(facts: Facts) -> Finding:
    """Judge whether a lost state could be put back."""
    it = facts.backups
    if it is None:
        return Finding("backups", "skip", "not for this user to see")
    if it.newest_at is None:
        return Finding("backups", "warn", "none", "`loopctl backup create`, and copy it to another host")
    found = f"{it.count}, the newest {ago(it.newest_at, facts.clock.now)}"
    if it.problem:
        return Finding("backups", "fail", f"{it.newest}: {it.problem}", "`loopctl backup create` makes a good one")
    if it.every_s and facts.clock.now - it.newest_at > timedelta(seconds=LATE * it.every_s):
        return Finding("backups", "warn", f"{found}: overdue", "`loopctl events` says why none was made since")
    return Finding("backups", "ok", f"{found}, good")


def loopd(facts: Facts) -> Finding:
    """Judge the daemon."""
    it = facts.loopd
    if it is None:
        return Finding("loopd", "fail", facts.loopd_trouble, "`make up`; its log, or `journalctl -u loopd`, says why")
    found = f"{it.version}, {it.state}{f': {it.reason}' if it.reason else ''}"
    if it.version != facts.version:
        return Finding("loopd", "warn", f"{found}; loopctl is {facts.version}", "`make up` restarts it on this version")
    if it.state == "down":
        return Finding("loopd", "fail", found, "`loopctl why gateway`, `loopctl events`")
    if it.state != "serving":
        return Finding("loopd", "warn", found, "see what is below")
    return Finding("loopd", "ok", found)


def gateway(facts: Facts) -> Finding:
    """Judge whether users are answered; needs no loopd."""
    if facts.gateway:
        return Finding("traffic", "ok", "the gateway says that requests are answered")
    if facts.loopd is not None and facts.loopd.state == "starting":
        return Finding("traffic", "warn", "no release serves yet", "drop a GGUF file into models/incoming")
    return Finding("traffic", "fail", "the gateway does not say that requests are answered", "`loopctl why gateway`")


def services(facts: Facts) -> Iterator[Finding]:
    """Judge gateway, agent and engine."""
    if facts.loopd is None:
        yield Finding("services", "skip", "loopd does not answer")
        return
    for service in facts.loopd.services:
        if service.ready:
            yield Finding(service.name, "ok", "ready")
        else:
            yield Finding(service.name, "fail", service.reason, f"`loopctl why {service.name}`")
