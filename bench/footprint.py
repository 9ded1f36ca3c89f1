"""footprint: what the appliance costs: memory and start of loopd, `make up` cold and warm, image sizes.

Cold: every loopbox image is removed first, so all of them are built; set COLD=0 to keep them. The last line printed is
one JSON object: rss_mb, ready_s, up_cold_s, up_warm_s, images_mb.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from appliance import Appliance, copy_tree, free_ports

STARTS = 5


def images() -> list[str]:
    """Return the ids of every image of ours."""
    listed = subprocess.check_output(["docker", "images", "--quiet", "--filter", "reference=loopbox/*"], text=True)
    return list(dict.fromkeys(listed.split()))


def remove_images() -> None:
    """Remove our images and what they were built from, so that nothing is cached."""
    if subprocess.check_output(["docker", "ps", "--quiet", "--filter", "label=loopbox.instance"]):
        sys.exit("an appliance runs on this host: its images cannot be removed. `make down` first, or set COLD=0")
    if found := images():
        subprocess.run(["docker", "rmi", "--force", *found], check=False, capture_output=True)
    subprocess.run(["docker", "image", "prune", "--force"], check=True, capture_output=True)


def ready_seconds(appliance: Appliance) -> float:
    """Kill loopd, start it again, and return the seconds until its control API answers."""
    pid_file = appliance.run_dir / "loopd.pid"
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    time.sleep(0.5)
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(appliance.tree / ".venv" / "bin" / "loopd")],
        env=appliance.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    pid_file.write_text(f"{process.pid}\n")
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{appliance.control_port}/healthz", timeout=1):
                return time.perf_counter() - started
        except OSError:
            time.sleep(0.005)


def rss_mb(appliance: Appliance) -> float:
    """Return loopd's resident memory, MB."""
    status = Path(f"/proc/{(appliance.run_dir / 'loopd.pid').read_text().strip()}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1000


def image_mb(tag: str) -> float:
    """Return an image's size, MB, its parents' layers included."""
    return int(subprocess.check_output(["docker", "inspect", "--format", "{{.Size}}", tag])) / 1e6


def timed_up(appliance: Appliance) -> float:
    """Return the seconds of one `make up`."""
    started = time.perf_counter()
    done = appliance.make("up", timeout=3000)
    if done.returncode:
        sys.exit(f"make up exited {done.returncode}: {done.stderr[-3000:]}")
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    if os.environ.get("COLD", "1") == "1":
        remove_images()
    base = Path(tempfile.mkdtemp(prefix="lbb"))
    public, internal, control = free_ports(3)
    environment = dict(os.environ) | {
        "LOOPBOX_HOME": str(base / "home"),
        "LOOPBOX_RUN_DIR": str(base / "run"),
        "LOOPBOX_INSTANCE": f"lbb{secrets.token_hex(3)}",
        "LOOPBOX_PUBLIC_PORT": str(public),
        "LOOPBOX_INTERNAL_PORT": str(internal),
        "LOOPBOX_CONTROL_PORT": str(control),
    }
    copy_tree(base / "tree")
    appliance = Appliance(
        base / "tree", base / "home", base / "run", environment["LOOPBOX_INSTANCE"], public, control, environment
    )
    try:
        cold = timed_up(appliance)
        warm = timed_up(appliance)
        ready = sorted(ready_seconds(appliance) for _ in range(STARTS))[STARTS // 2]
        tags = json.loads((appliance.home / "images.json").read_text())
        figures = {
            "rss_mb": round(rss_mb(appliance), 1),
            "ready_s": round(ready, 2),
            "up_cold_s": round(cold, 1),
            "up_warm_s": round(warm, 1),
            "images_mb": {name: round(image_mb(tag)) for name, tag in sorted(tags.items())},
        }
        print(json.dumps(figures))
    finally:
        appliance.loopctl("purge", "--yes", "--keep-images", check=False, timeout=300)
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
