"""The runner behind `make fuzz`: a short run of it, and that it finds what it is there to find."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = 5000


def fuzz(save: Path, *arguments: str, before: str = "") -> tuple[int, dict[str, float]]:
    """Run the runner, with something done to the parser first; return its exit status and figures."""
    program = f"import sys; sys.path[:0] = {[str(HERE.parent), str(ROOT / 'daemon')]!r}; sys.argv[0] = 'runner'\n"
    program += f"from fuzz import runner\n{before}\nsys.exit(runner.main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "--save", str(save), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_mutants_are_read_or_refused_within_bounds(tmp_path: Path) -> None:
    status, figures = fuzz(tmp_path / "save", "--runs", str(RUNS), "--salt", "7")
    assert status == 0
    assert (figures["crashes"], figures["hangs"], figures["over_memory"]) == (0, 0, 0)
    assert figures["executions"] == RUNS == figures["accepted"] + figures["refused"]
    # Mutants that are all refused at their first byte would test nothing; nor would files that are all fine.
    assert RUNS * 0.02 < figures["accepted"] < RUNS * 0.5
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize(
    ("does", "kind"),
    [
        ("raise KeyError(1)", "crashes"),
        ("os._exit(3)", "crashes"),
        ("os.kill(os.getpid(), 11)", "crashes"),
        ("time.sleep(60)", "hangs"),
        ("bytearray(300 << 20)", "over_memory"),
    ],
)
def test_a_parser_that_fails_is_caught_with_the_bytes_it_failed_on(tmp_path: Path, does: str, kind: str) -> None:
    """The tenth file is where it happens."""
    before = f"""
import itertools, os, time
count, honest = itertools.count(), runner.examine
def examine(path):
    if next(count) == 10:
        open({str(tmp_path / "offender")!r}, "wb").write(path.read_bytes())
        {does}
    return honest(path)
runner.examine = examine
runner.HANG_S = 0.3
"""
    status, figures = fuzz(tmp_path / "save", "--runs", "20", before=before)
    assert status == 1
    # Each worker counts for itself, and what is left after the offender is read by another.
    assert figures["executions"] == 20
    assert figures[kind] >= 1
    assert figures["crashes"] + figures["hangs"] + figures["over_memory"] == figures[kind]
    first = next(path for path in (tmp_path / "save").iterdir() if path.name.endswith("-10.gguf"))
    assert first.stat().st_size > 0


def test_the_same_number_gives_the_same_mutant() -> None:
    """Guards the offender's name as a recipe: salt and number are enough to make it again."""
    program = (
        f"import sys; sys.path[:0] = [{str(HERE.parent)!r}]\n"
        "from fuzz.corpus import corpus; from fuzz.mutate import mutant; import hashlib\n"
        "print(hashlib.sha256(b''.join(mutant(corpus(), n, 3) for n in range(200))).hexdigest())"
    )
    once, again = (
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in range(2)
    )
    assert once == again
