"""The rollout bench in small: three real swaps under load that nobody notices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {"SWAPS": "3", "STREAMS": "8", "RATE": "20", "STEADY_S": "2", "GAP_S": "0.5"}


@pytest.mark.docker
def test_three_swaps_under_load_fail_no_request_and_cut_no_stream() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "rollout.py")],
        env={name: value for name, value in os.environ.items() if not name.startswith("COV_")} | SMALL,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["swaps"], figures["failed"], figures["cut"]) == (3, 0, 0), figures
    # The load met the swaps: requests were under way in them, and each release answered some.
    assert figures["requests_during"] > 20, figures
    assert figures["releases_heard"] == 4, figures
    assert figures["p99_steady_ms"] > 0, figures
    assert figures["p99_during_ms"] > 0, figures
    assert figures["flip_ms_max"] < 50, "an order beyond the bar of 5 ms, for a machine with other work"
