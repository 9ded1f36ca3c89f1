"""Releases with an adapter and a system text, from the dropped file to the real engine's answers."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import docker
import pytest
from intake_bench import Bench, make_bench
from tiny_lora import make_tiny_lora

from built import built
from loopd.blobs import BlobDamagedError, is_sealed
from loopd.config import Settings
from loopd.docker_engine import Connection, DockerEngine
from loopd.loading import OllamaLoader
from loopd.ollama import EngineAnswerError, Ollama
from loopd.registry import Listed
from loopd.release import Release
from loopd.state import open_database
from loopd.units import ENGINE_PORT
from tiny_gguf import make_tiny_gguf

pytestmark = pytest.mark.docker
PROMPT = "What is the capital of France?"


@pytest.fixture
async def engine() -> AsyncIterator[DockerEngine]:
    if os.geteuid() != 0:
        pytest.fail("files are given to the engine's user here: run these tests as root")
    instance = f"lbt{secrets.token_hex(4)}"
    opened = DockerEngine(Connection(None, instance))
    await opened.open()
    yield opened
    for one in await opened.observe():
        await opened.remove(one.unit, grace_s=0)
    await opened.close()
    client = docker.from_env()
    for network in client.networks.list(filters={"label": f"loopbox.instance={instance}"}):
        network.remove()
    client.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_database(tmp_path / "state.db") as database:
        yield make_bench(tmp_path / "home", database)


class Served:
    """Loads releases as loopd does, one engine at a time, and asks them."""

    def __init__(self, bench: Bench, engine: DockerEngine, session: aiohttp.ClientSession) -> None:
        self.settings = Settings(home=bench.layout.home, run_dir=Path("/run/none"), engine_threads=1)
        self.engine = engine
        self.session = session
        self.loader = OllamaLoader(self.settings, engine, session)

    async def address(self, release: Release) -> str:
        """Start and load a release."""
        address = (await self.loader.start(release)).address
        assert address is not None
        await self.loader.load(release, address)
        return address

    async def answer(self, release: Release) -> str:
        address = await self.address(release)
        ollama = Ollama(self.session, f"http://{address}:{ENGINE_PORT}")
        text = (await ollama.generate(self.settings.model_alias, PROMPT, tokens=40, timeout_s=60)).response
        await self.engine.remove(release.unit, grace_s=0)
        return text

    async def rendered(self, release: Release) -> str:
        """Return a chat as the engine would give it to the model."""
        address = await self.address(release)
        body = {
            "model": self.settings.model_alias,
            "stream": False,
            "_debug_render_only": True,
            "messages": [{"role": "user", "content": "Hi"}],
        }
        async with self.session.post(f"http://{address}:{ENGINE_PORT}/api/chat", json=body) as response:
            told = await response.json()
        await self.engine.remove(release.unit, grace_s=0)
        return str(told["_debug_info"]["rendered_template"])


async def newest(bench: Bench, engine: DockerEngine) -> Listed:
    """Take in what was dropped, for the real engine's image."""
    image = await engine.image_id(built().ollama)

    async def engine_image() -> str:
        return image

    bench.changed(engine_image=engine_image)
    await bench.settle()
    assert bench.rejected() == {}
    return (await bench.registry.releases())[0]


async def test_an_adapter_changes_what_its_base_says_and_its_base_does_not_change(
    bench: Bench, engine: DockerEngine
) -> None:
    """The proof that the engine really puts it on: same weights, same prompt, greedy, another answer."""
    make_tiny_gguf(bench.incoming / "base.gguf", seed=5)
    base = (await newest(bench, engine)).release
    (bench.incoming / "tuned.toml").write_text('base = "base"\nsystem = "You are a tuned one."')
    make_tiny_lora(bench.incoming / "tuned.gguf", seed=1)
    tuned = (await newest(bench, engine)).release
    assert (tuned.gguf_sha256, len(tuned.adapters)) == (base.gguf_sha256, 1)
    async with aiohttp.ClientSession() as session:
        served = Served(bench, engine, session)
        plain = await served.answer(base)
        changed = await served.answer(tuned)
        # Without its system text, so that only the adapter differs.
        alone = await served.answer(replace(tuned, system=""))
        assert "You are a tuned one." in await served.rendered(tuned)
        assert plain not in (changed, alone)
        assert alone != changed
        assert await served.answer(base) == plain
    for sha256, size in tuned.blobs:
        # The engine set their times when it made its model, and that was undone: the next start reads no byte twice.
        assert is_sealed(bench.layout.blob(sha256).stat(), size)
        assert bench.layout.blob(sha256).stat().st_uid == 0
        linked = bench.layout.engines / tuned.short / "blobs" / f"sha256-{sha256}"
        assert linked.samefile(bench.layout.blob(sha256))


async def test_an_adapter_of_another_base_is_refused_by_the_engine_in_its_own_container(
    bench: Bench, engine: DockerEngine
) -> None:
    """Right architecture, wrong width: only the engine can know, and only the candidate suffers."""
    make_tiny_gguf(bench.incoming / "base.gguf", seed=5)
    await newest(bench, engine)
    (bench.incoming / "tuned.toml").write_text('base = "base"')
    make_tiny_lora(bench.incoming / "tuned.gguf", wide=8)
    tuned = (await newest(bench, engine)).release
    async with aiohttp.ClientSession() as session:
        with pytest.raises(EngineAnswerError):
            await Served(bench, engine, session).answer(tuned)


async def test_weights_that_changed_on_disk_are_never_given_to_an_engine(bench: Bench, engine: DockerEngine) -> None:
    make_tiny_gguf(bench.incoming / "base.gguf", seed=5)
    base = (await newest(bench, engine)).release
    async with aiohttp.ClientSession() as session:
        served = Served(bench, engine, session)
        plain = await served.answer(base)
        with bench.layout.blob(base.gguf_sha256).open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\0\0\x80\x3f")
        with pytest.raises(BlobDamagedError):
            await served.answer(base)
        assert await engine.observe() == ()
        # Dropped again, the good bytes take the place of the bad ones, in the engine's directory, too.
        make_tiny_gguf(bench.incoming / "base.gguf", seed=5)
        await bench.settle()
        assert await served.answer(base) == plain
