"""What a user's word leads to: feedback, a data set, a job of the trainer, a release that calls tools. Real parts."""

from __future__ import annotations

import json
import time
from typing import Any

import docker
import pytest
from docker.errors import ImageNotFound

from appliance import Appliance
from built import built

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

TRAIN_S = 900


def told(appliance: Appliance, *arguments: str, timeout: float = 120) -> Any:  # Any: JSON
    return json.loads(appliance.loopctl(*arguments, "--json", timeout=timeout).stdout)


def test_what_users_said_of_their_runs_becomes_data(appliance: Appliance) -> None:
    consent = told(appliance, "consent", "yes")
    assert consent["agree"] is True
    appliance.loopctl("ask", "Say hello.", "--max-tokens", "16")
    mine = told(appliance, "runs", "list")["runs"][0]["run_id"]
    deadline = time.monotonic() + 20
    while appliance.loopctl("feedback", mine, "bad", "--better", "Hello.", check=False).returncode:
        assert time.monotonic() < deadline, "the run was never kept"
        time.sleep(0.2)
    assert told(appliance, "data", "export")["rows"] >= 1
    exported = appliance.home / "training" / "data" / "interactions.jsonl"
    rows = [json.loads(line) for line in exported.read_text().splitlines()]
    [row] = [row for row in rows if row["run_id"] == mine]
    assert (row["rating"], row["better"], row["outcome"]) == ("bad", "Hello.", "completed")
    assert [message["kind"] for message in row["messages"]] == ["request", "response"]
    deleted = told(appliance, "consent", "no")["deleted"]
    assert deleted >= 1
    assert told(appliance, "data", "export")["rows"] == len(rows) - deleted
    appliance.loopctl("consent", "yes")


@pytest.mark.slow
def test_a_trained_model_takes_over_by_itself(appliance: Appliance) -> None:
    """The trainer's image has 6 GB and is built on demand: `loopctl images build --only trainer`."""
    client = docker.from_env()
    try:
        client.images.get(str(built().trainer))
    except ImageNotFound:
        pytest.skip("the trainer's image is not on this host")
    finally:
        client.close()
    before = appliance.status()["rollout"]
    assert before is None
    job = told(appliance, "data", "curate", "tools", "--synthetic", "150", "--seed", "3")["id"]
    appliance.loopctl("train", "watch", job, timeout=TRAIN_S)
    files = {one["path"] for one in told(appliance, "data", "list")["files"]}
    assert {"tools/train.jsonl", "tools/valid.jsonl", "tools/manifest.json"} <= files
    asked = ("train", "start", "caller", "tools/train.jsonl", "--learning-rate", "0.002", "--tokens", "1536")
    job = told(appliance, *asked)["id"]
    watched = appliance.loopctl("train", "watch", job, timeout=TRAIN_S)
    assert "done" in watched.stdout
    name = f"caller-{job.removeprefix('job-')}"
    deadline = time.monotonic() + 120
    while not any(r["name"] == name and r["role"] == "champion" for r in appliance.status()["releases"]):
        assert time.monotonic() < deadline, appliance.loopctl("rollouts", "list").stdout
        time.sleep(0.5)
    [release] = [r for r in told(appliance, "releases", "list")["releases"] if r["name"] == name]
    assert len(release["adapters"]) == 1
    answer = told(appliance, "ask", "Run the command `echo seven` in bash.", "--tool", "bash", timeout=300)
    calls = answer["run"]["tool_calls"]
    assert [(call["name"], call["is_error"]) for call in calls] == [("bash", False)]
    appliance.loopctl("releases", "rollback")
