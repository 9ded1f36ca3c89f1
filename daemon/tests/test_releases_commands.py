"""`loopctl releases` against a whole loopd on the in-memory engine: taking in, keeping, collecting, signing."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tiny_lora import make_tiny_lora

from loopd.app import Host, run
from loopd.cli.add import DropError, place, plan_copies
from loopd.config import Settings
from loopd.engine import InMemoryEngine
from loopd.errors import ConflictError
from loopd.notify import Notifier
from running_loopd import IMAGES, Gateway, free_ports
from tiny_gguf import make_tiny_gguf

DAEMON = Path(__file__).parents[1]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@dataclass
class Appliance:
    settings: Settings
    environment: dict[str, str]

    @property
    def incoming(self) -> Path:
        return self.settings.home / "models" / "incoming"

    @property
    def blobs(self) -> Path:
        return self.settings.home / "models" / "blobs"

    async def loopctl(self, *arguments: str, code: int = 0) -> Done:
        """Run the real program."""
        program = "import sys; from loopd.cli.main import main; sys.argv[0] = 'loopctl'; main()"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, "releases", *arguments),
            env={**os.environ, **self.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        done = Done(process.returncode or 0, out.decode(), err.decode())
        assert done.code == code, done
        return done


@pytest.fixture
async def appliance() -> AsyncIterator[Appliance]:
    base = Path(tempfile.mkdtemp(prefix="lb"))
    public, internal, control = free_ports(3)
    settings = Settings(
        home=base / "home",
        run_dir=base / "run",
        public_port=public,
        internal_port=internal,
        control_port=control,
        incoming_settle_s=0.1,
        incoming_stale_s=1.0,
        sandbox={"warm": 0},
        rollout={"start_s": 0.1},  # no engine answers here: each candidate is turned back at once
        registry={"budget_bytes": 1, "keep": 2},
    )
    environment = {
        "LOOPBOX_HOME": str(settings.home),
        "LOOPBOX_RUN_DIR": str(settings.run_dir),
        "LOOPBOX_CONTROL_PORT": str(control),
        "PYTHONPATH": str(DAEMON),
        "COLUMNS": "200",
    }
    engine = InMemoryEngine(images={tag: f"sha256:{tag}" for tag in IMAGES.tags()})
    stop = asyncio.Event()
    ended = asyncio.create_task(run(settings, IMAGES, Host(engine, Gateway(), Notifier("")), stop))
    async with asyncio.timeout(10):
        while not (settings.run_dir / "broker" / "broker.sock").exists():
            assert not ended.done(), ended
            await asyncio.sleep(0.01)
    yield Appliance(settings, environment)
    stop.set()
    async with asyncio.timeout(10):
        await ended
    shutil.rmtree(base)


async def test_a_model_is_added_with_its_sidecar_and_shown_with_its_lineage(
    appliance: Appliance, tmp_path: Path
) -> None:
    model = make_tiny_gguf(tmp_path / "mine.gguf")
    (tmp_path / "Modelfile").write_text("FROM ./mine.gguf\nSYSTEM Be brief.")
    added = await appliance.loopctl("add", str(model))
    assert "mine.gguf is release " in added.out
    assert model.exists()
    assert list(appliance.incoming.iterdir()) == []
    view = json.loads((await appliance.loopctl("show", "mine", "--json")).out)
    assert (view["system"], view["adapters"], view["pinned"], view["collected_at"]) == ("Be brief.", [], False, None)
    (tmp_path / "Modelfile").unlink()
    (tmp_path / "mine.toml").write_text('[lineage]\nbase = "tiny"\njob = "train-7"\n[lineage.scores]\naccuracy = 0.93')
    view = json.loads((await appliance.loopctl("add", str(model), "--json")).out)
    assert view["lineage"] == {"base": "tiny", "data": "", "job": "train-7", "scores": {"accuracy": 0.93}}
    shown = (await appliance.loopctl("show", view["short"])).out
    assert "train-7" in shown
    assert "accuracy 0.93" in shown
    # The same again is no error: it is what was asked for.
    assert json.loads((await appliance.loopctl("add", str(model), "--json")).out)["id"] == view["id"]


async def test_an_adapter_is_added_together_with_its_model(appliance: Appliance, tmp_path: Path) -> None:
    model = make_tiny_gguf(tmp_path / "mine.gguf")
    make_tiny_lora(tmp_path / "lora.gguf")
    (tmp_path / "mine.toml").write_text('[[adapters]]\nfile = "lora.gguf"')
    view = json.loads((await appliance.loopctl("add", str(model), "--json")).out)
    assert len(view["adapters"]) == 1
    assert len(list(appliance.blobs.iterdir())) == 2
    assert "sha256:" + view["adapters"][0]["sha256"] in (await appliance.loopctl("show", "mine")).out


async def test_a_refused_file_ends_with_its_reason_and_a_failure(appliance: Appliance, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a model at all")
    done = await appliance.loopctl("add", str(bad), code=1)
    assert "[bad_magic]" in done.err
    assert done.out == ""


async def test_a_file_that_waits_is_told_while_it_waits(appliance: Appliance, tmp_path: Path) -> None:
    short = make_tiny_gguf(tmp_path / "short.gguf")
    os.truncate(short, 400_000)
    done = await appliance.loopctl("add", str(short), code=1)
    assert "short.gguf waits: " in done.err
    assert "[truncated]" in done.err


async def test_old_releases_are_collected_but_not_the_pinned_and_the_newest(
    appliance: Appliance, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        await appliance.loopctl("add", str(make_tiny_gguf(tmp_path / f"{name}.gguf", seed=seed)))
    assert "is kept" in (await appliance.loopctl("pin", "a")).out
    for name, seed in (("c", 3), ("d", 4)):
        await appliance.loopctl("add", str(make_tiny_gguf(tmp_path / f"{name}.gguf", seed=seed)))
    # Each rollout is turned back soon, since no engine answers; after each the collection runs by itself.
    async with asyncio.timeout(30):
        while True:
            listed = json.loads((await appliance.loopctl("list", "--json")).out)["releases"]
            if [view["name"] for view in listed if view["collected_at"]] == ["b"]:
                break
            await asyncio.sleep(0.2)
    told = (await appliance.loopctl("list")).out.splitlines()
    assert [line.split()[-1] for line in told[1:] if line.split()[1] in "ab"] == ["collected", "pinned"]
    refused = await appliance.loopctl("promote", "b", code=5)
    assert "[release_collected]" in refused.err
    assert "drop b.gguf into models/incoming again" in refused.err
    await appliance.loopctl("pin", "b", code=5)
    assert "may be collected" in (await appliance.loopctl("unpin", "a")).out
    dry = json.loads((await appliance.loopctl("gc", "--dry-run", "--json")).out)
    assert (len(dry["releases"]), dry["dry_run"]) == (1, True)
    assert len(list(appliance.blobs.iterdir())) == 3
    assert (await appliance.loopctl("gc")).out.startswith("1 release went")
    assert len(list(appliance.blobs.iterdir())) == 2
    assert json.loads((await appliance.loopctl("gc", "--json")).out)["releases"] == []


async def test_what_sign_writes_another_program_can_check(appliance: Appliance, tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    key = tmp_path / "key.pem"
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    model = make_tiny_gguf(tmp_path / "mine.gguf")
    (tmp_path / "mine.toml").write_text('system = "x"')
    done = await appliance.loopctl("sign", str(model), "--key", str(key))
    digests = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("mine.gguf", "mine.toml")]
    text = ":".join(["loopbox-gguf-v1", *digests])
    private.public_key().verify(base64.b64decode((tmp_path / "mine.gguf.sig").read_bytes()), text.encode())
    assert base64.b64encode(private.public_key().public_bytes_raw()).decode() in done.out
    key.write_text("nothing")
    assert "[key_unusable]" in (await appliance.loopctl("sign", str(model), "--key", str(key), code=1)).err


def test_names_appear_in_an_order_that_never_shows_a_model_without_its_companions(tmp_path: Path) -> None:
    model = make_tiny_gguf(tmp_path / "m.gguf")
    make_tiny_lora(tmp_path / "lora.gguf")
    for name in ("m.gguf.sig", "lora.gguf.sig"):
        (tmp_path / name).write_text("x")
    (tmp_path / "m.toml").write_text('[[adapters]]\nfile = "lora.gguf"')
    names = [name for _, name in plan_copies(model)]
    assert names == ["lora.gguf.sig", "lora.gguf", "m.toml", "m.gguf.sig", "m.gguf"]


def test_a_name_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (incoming / "m.gguf").write_text("another's")
    model = make_tiny_gguf(tmp_path / "m.gguf")
    with pytest.raises(ConflictError, match="being looked at"):
        place([(model, "m.gguf")], incoming, lambda *_: None)
    assert [path.name for path in incoming.iterdir()] == ["m.gguf"]
    assert (incoming / "m.gguf").read_text() == "another's"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    model = make_tiny_gguf(tmp_path / "m.gguf")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("loopd.cli.add.os.fsync", full)
    with pytest.raises(DropError, match="free some disk"):
        place([(model, "m.gguf")], incoming, lambda *_: None)
    assert list(incoming.iterdir()) == []


def test_the_progress_of_a_copy_ends_at_its_whole(tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    model = make_tiny_gguf(tmp_path / "m.gguf")
    told: list[tuple[str, int, int]] = []
    place([(model, "m.gguf")], incoming, lambda *one: told.append(one))
    whole = model.stat().st_size
    assert told[-1] == ("m.gguf", whole, whole)
    assert (incoming / "m.gguf").stat().st_nlink == 1
