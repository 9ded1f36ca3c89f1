"""The doctor: its verdicts over facts, its looking at a host with nothing, and beside a loopd that runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loopd.app import make_directories
from loopd.backups import open_shelf
from loopd.cli.doctor import summary
from loopd.cli.doctor_facts import (
    BackupFacts,
    Clock,
    Docker,
    Facts,
    Gpu,
    Loopd,
    Machine,
    Place,
    Service,
    State,
    Unit,
    Volume,
)
from loopd.cli.doctor_look import look
from loopd.cli.doctor_rules import Finding, examine
from loopd.cli.host_commands import SystemCommands
from loopd.cli.host_ports import Holder
from loopd.cli.main import app
from loopd.config import Settings
from loopd.engine import EngineDownError
from loopd.host import Places
from loopd.images import save_images
from loopd.ledger import Ledger
from loopd.state import open_database
from loopd.units import layout_of
from running_loopd import IMAGES, running, settings_at

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DOCKER = Docker(
    version="27.1.0", cgroup="2", storage="overlay2", live_restore=True, runtimes=("runc", "nvidia"), missing_images=()
)
UNIT = Unit(installed=True, enabled=True, active=True, watchdog=True)
STATE = State(problem="", schema=2, entries=10, releases=1)
BACKUPS = BackupFacts(count=3, newest="b.tar", newest_at=NOW - timedelta(hours=20), problem="", every_s=86400)
LOOPD = Loopd(version="1", state="serving", reason="", services=(Service(name="agent", ready=True, reason=""),))
GOOD = Facts(
    machine=Machine(system="Linux", machine="x86_64", kernel="6.1", uid=0, cpus=4, memory=8 << 30),
    clock=Clock(now=NOW, synchronised=True, newest_entry=NOW - timedelta(hours=1)),
    docker=DOCKER,
    docker_trouble="",
    volumes=(
        Volume(path=Path("/h"), free=50 << 30, total=100 << 30, inodes_free=10**6, inodes_total=10**7, needed=2 << 30),
    ),
    linkable=True,
    gpu=Gpu(devices=("nvidia0",), driver="550.1"),
    ports=(Holder("control_port", 8090, "loopd (process 7)", ours=False), Holder("public_port", 8080, "x", ours=True)),
    places=(Place(path=Path("/h/control.token"), kind="file", mode=0o600, uid=0, found_mode=0o600, found_uid=0),),
    unit=UNIT,
    state=STATE,
    state_trouble="",
    backups=BACKUPS,
    loopd=LOOPD,
    loopd_trouble="",
    version="1",
    gateway=True,
)


def of(findings: tuple[Finding, ...], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_on_a_good_host_everything_is_ok_and_there_is_nothing_to_do() -> None:
    findings = examine(GOOD)
    assert {(finding.verdict, finding.advice) for finding in findings} == {("ok", "")}
    assert summary(findings) == "nothing fails, 0 warnings"


@pytest.mark.parametrize(
    ("change", "name", "verdict", "words"),
    [
        ({"machine": replace(GOOD.machine, system="Darwin")}, "host", "fail", "needs Linux"),
        ({"machine": replace(GOOD.machine, machine="riscv64")}, "host", "fail", "needs Linux"),
        ({"machine": replace(GOOD.machine, memory=1 << 30)}, "host", "fail", "least"),
        ({"machine": replace(GOOD.machine, cpus=1)}, "host", "warn", "two cores"),
        ({"machine": replace(GOOD.machine, uid=1000)}, "host", "warn", "sudo"),
        ({"clock": replace(GOOD.clock, synchronised=False)}, "clock", "warn", "chrony"),
        ({"clock": replace(GOOD.clock, synchronised=None)}, "clock", "skip", ""),
        ({"clock": replace(GOOD.clock, newest_entry=NOW + timedelta(days=2))}, "clock", "fail", "went backwards"),
        ({"docker": None, "docker_trouble": "it is down"}, "docker", "fail", "systemctl start docker"),
        ({"docker": None, "docker_trouble": "it is down"}, "images", "skip", ""),
        ({"docker": replace(DOCKER, version="19.03.1")}, "docker", "fail", "20.10"),
        ({"docker": replace(DOCKER, live_restore=False)}, "docker", "warn", "live-restore"),
        ({"docker": replace(DOCKER, storage="vfs")}, "docker", "warn", "overlay2"),
        ({"docker": replace(DOCKER, missing_images=("a:1",))}, "images", "fail", "make up"),
        ({"docker": replace(DOCKER, missing_images=None)}, "images", "fail", "make up"),
        ({"volumes": (replace(GOOD.volumes[0], free=10 << 20),)}, "disk /h", "fail", "releases gc"),
        ({"volumes": (replace(GOOD.volumes[0], free=1 << 30),)}, "disk /h", "warn", "releases gc"),
        ({"volumes": (replace(GOOD.volumes[0], inodes_free=5),)}, "disk /h", "warn", "small files"),
        ({"linkable": False}, "hard links", "warn", "one file system"),
        ({"linkable": None}, "hard links", "skip", ""),
        ({"gpu": Gpu(devices=(), driver="")}, "gpu", "skip", ""),
        ({"gpu": Gpu(devices=("nvidia0",), driver="")}, "gpu", "fail", "nvidia-smi"),
        ({"gpu": Gpu(devices=(), driver="550")}, "gpu", "fail", "nvidia-smi"),
        ({"docker": replace(DOCKER, runtimes=("runc",))}, "gpu", "warn", "container-toolkit"),
        ({"ports": (Holder("public_port", 80, "nginx (process 3)", ours=False),)}, "ports", "fail", "other ports"),
        ({"loopd": None, "loopd_trouble": "no"}, "ports", "fail", "other ports"),
        ({"docker": None, "ports": (Holder("public_port", 80, "haproxy", ours=False),)}, "ports", "warn", "Docker"),
        ({"ports": ()}, "ports", "ok", ""),
        ({"places": (replace(GOOD.places[0], found_mode=0o644),)}, "permissions", "fail", "delete control.token"),
        ({"places": (replace(GOOD.places[0], found_uid=5),)}, "permissions", "fail", "restart loopd"),
        ({"places": (replace(GOOD.places[0], found_mode=None),)}, "permissions", "fail", "restart loopd"),
        (
            {"places": (replace(GOOD.places[0], found_mode=None),), "loopd": None, "loopd_trouble": "no"},
            "permissions",
            "skip",
            "",
        ),
        ({"unit": None}, "systemd", "skip", ""),
        ({"unit": replace(UNIT, installed=False)}, "systemd", "fail", "make up"),
        ({"unit": replace(UNIT, active=False)}, "systemd", "fail", "make up"),
        ({"unit": replace(UNIT, watchdog=False)}, "systemd", "warn", "make up"),
        ({"state": replace(STATE, problem="cut off")}, "state.db", "fail", "backup restore"),
        ({"state": None, "state_trouble": "none"}, "state.db", "skip", ""),
        ({"backups": None}, "backups", "skip", ""),
        ({"backups": replace(BACKUPS, newest_at=None)}, "backups", "warn", "backup create"),
        ({"backups": replace(BACKUPS, newest_at=NOW - timedelta(days=3))}, "backups", "warn", "events"),
        ({"backups": replace(BACKUPS, newest_at=NOW - timedelta(days=3), every_s=0)}, "backups", "ok", ""),
        ({"backups": replace(BACKUPS, problem="digest")}, "backups", "fail", "backup create"),
        ({"loopd": None, "loopd_trouble": "no"}, "loopd", "fail", "make up"),
        ({"loopd": None, "loopd_trouble": "no"}, "services", "skip", ""),
        ({"version": "2"}, "loopd", "warn", "this version"),
        ({"loopd": replace(LOOPD, state="down")}, "loopd", "fail", "why gateway"),
        ({"loopd": replace(LOOPD, state="degraded")}, "loopd", "warn", "below"),
        ({"gateway": False}, "traffic", "fail", "why gateway"),
        ({"gateway": False, "loopd": replace(LOOPD, state="starting")}, "traffic", "warn", "incoming"),
        (
            {"loopd": replace(LOOPD, services=(Service(name="agent", ready=False, reason="absent"),))},
            "agent",
            "fail",
            "why agent",
        ),
    ],
)
def test_each_fault_has_its_verdict_and_says_what_to_do(
    change: dict[str, Any],  # Any: whichever facts the case is about
    name: str,
    verdict: str,
    words: str,
) -> None:
    finding = of(examine(replace(GOOD, **change)), name)
    assert finding.verdict == verdict
    assert finding.found
    assert words in finding.advice
    assert bool(finding.advice) is (verdict in ("warn", "fail"))


@dataclass
class FakeDocker:
    """A container engine with all images but one."""

    down: bool = False
    lacks: set[str] = field(default_factory=set)

    @contextlib.contextmanager
    def open(self) -> Iterator[FakeDocker]:
        if self.down:
            raise EngineDownError("the container engine does not answer")
        yield self

    def details(self) -> dict[str, Any]:  # Any: the API's JSON
        return {"ServerVersion": "27.0", "Driver": "overlay2", "LiveRestoreEnabled": True, "Runtimes": {"runc": {}}}

    def has(self, tag: str) -> bool:
        return tag not in self.lacks

    def container_ids(self) -> tuple[str, ...]:
        return ()


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="lb"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    made = settings_at(folder)
    for name in ("home", "run_dir", "public_port", "internal_port", "control_port"):
        monkeypatch.setenv(f"LOOPBOX_{name.upper()}", str(getattr(made, name)))
    return made


async def seen(settings: Settings, docker: FakeDocker) -> tuple[Finding, ...]:
    places = Places(repository=Path("/nowhere"), systemd=settings.home / "no-systemd")
    return examine(await asyncio.to_thread(look, settings, places, SystemCommands(), docker.open))


async def test_beside_a_loopd_that_runs_state_backups_ports_and_permissions_are_looked_at(settings: Settings) -> None:
    layout = layout_of(settings)
    make_directories(layout)
    save_images(settings.home, IMAGES)
    async with running(settings):
        await asyncio.to_thread(open_shelf(settings).make, "command")
        findings = await seen(settings, FakeDocker(lacks={IMAGES.agent}))
        for name in ("state.db", "backups", "ports", "permissions", "hard links", "docker"):
            assert of(findings, name).verdict == "ok", of(findings, name)
        assert of(findings, "images").found == f"not on this host: {IMAGES.agent}"
        assert of(findings, "loopd").verdict == "warn"  # no release yet
        layout.token.chmod(0o644)
        layout.blobs.chmod(0o777)
        bad = of(await seen(settings, FakeDocker()), "permissions")
        assert (bad.verdict, "control.token has mode 0644" in bad.found, "blobs has mode 0777" in bad.found) == (
            "fail",
            True,
            True,
        )
    assert list(layout.incoming.iterdir()) == list(layout.blobs.iterdir()) == []


async def test_with_loopd_and_docker_down_and_the_state_damaged_it_says_all_of_it(settings: Settings) -> None:
    layout = layout_of(settings)
    make_directories(layout)
    async with open_database(layout.state) as database:
        await Ledger(database).append("test.happened", "x", "y")
    stored, _ = await asyncio.to_thread(open_shelf(settings).make, "command")
    with contextlib.closing(sqlite3.connect(layout.state, isolation_level=None)) as connection:
        connection.execute("UPDATE ledger SET cause = 'z'")
    stored.path.write_bytes(b"gone")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.public_port))
        taken.listen()
        findings = await seen(settings, FakeDocker(down=True))
    verdicts = {finding.name: finding.verdict for finding in findings}
    for name in ("docker", "state.db", "backups", "loopd", "traffic"):
        assert verdicts[name] == "fail", name
    assert "chain" in of(findings, "state.db").found
    assert verdicts["ports"] == "warn"
    assert f"{settings.public_port} (public_port)" in of(findings, "ports").found


async def test_the_command_works_with_nothing_there_and_exits_1(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOPBOX_DOCKER_HOST", f"unix://{settings.home}/no-docker.sock")
    told = await asyncio.to_thread(CliRunner().invoke, app, ["doctor", "--json"], prog_name="loopctl")
    body = json.loads(told.stdout)
    assert (told.exit_code, body["healthy"]) == (1, False)
    assert {finding["name"]: finding["verdict"] for finding in body["findings"]}["docker"] == "fail"
    plain = await asyncio.to_thread(CliRunner().invoke, app, ["doctor"], prog_name="loopctl")
    assert plain.stdout.splitlines()[0].split() == ["CHECK", "VERDICT", "FOUND", "WHAT", "TO", "DO"]
    assert "\x1b" not in plain.stdout
    assert not settings.home.exists()
