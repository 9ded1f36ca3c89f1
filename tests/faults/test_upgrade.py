"""A newer loopd brings a newer engine image; what served before goes back whole, engine included, without a network."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator

import pytest

from built import built
from faults.load import Load
from faults.rig import Rig, wait_for
from loopd.images import save_images
from tiny_gguf import make_tiny_gguf

pytestmark = pytest.mark.docker


@pytest.fixture
def newer_engine(rig: Rig) -> Iterator[str]:
    """Give an engine image that differs from this checkout's by a label."""
    tag = f"loopbox-test/ollama:{secrets.token_hex(6)}"
    dockerfile = f"FROM {built().ollama}\nLABEL loopbox.test=newer\n".encode()
    rig.docker.images.build(fileobj=io.BytesIO(dockerfile), tag=tag, rm=True, network_mode="none")
    yield tag
    rig.docker.images.remove(tag, force=True)


def engine_image(rig: Rig) -> str:
    return str(rig.container(rig.engine()).attrs["Image"])


def test_rollback_after_an_upgrade_brings_the_old_engine_image_back(rig: Rig, newer_engine: str) -> None:
    before, image_before = rig.champion(), engine_image(rig)
    with Load(rig.public_port) as load:
        rig.stop()
        save_images(rig.home, built().model_copy(update={"ollama": newer_engine}))
        rig.start()
        rig.settle()
        assert engine_image(rig) == image_before, "a release keeps its engine: an upgrade of loopd swaps nothing"
        path = make_tiny_gguf(rig.base / "newer.gguf", seed=77, name="newer")
        rig.drop(path)
        wait_for("the new model serves", lambda: rig.champion() != before)
        rig.settle()
        assert engine_image(rig) != image_before
        rig.loopctl("releases", "rollback")
        rig.settle()
        load.wait_answers(5)
        assert load.faults() == []
    assert rig.champion() == before
    assert engine_image(rig) == image_before
    rig.stop()
    save_images(rig.home, built())
    rig.start()
    rig.settle()
