"""The disposable process: what it says, and that nothing it does reaches loopd."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from loopd.gguf import GgufError, inspect
from loopd.inspection import check, parse_answer
from tiny_gguf import make_tiny_gguf

MIB = 1 << 20


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny_gguf(tmp_path / "tiny.gguf")


async def refused(path: Path, boot: str | None = None, **bounds: float) -> GgufError:
    with pytest.raises(GgufError) as caught:
        if boot is None:
            await check(path, timeout_s=bounds.get("timeout_s", 10.0))
        else:
            await check(path, timeout_s=bounds.get("timeout_s", 10.0), boot=boot)
    return caught.value


async def test_the_process_says_what_the_parser_says(tiny: Path) -> None:
    """Guards every field on its way through JSON."""
    assert await check(tiny) == inspect(tiny)


async def test_a_name_that_is_not_ascii_or_utf8_is_read(tmp_path: Path) -> None:
    """The process has no locale; file names are bytes."""
    for name in (b"mod\xc3\xa8le \xe2\x9c\x93.gguf", b"latin-\xe8.gguf", b"-x.gguf"):
        path = make_tiny_gguf(tmp_path / os.fsdecode(name))
        assert (await check(path)).architecture == "llama"


async def test_a_defect_keeps_its_code_and_sizes(tiny: Path) -> None:
    """The watcher waits on "truncated" and shows how much is missing."""
    os.truncate(tiny, 400_000)
    error = await refused(tiny)
    assert (error.code, error.actual_bytes, error.expected_bytes) == ("truncated", 400_000, 467_520)


async def test_a_process_that_hangs_is_killed_at_its_time(tiny: Path) -> None:
    """Guards against a file that holds the watcher for ever."""
    start = time.monotonic()
    error = await refused(tiny, "import time; time.sleep(600)", timeout_s=0.5)
    assert error.code == "inspection_timeout"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "boot",
    [
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "import os; os._exit(3)",
        "import os; os._exit(0)",
        "import os; os._exit(65)",
        "print('{}')",
        "print('{\"error\": 1}'); raise SystemExit(65)",
        "print('x' * 10_000_000)",
        "while True: print('x' * 65536)",
        "raise RuntimeError",
    ],
)
async def test_a_process_that_crashes_or_babbles_is_a_refusal(tiny: Path, boot: str) -> None:
    """Guards loopd from everything but a Summary."""
    assert (await refused(tiny, boot)).code == "inspection_crashed"


async def test_the_process_is_bounded_and_bare(tiny: Path, tmp_path: Path) -> None:
    """Guards the limits: memory, open files, no writing, no environment, own session, no inherited descriptor."""
    from loopd.inspection import _BOOT  # noqa: PLC0415 - the real start, with a look around before the parser runs

    probe = """
import os
assert dict(os.environ).keys() <= {"LC_CTYPE"}, os.environ
assert os.getsid(0) == os.getpid()
assert set(os.listdir("/proc/self/fd")) <= {"0", "1", "2", "3"}, os.listdir("/proc/self/fd")
try:
    bytearray(400 << 20)
except MemoryError:
    pass
else:
    raise SystemExit(4)
try:
    fd = os.open(path + ".made", os.O_CREAT | os.O_WRONLY)
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    os.write(fd, b"x")
except OSError:
    pass
else:
    raise SystemExit(5)
"""
    boot = _BOOT.replace("sys.path.append", probe + "\nsys.path.append", 1)
    assert await check(tiny, boot=boot) == inspect(tiny)


async def test_a_cancelled_inspection_leaves_no_process(tiny: Path, tmp_path: Path) -> None:
    """Guards against orphans when loopd stops while a file is read."""
    mark = tmp_path / "pid"
    os.mkfifo(mark)
    boot = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    task = asyncio.create_task(check(tiny, timeout_s=60, boot=boot))
    pid = int(await asyncio.to_thread(mark.read_text))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_summary_with_a_wrong_type_is_refused() -> None:
    """Guards the parse: the process is trusted no more than the file."""
    with pytest.raises(GgufError) as caught:
        parse_answer("a.gguf", 0, b'{"architecture": 1}')
    assert caught.value.code == "inspection_crashed"
    assert "a.gguf" in str(caught.value)
