"""Commands under their limits, on this host. No test may leave a process."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from loopbox_toolrunner.launcher import Launcher
from loopbox_toolrunner.processes import Process, memory_of
from loopbox_toolrunner.runner import Outcome, RefusedError, Runner
from loopbox_toolrunner.settings import Settings

MIB = 1 << 20


def processes_in(directory: Path) -> list[str]:
    """Return the command lines of processes whose working directory this is."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cwd").readlink() == directory:
                state = (entry / "stat").read_bytes().rsplit(b")", 1)[1].split()[0]
                if state != b"Z":
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


@dataclass
class Box:
    """A runner with its workspace."""

    settings: Settings
    runner: Runner
    launcher: Launcher
    spoilt: list[str] = field(default_factory=list)

    async def bash(self, command: str, timeout_s: float = 20) -> Outcome:
        return await self.runner.run(["bash", "-c", command], timeout_s)

    async def python(self, code: str, timeout_s: float = 20) -> Outcome:
        return await self.runner.run(["python3", "-c", code], timeout_s)

    def processes(self) -> list[str]:
        return processes_in(self.settings.workspace)


MakeBox = Callable[..., Awaitable[Box]]


@pytest.fixture
async def make_box(workspace: Path) -> AsyncIterator[MakeBox]:
    boxes: list[Box] = []

    async def make(**changes: object) -> Box:
        # Small, so that a test which fails does not take this machine along.
        given = {"workspace": workspace, "memory_bytes": 128 * MIB, "tasks": 40, "grace_s": 0.3} | changes
        settings = Settings.model_validate(given)
        launcher = Launcher()
        spoilt: list[str] = []
        box = Box(settings, Runner(settings, launcher, spoilt.append), launcher, spoilt)
        boxes.append(box)
        return box

    yield make
    for box in boxes:
        await box.runner.close()
        assert box.processes() == []


@pytest.fixture
async def box(make_box: MakeBox) -> Box:
    return await make_box()


# Forks twice and leaves the session twice, so that neither a process group nor a session finds it.
ORPHAN = """
import os, time, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open("orphan", "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
while not os.path.exists("orphan"): time.sleep(0.01)
"""

# Each generation forks the next one in a session of its own and ends: a moving target.
CHAIN = """
import os
if os.fork() == 0:
    while True:
        os.setsid()
        if os.fork(): os._exit(0)
open("started", "w")
"""

BOMB_OF_FORKS = "f() { f | f & }; f; sleep 20"
BOMB_OF_MEMORY = "x = []\nwhile True: x.append(bytearray(1 << 20))"
BOMB_OF_MEMORY_JS = "const x = []; while (true) x.push(new Array(1e5).fill(Math.random()))"


async def until(happened: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and int((entry / "stat").read_bytes().rsplit(b")", 1)[1].split()[1]) == pid:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


async def test_a_command_gives_its_output_and_exit_code(box: Box) -> None:
    done = await box.bash("echo out; echo err >&2; exit 3")
    assert (done.exit_code, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert not done.timed_out
    assert not done.truncated


async def test_a_command_sees_a_clean_environment_and_no_input(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets of the server's environment once reached commands."""
    monkeypatch.setenv("LOOPBOX_SECRET", "hidden")
    done = await box.bash("env; cat; ls -l /proc/self/fd | wc -l; pwd")
    assert "hidden" not in done.stdout
    names = {line.split("=")[0] for line in done.stdout.splitlines() if "=" in line}
    assert names == {"HOME", "LANG", "PATH", "PYTHONUNBUFFERED", "PWD", "SHLVL", "_"}
    assert f"HOME={box.settings.workspace}" in done.stdout
    # 0, 1, 2, the directory itself, and ls's line of a total: nothing of the server's is open.
    assert done.stdout.splitlines()[-2:] == ["5", str(box.settings.workspace)]


async def test_signals_are_as_a_shell_has_them(box: Box) -> None:
    """Python ignores SIGPIPE, and programs inherit that: `yes | head` would complain for ever."""
    done = await box.bash("yes | head -1; grep -E 'Sig(Ign|Blk)' /proc/self/status")
    assert done.exit_code == 0
    libc = 0b11 << 31  # signals 32 and 33 are the C library's own and cannot be set
    assert [int(line.split()[1], 16) & ~libc for line in done.stdout.splitlines()[1:]] == [0, 0]


async def test_a_program_that_is_not_there_is_an_outcome(box: Box) -> None:
    done = await box.runner.run(["no-such-program"], 5)
    assert done.exit_code == 126
    assert "no-such-program could not be started" in done.stderr


async def test_time_is_limited_and_what_was_printed_is_kept(box: Box) -> None:
    done = await box.python("import time; print('before'); time.sleep(60)", timeout_s=0.5)
    assert (done.exit_code, done.timed_out, done.stdout) == (124, True, "before\n")
    assert "not done after 0.5 s" in done.stderr
    assert 500 <= done.duration_ms < 5000


async def test_a_command_may_clean_up_when_its_time_is_over(make_box: MakeBox) -> None:
    """SIGKILL alone would leave half-written files."""
    box = await make_box(grace_s=5)
    done = await box.bash("trap 'echo bye; exit 0' TERM; sleep 60 & wait", timeout_s=0.5)
    assert done.stdout == "bye\n"
    assert done.timed_out


async def test_a_command_that_ignores_sigterm_is_killed(box: Box) -> None:
    done = await box.bash("trap '' TERM; while true; do sleep 60; done", timeout_s=0.3)
    assert done.timed_out
    assert done.duration_ms < 5000
    assert box.processes() == []


async def test_background_processes_end_with_the_call(box: Box) -> None:
    done = await box.bash("sleep 600 & disown; nohup sleep 600 >/dev/null 2>&1 & setsid sleep 600 & echo started")
    assert done.stdout == "started\n"
    assert box.processes() == []


async def test_a_daemon_in_a_session_of_its_own_ends_with_the_call(box: Box) -> None:
    """A double fork with setsid escapes both process group and session."""
    done = await box.python(ORPHAN)
    assert done.exit_code == 0
    assert box.processes() == []


async def test_a_chain_of_forks_cannot_outrun_the_sweep(box: Box) -> None:
    """A process that is always a new one is not there any more when its number is read."""
    done = await box.python(CHAIN)
    assert done.exit_code == 0
    assert (box.settings.workspace / "started").exists()
    assert box.processes() == []
    assert box.spoilt == []


async def test_a_fork_bomb_is_ended(box: Box) -> None:
    done = await box.bash(BOMB_OF_FORKS, timeout_s=20)
    assert done.exit_code != 0
    assert "processes and threads, the limit is 40" in done.stderr
    assert box.processes() == []


async def test_a_memory_bomb_is_ended(box: Box) -> None:
    done = await box.python(BOMB_OF_MEMORY)
    assert done.exit_code == 137
    assert "the limit is 128 MiB" in done.stderr


async def test_one_huge_allocation_is_refused_to_the_program_itself(box: Box) -> None:
    """A MemoryError tells a model more than a kill."""
    done = await box.python("bytearray(10**10)")
    assert done.exit_code == 1
    assert "MemoryError" in done.stderr


async def test_memory_of_many_processes_counts_together(box: Box) -> None:
    done = await box.bash(f"for i in 1 2 3; do python3 -c 'x = b\"x\" * {60 * MIB}; input()' < <(sleep 9) & done; wait")
    assert done.exit_code == 137
    assert "of memory" in done.stderr


async def test_memory_shared_after_a_fork_counts_once(box: Box) -> None:
    """A worker pool on a big array is no bomb."""
    code = (
        f"import os, time\nx = b'x' * {70 * MIB}\n"
        "pids = [os.fork() for _ in range(1)]\nif not all(pids): time.sleep(0.5); os._exit(0)\n"
        "[os.waitpid(p, 0) for p in pids]; print('fine')"
    )
    assert (await box.python(code)).stdout == "fine\n"


def test_what_a_process_held_when_listed_counts_no_more_once_it_has_ended() -> None:
    """Its forked parent has the same pages, and together they would be over the limit."""
    child = subprocess.Popen(["sleep", "60"])
    listed = {child.pid: Process(os.getpid(), 1, 100 * MIB, dead=False)}
    assert 0 < memory_of(listed, listed, MIB) < 100 * MIB
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert memory_of(listed, listed, MIB) == 0, "a zombie"
    child.wait()
    assert memory_of(listed, listed, MIB) == 0, "nothing is left"


@pytest.mark.skipif(shutil.which("node") is None, reason="this host has no node; the image's test has")
async def test_node_runs_and_its_memory_bomb_is_ended(make_box: MakeBox) -> None:
    """A limit on address space would break it, since it reserves gigabytes."""
    box = await make_box(search_path=os.environ["PATH"])
    assert (await box.runner.run(["node", "-e", "console.log(6 * 7)"], 20)).stdout == "42\n"
    assert (await box.runner.run(["node", "-e", BOMB_OF_MEMORY_JS], 30)).exit_code != 0


async def test_processor_time_is_limited(make_box: MakeBox) -> None:
    box = await make_box(cpu_s=1)
    done = await box.runner.run(["python3", "-c", "while True: pass"], 20)
    assert done.exit_code == 128 + signal.SIGXCPU
    assert "1 s of processor time" in done.stderr


async def test_file_size_and_open_files_are_limited(make_box: MakeBox) -> None:
    box = await make_box(file_bytes=MIB, open_files=16)
    done = await box.runner.run(["dd", "if=/dev/zero", "of=big", "bs=1M", "count=3"], 20)
    assert done.exit_code == 128 + signal.SIGXFSZ
    assert "beyond 1 MiB" in done.stderr
    assert (box.settings.workspace / "big").stat().st_size == MIB
    done = await box.python("x = [open('/dev/null') for _ in range(20)]")
    assert "Too many open files" in done.stderr


async def test_an_output_bomb_keeps_both_ends(make_box: MakeBox) -> None:
    box = await make_box(output_bytes=1024)
    done = await box.bash("echo first; head -c 300000000 /dev/zero | tr '\\0' x; echo; echo last; echo small >&2")
    assert done.exit_code == 0
    assert done.truncated
    assert done.stdout.startswith("first\n")
    assert done.stdout.endswith("\nlast\n")
    assert len(done.stdout) < 1200
    assert done.stderr == "small\n"


async def test_a_long_output_is_kept_whole_as_a_file(make_box: MakeBox) -> None:
    """What the middle said is gone otherwise, and only another run tells it."""
    box = await make_box(output_bytes=1024, kept_output_bytes=MIB)
    command = "seq 1 20000; seq 1 3000 >&2"
    done = await box.runner.run(["bash", "-c", command], 20, keep=True)
    assert done.output_file is not None
    assert done.error_file is not None
    whole = "".join(f"{n}\n" for n in range(1, 20001))
    assert (box.settings.workspace / done.output_file).read_text(encoding="ascii") == whole
    assert done.stdout_bytes == len(whole)
    assert (box.settings.workspace / done.error_file).stat().st_size == done.stderr_bytes
    assert f"bytes left out; {done.output_file} holds all …]" in done.stdout
    big = await box.runner.run(["bash", "-c", "head -c 3000000 /dev/zero"], 20, keep=True)
    assert big.output_file is not None
    assert (box.settings.workspace / big.output_file).stat().st_size == MIB
    assert f"holds the first {MIB} …]" in big.stdout
    short = await box.runner.run(["bash", "-c", "echo short"], 20, keep=True)
    assert (short.output_file, short.stdout_bytes) == (None, None)


async def test_a_full_workspace_ends_the_keeping_and_not_the_call(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await make_box(output_bytes=1024)
    real = os.write

    def write(handle: int, raw: bytes) -> int:
        if b"xxxx" in raw:
            raise OSError(28, "No space left on device")
        return real(handle, raw)

    monkeypatch.setattr(os, "write", write)
    done = await box.runner.run(["bash", "-c", "head -c 5000 /dev/zero | tr '\\0' x"], 20, keep=True)
    assert (done.exit_code, done.stdout_bytes) == (0, 5000)
    assert "holds the first 0" in done.stdout


async def test_a_command_is_fed_by_the_handle_it_was_given(box: Box) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        call = asyncio.create_task(
            box.runner.run(["bash", "-c", "read x; echo got $x; cat"], 20, stdin=theirs.detach())
        )
        ours.sendall(b"one\ntwo\n")
        ours.shutdown(socket.SHUT_WR)
        assert (await call).stdout == "got one\ntwo\n"
        assert ours.recv(1) == b""  # no copy of the other end is left open


async def test_what_runs_beside_takes_no_place_and_ends_when_cancelled(make_box: MakeBox) -> None:
    box = await make_box(concurrent_calls=1)
    ours, theirs = socket.socketpair()
    with ours:
        limits = box.runner.limits(60)
        beside = asyncio.create_task(
            box.runner.run_beside(
                ["python3", "-c", ORPHAN + "time.sleep(60)"],
                limits,
                stdin=theirs.detach(),
                stop=(stop := asyncio.Event()),
            )
        )
        await until((box.settings.workspace / "orphan").exists)
        assert (await box.bash("echo free")).stdout == "free\n"
        stop.set()
        assert (await beside).exit_code == 137
        assert box.processes() == []


async def test_a_cancelled_call_is_killed_and_gives_its_place_back(make_box: MakeBox) -> None:
    """A cancel that only stops waiting leaves the command running."""
    box = await make_box(concurrent_calls=1)
    call = asyncio.create_task(box.python(ORPHAN + "time.sleep(600)"))
    await until((box.settings.workspace / "orphan").exists)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await box.bash("echo free")).stdout == "free\n"
    assert box.processes() == []


async def test_calls_run_at_once_up_to_a_number_and_then_are_refused(make_box: MakeBox) -> None:
    box = await make_box(concurrent_calls=2, waiting_calls=1)
    flag = "touch started$$; while [ ! -e go ]; do sleep 0.05; done; ls started* | wc -l"
    calls = [asyncio.create_task(box.bash(flag)) for _ in range(2)]
    await until(lambda: len(list(box.settings.workspace.glob("started*"))) == 2)
    waiting = asyncio.create_task(box.bash("echo waited"))
    await asyncio.sleep(0)
    with pytest.raises(RefusedError, match="try again"):
        await box.bash("true")
    (box.settings.workspace / "go").touch()
    assert [(await call).stdout for call in calls] == ["2\n", "2\n"]
    assert (await waiting).stdout == "waited\n"


async def test_ending_one_call_leaves_the_others_alone(box: Box) -> None:
    """Orphans of two calls must not be taken for each other's."""
    long = asyncio.create_task(
        box.bash("(setsid sleep 1.5; echo orphan; touch over) & while [ ! -e over ]; do sleep 0.05; done")
    )
    for _ in range(5):
        await box.python(ORPHAN)
        (box.settings.workspace / "orphan").unlink()
    assert (await long).stdout == "orphan\n"


async def test_a_command_that_kills_its_keeper_is_still_cleaned_up(box: Box) -> None:
    """Commands run under the server's user, so they can send it signals."""
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\nelse:\n    os.kill(os.getppid(), 9)\ntime.sleep(600)"
    done = await box.python(code)
    assert done.exit_code == 137
    assert "what watched over the call was killed" in done.stderr
    await until(lambda: box.processes() == [])
    assert (await box.bash("echo still here")).stdout == "still here\n"
    assert box.spoilt == []


async def test_killing_the_zygote_spoils_the_sandbox(box: Box) -> None:
    """Nothing could be cleaned up after that, so the server must end and the container with it."""
    os.kill(box.launcher.pid, signal.SIGKILL)
    await until(lambda: bool(box.spoilt))
    with pytest.raises(RefusedError, match="take a new one"):
        await box.bash("true")


async def test_a_stopped_keeper_does_not_hold_a_call_for_ever(make_box: MakeBox) -> None:
    """SIGSTOP on the watcher would switch every limit off."""
    box = await make_box(stuck_s=0.5)
    done = await box.bash("kill -STOP $PPID; sleep 600", timeout_s=0.5)
    assert done.exit_code == 137
    assert box.spoilt
    for keeper in children_of(box.launcher.pid):  # as the end of the container would
        os.kill(keeper, signal.SIGKILL)
    await until(lambda: box.processes() == [])


async def test_a_closed_runner_leaves_nothing(workspace: Path) -> None:
    settings = Settings.model_validate({"workspace": workspace, "grace_s": 0.2})
    launcher = Launcher()
    runner = Runner(settings, launcher, lambda _why: None)
    call = asyncio.create_task(runner.run(["bash", "-c", "trap '' TERM; touch started; sleep 600"], 60))
    await until((workspace / "started").exists)
    await runner.close()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert processes_in(workspace) == []
    assert not Path(f"/proc/{launcher.pid}").exists()
