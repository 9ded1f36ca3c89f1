"""The one appliance that the acceptance tests share."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import Appliance, copy_tree, free_ports


@pytest.fixture(scope="session")
def appliance() -> Iterator[Appliance]:
    """Bring one up; purge it at the end and see that nothing is left."""
    base = Path(tempfile.mkdtemp(prefix="lba"))
    public, internal, control = free_ports(3)
    instance = f"lba{secrets.token_hex(3)}"
    settings = {
        "LOOPBOX_HOME": str(base / "home"),
        "LOOPBOX_RUN_DIR": str(base / "run"),
        "LOOPBOX_INSTANCE": instance,
        "LOOPBOX_PUBLIC_PORT": str(public),
        "LOOPBOX_INTERNAL_PORT": str(internal),
        "LOOPBOX_CONTROL_PORT": str(control),
        "LOOPBOX_INCOMING_SETTLE_S": "0.3",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOOPBOX_", "COV_"))}
    tree = base / "tree"
    tree.mkdir()
    copy_tree(tree)
    made = Appliance(tree, base / "home", base / "run", instance, public, control, kept | settings)
    try:
        up = made.make("up")
        assert up.returncode == 0, f"make up exited {up.returncode}:\n{up.stdout[-4000:]}\n{up.stderr[-4000:]}"
        made.output = up.stdout
        clients = urllib.request.build_opener()
        clients.addheaders = [("Authorization", f"Bearer {made.token}")]
        urllib.request.install_opener(clients)
        yield made
    finally:
        urllib.request.install_opener(urllib.request.build_opener())
        purge = subprocess.run(
            [str(tree / ".venv" / "bin" / "loopctl"), "purge", "--yes", "--keep-images"],
            env=made.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        left = [path.name for path in base.iterdir() if path.name != "tree"]
        containers = made.containers()
        shutil.rmtree(base, ignore_errors=True)
        assert (purge.returncode, left, containers) == (0, [], {}), purge.stderr
