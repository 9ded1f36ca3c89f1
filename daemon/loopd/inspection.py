"""inspection: owns the disposable process in which an untrusted model file is read.

Whatever a file does to its reader, it does to a process with no environment, no inherited descriptors, bounded memory
and time, and no right to write; loopd sees a Summary, an AdapterSummary or a GgufError.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from loopd.gguf import EXIT_REFUSED, AdapterSummary, Summary
from loopd.gguf_types import MIB, GgufError

_PACKAGES: Final = str(Path(__file__).resolve().parent.parent)
#: A chat template of 256 KiB, each byte escaped to six, and the rest.
_ANSWER_BYTES: Final = 2 * MIB
#: Sets its own limits before it imports the parser or opens the file: preexec_fn is not safe beside loopd's threads.
#: Without -S the site packages' start-up files would cost more than the check itself.
_BOOT: Final = """
import os, resource, sys
os.nice(10)
memory, seconds, packages, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
for limit, most in (
    (resource.RLIMIT_AS, memory),
    (resource.RLIMIT_CPU, seconds),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_NOFILE, 16),
    (resource.RLIMIT_CORE, 0),
):
    resource.setrlimit(limit, (most, most))
sys.path.append(packages)
from loopd.gguf import main
sys.exit(main([path]))
"""
#: The two share no set of required fields, so one answer fits one of them only.
_SUMMARY: Final[TypeAdapter[Summary | AdapterSummary]] = TypeAdapter(Summary | AdapterSummary)
Inspected = Summary | AdapterSummary


class _Defect(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    code: str
    message: str
    expected_bytes: int | None
    actual_bytes: int | None


class _Refusal(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    error: _Defect


async def check(path: Path, *, timeout_s: float = 10.0, memory_bytes: int = 256 * MIB, boot: str = _BOOT) -> Inspected:
    """Inspect a model file in a process of its own; seconds and bytes bound that process. ``boot`` is for tests.

    Raises GgufError with the file's own defect, or "inspection_timeout", or "inspection_crashed".
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", boot),
        *(str(memory_bytes), str(max(1, round(timeout_s))), _PACKAGES, os.fspath(path.absolute())),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            answer = await _read(process)
            status = await process.wait()
    except TimeoutError as error:
        raise GgufError(
            "inspection_timeout",
            f"{path.name} took more than {timeout_s:g} s to inspect; it was not loaded; check the disk or "
            f"convert it again",
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return parse_answer(path.name, status, answer)


async def _read(process: asyncio.subprocess.Process) -> bytes:
    if process.stdout is None:
        raise AssertionError("stdout was asked for as a pipe")
    answer = bytearray()
    while chunk := await process.stdout.read(64 << 10):
        answer += chunk
        if len(answer) > _ANSWER_BYTES:
            process.kill()
            return b""
    return bytes(answer)


def parse_answer(name: str, status: int, answer: bytes) -> Inspected:
    """Turn the exit status and output of an inspection into its Summary. Raises GgufError."""
    try:
        if status == 0:
            return _SUMMARY.validate_json(answer, strict=True)
        if status == EXIT_REFUSED:
            defect = _Refusal.model_validate_json(answer).error
            raise GgufError(
                defect.code,
                defect.message,
                expected_bytes=defect.expected_bytes,
                actual_bytes=defect.actual_bytes,
            )
    except ValidationError as error:
        raise _crashed(name, "answered nonsense") from error
    raise _crashed(name, f"was killed by signal {-status}" if status < 0 else f"ended with status {status}")


def _crashed(name: str, how: str) -> GgufError:
    return GgufError(
        "inspection_crashed",
        f"the process that read {name} {how}; the file was not loaded. Convert it again, and report the file if it "
        f"loads elsewhere",
    )
