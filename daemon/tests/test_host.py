"""The host: processes known for sure, files written whole, programs run in bounds, ports and who holds them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopd.cli.host_commands import RecordingCommands, SystemCommands
from loopd.cli.host_ports import Holder, find_holders
from loopd.host import (
    LOG_BYTES,
    HostError,
    Process,
    Started,
    end_process,
    find_process,
    find_repository,
    is_shared,
    load_started,
    read_tail,
    rotate,
    save_started,
    write_atomically,
)

PROC = Path("/proc")
DEADLINE_S = 10.0


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "300"])
    yield child
    child.kill()
    child.wait()


def deaf(tmp_path: Path) -> subprocess.Popen[str]:
    """Start a process that does not listen to SIGTERM, and wait until it does not."""
    program = "import signal, sys; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "deaf\n"
    return child


def test_a_process_is_not_taken_for_another_of_its_number(sleeper: subprocess.Popen[bytes]) -> None:
    """After a reboot, or long enough, the recorded number belongs to somebody else: `down` must not kill that."""
    found = find_process(sleeper.pid)
    assert found is not None
    assert found.alive()
    assert not found.model_copy(update={"ticks": found.ticks + 1}).alive()
    assert not found.model_copy(update={"boot": "another"}).alive()


def test_a_zombie_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    found = find_process(sleeper.pid)
    assert found is not None
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked how
    assert not found.alive()


def test_no_process_is_found_where_there_is_none() -> None:
    assert find_process(1 << 22) is None


def test_a_process_is_asked_to_end(sleeper: subprocess.Popen[bytes]) -> None:
    found = find_process(sleeper.pid)
    assert found is not None
    end_process(found, grace_s=DEADLINE_S)
    assert sleeper.wait(DEADLINE_S) == -signal.SIGTERM


def test_a_process_that_does_not_listen_is_made_to_end(tmp_path: Path) -> None:
    with deaf(tmp_path) as child:
        found = find_process(child.pid)
        assert found is not None
        end_process(found, grace_s=0.1)
        assert child.wait(DEADLINE_S) == -signal.SIGKILL


def test_a_file_is_written_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, "old", mode=0o600)
    write_atomically(path, "new", mode=0o600)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "kept").write_text("x")
    with pytest.raises(HostError, match="cannot be written"):
        write_atomically(path, "new")
    assert (path / "kept").exists()
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_started_is_read_as_it_was_written(tmp_path: Path) -> None:
    started = Started(dockerd=Process(pid=1, ticks=2, boot="b"), digest="d", base_made=True)
    save_started(tmp_path, started)
    assert load_started(tmp_path) == started


@pytest.mark.parametrize("text", ["", "{", '{"unknown": 1}', '{"loopd": {"pid": "x"}}'])
def test_a_broken_record_means_that_nothing_was_started(tmp_path: Path, text: str) -> None:
    (tmp_path / "started.json").write_text(text)
    assert load_started(tmp_path) == Started()


@given(st.lists(st.text(st.characters(codec="ascii", min_codepoint=32), max_size=30), max_size=40))
def test_a_tail_is_the_last_lines(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("logs") / "log"
    path.write_text("".join(f"{line}\n" for line in lines))
    assert read_tail(path, 5) == "\n".join(lines[-5:])


def test_the_tail_of_no_log_is_empty(tmp_path: Path) -> None:
    assert read_tail(tmp_path / "none") == ""


def test_a_long_log_is_put_aside_once(tmp_path: Path) -> None:
    """Two files bound what a host loses to a log, however often loopd is started."""
    log = tmp_path / "log"
    rotate(log)
    log.write_text("short")
    rotate(log)
    assert log.exists()
    for _ in range(2):
        os.truncate(log, LOG_BYTES + 1) if log.exists() else log.write_bytes(b"x" * (LOG_BYTES + 1))
        rotate(log)
    assert [p.name for p in tmp_path.iterdir()] == ["log.1"]


@pytest.mark.parametrize("path", ["/", "/root", "/home", "/home/ann", "/var/lib", "/tmp", "/repo", "/var/../etc"])
def test_what_is_shared_can_be_no_home(path: str) -> None:
    """`purge` removes home: of these, a mistake in a setting would lose the machine."""
    assert is_shared(Path(path), Path("/repo/loopbox"))


@pytest.mark.parametrize("path", ["/var/lib/loopbox", "/home/ann/loopbox", "/repo/loopbox/.tools/home", "/tmp/x"])
def test_a_directory_of_ones_own_can_be_home(path: str) -> None:
    assert not is_shared(Path(path), Path("/repo/loopbox"))


def test_the_checkout_is_found() -> None:
    assert (find_repository() / "images").is_dir()


def test_a_program_is_run_and_its_lines_are_told() -> None:
    told: list[str] = []
    outcome = SystemCommands().run(
        ["sh", "-c", 'echo one; echo "$WORD" >&2; exit 3'], timeout_s=DEADLINE_S, say=told.append, env={"WORD": "two"}
    )
    assert (outcome.code, outcome.tail, told, outcome.good) == (3, "one\ntwo", ["one", "two"], False)


def test_a_program_gets_no_input() -> None:
    """apt-get or pip that asks would wait for ever where no person is."""
    assert SystemCommands().run(["cat"], timeout_s=DEADLINE_S).good


def test_a_program_that_takes_too_long_is_stopped_with_its_children() -> None:
    began = time.monotonic()
    outcome = SystemCommands().run(["sh", "-c", "sleep 300 & sleep 300"], timeout_s=0.2)
    assert time.monotonic() - began < DEADLINE_S
    assert "did not end within 0.2 s" in outcome.tail
    assert not outcome.good


def test_output_is_bounded() -> None:
    outcome = SystemCommands().run(["seq", "-f", "%01000g", "100"], timeout_s=DEADLINE_S)
    assert len(outcome.tail) < 20 * 301


def test_a_program_that_is_not_there_is_told_as_such() -> None:
    commands = SystemCommands()
    assert commands.find("no-such-program") is None
    assert commands.find("sh") is not None
    assert commands.run(["/no/such/program"], timeout_s=1).code == 127


def test_a_started_program_has_a_session_its_log_and_nothing_else_of_ours(tmp_path: Path) -> None:
    """An inherited handle keeps a lock or a port, or a pipe whose reader then waits for ever."""
    log = tmp_path / "log"
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        program = "import signal; print('started', flush=True); signal.pause()"
        process = SystemCommands().start([sys.executable, "-c", program], log=log)
        deadline = time.monotonic() + DEADLINE_S
        while log.read_text() != "started\n":
            assert time.monotonic() < deadline, log.read_text()
        handles = {str(h.readlink()) for h in (PROC / str(process.pid) / "fd").iterdir()}
        assert handles == {"/dev/null", str(log)}
        assert os.getsid(process.pid) == process.pid
        assert (PROC / str(process.pid) / "cwd").readlink() == Path("/")
        end_process(process, grace_s=DEADLINE_S)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_program_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot be started"):
        SystemCommands().start(["/no/such/program"], log=tmp_path / "log")


def test_the_stand_in_keeps_what_was_asked(tmp_path: Path) -> None:
    commands = RecordingCommands(programs={"dockerd"})
    assert commands.find("dockerd") is not None
    assert commands.find("apt-get") is None
    commands.run(["/usr/bin/a", "b"], timeout_s=1)
    commands.start(["c"], log=tmp_path)
    assert commands.asked == ["a b", "c"]


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, ""), (socket.AF_INET6, "::1")]
)
def test_the_holder_of_a_port_is_named(family: int, address: str) -> None:
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        port = listener.getsockname()[1]
        assert find_holders({"public_port": port}, (), (), PROC) == ()  # bound is not yet listening
        listener.listen()
        name = f"{(PROC / 'self/comm').read_text().strip()} (process {os.getpid()})"
        assert find_holders({"public_port": port}, (), (), PROC) == (Holder("public_port", port, name, ours=False),)
        assert find_holders({"public_port": port}, (os.getpid(),), (), PROC)[0].ours


def test_a_port_held_in_one_of_our_containers_is_ours(tmp_path: Path) -> None:
    """The second `up` finds the gateway on its port and must not refuse itself."""
    proc = tmp_path
    (proc / "net").mkdir()
    # 127.0.0.1:8080 and, of another address that hinders nobody, 10.0.0.1:8081
    (proc / "net/tcp").write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 777 1\n"
        "   1: 0100000A:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 778 1\n"
    )
    (proc / "42/fd").mkdir(parents=True)
    (proc / "42/fd/3").symlink_to("socket:[777]")
    (proc / "42/comm").write_text("haproxy\n")
    (proc / "42/cgroup").write_text("0::/system.slice/docker-abc.scope\n")
    ports = {"public_port": 8080, "internal_port": 8081}
    assert find_holders(ports, (), ("abc",), proc) == (Holder("public_port", 8080, "haproxy (process 42)", ours=True),)
    assert not find_holders(ports, (), ("def",), proc)[0].ours
    (proc / "42/fd/3").unlink()
    assert find_holders(ports, (), ("abc",), proc)[0].name == "a process that cannot be seen"
