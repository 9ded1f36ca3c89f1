"""LoRA adapters: what is refused by itself, and how one becomes a release on its base."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from intake_bench import Bench, make_bench
from tiny_lora import TARGETS, make_tiny_lora

from loopd.gguf import GgufError, examine, inspect
from loopd.gguf_adapter import AdapterSummary
from loopd.inspection import check
from loopd.state import Database
from tiny_gguf import make_tiny_gguf


@pytest.fixture
def bench(tmp_path: Path, database: Database) -> Bench:
    return make_bench(tmp_path / "home", database)


async def test_a_sound_adapter_says_what_it_is(tmp_path: Path) -> None:
    path = make_tiny_lora(tmp_path / "lora.gguf", rank=4, alpha=8.0)
    summary = examine(path)
    assert isinstance(summary, AdapterSummary)
    assert (summary.architecture, summary.alpha, summary.rank, summary.pair_count) == ("llama", 8.0, 4, len(TARGETS))
    assert summary.size_bytes == path.stat().st_size
    assert await check(path) == summary


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(GgufError) as caught:
        inspect(make_tiny_lora(tmp_path / "lora.gguf"))
    assert caught.value.code == "not_a_model"


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return change


def alpha(kind: int, raw: bytes) -> Callable[[bytes], bytes]:
    """Give adapter.lora.alpha another type or value of four bytes."""
    key = b"adapter.lora.alpha"
    return replaced(key + struct.pack("<If", 6, 8.0), key + struct.pack("<I", kind) + raw)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (replaced(b"adapter.type", b"adapter.kind"), "missing_key"),
        (replaced(b"\x04\0\0\0\0\0\0\0lora", b"\x04\0\0\0\0\0\0\0lore"), "adapter_type_unknown"),
        (replaced(b"adapter.lora.alpha", b"adapter.lora.alpho"), "missing_key"),
        (alpha(4, struct.pack("<I", 8)), "wrong_type"),
        (alpha(6, struct.pack("<f", float("nan"))), "adapter_alpha_invalid"),
        (alpha(6, struct.pack("<f", -1.0)), "adapter_alpha_invalid"),
        (replaced(b"llama", b"bert_"), "architecture_unknown"),
        (replaced(b"attn_q.weight.lora_a", b"attn_q.weight.lora_c"), "adapter_tensor_unknown"),
        (replaced(b"attn_q.weight.lora_a", b"attn_k.weight.lora_a"), "adapter_pair_missing"),
        (lambda data: data.replace(b".weight.lora_a", b"_norm.weight!!"), "adapter_tensor_unknown"),
        (
            lambda data: data.replace(b"weight.lora_a", b"a_norm.weight").replace(b"weight.lora_b", b"b_norm.weight"),
            "no_tensors",
        ),
        (lambda data: data[:-100], "truncated"),
    ],
)
def test_a_malformed_adapter_is_refused_by_its_own_code(
    tmp_path: Path, change: Callable[[bytes], bytes], code: str
) -> None:
    path = make_tiny_lora(tmp_path / "lora.gguf")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(GgufError) as caught:
        examine(path)
    assert caught.value.code == code


def test_halves_that_cannot_be_multiplied_are_refused(tmp_path: Path) -> None:
    """The engine would assert on them: rank 4 on one side, 8 on the other."""
    path = make_tiny_lora(tmp_path / "lora.gguf", rank=4)
    data = path.read_bytes()
    name = b"blk.0.attn_q.weight.lora_b"
    place = data.index(name) + len(name)
    rank, inner, rows = struct.unpack_from("<IQQ", data, place)
    assert (rank, inner, rows) == (2, 4, 64)
    # The same bytes as 8 x 32, so only the fit is wrong.
    path.write_bytes(data[:place] + struct.pack("<IQQ", 2, 8, 32) + data[place + 20 :])
    with pytest.raises(GgufError) as caught:
        examine(path)
    assert caught.value.code == "adapter_shape"


def test_half_an_adapter_of_zeros_is_one_that_was_not_trained_yet(tmp_path: Path) -> None:
    """Training begins with zeros in the second half; those are no broken weights."""
    path = make_tiny_lora(tmp_path / "lora.gguf", rank=4)
    summary = examine(path)
    data = bytearray(path.read_bytes())
    last = struct.calcsize("<f") * 4 * 259  # output.weight.lora_b is the last tensor
    data[-last:] = bytes(last)
    path.write_bytes(data)
    assert examine(path) == summary


@pytest.mark.parametrize("named", ["release", "id", "file", "digest", "modelfile"])
async def test_an_adapter_with_its_base_named_is_a_release_on_it(bench: Bench, named: str) -> None:
    make_tiny_gguf(bench.incoming / "base.gguf")
    await bench.settle()
    (base,) = await bench.registry.releases()
    word = {
        "release": base.release.name,
        "id": base.release.short,
        "file": "base.gguf",
        "digest": f"sha256:{base.release.gguf_sha256}",
        "modelfile": base.release.name,
    }[named]
    if named == "modelfile":
        (bench.incoming / "tuned.Modelfile").write_text(f"FROM {word}\nADAPTER ./tuned.gguf\nSYSTEM Be kind.")
    else:
        (bench.incoming / "tuned.toml").write_text(f'base = "{word}"\nsystem = "Be kind."')
    make_tiny_lora(bench.incoming / "tuned.gguf")
    await bench.settle()
    tuned = (await bench.registry.releases())[0].release
    assert (tuned.name, tuned.gguf_sha256, tuned.template) == (
        "tuned",
        base.release.gguf_sha256,
        base.release.template,
    )
    assert tuned.system == "Be kind."
    (adapter,) = tuned.adapters
    assert bench.layout.blob(adapter.sha256).stat().st_size == adapter.size_bytes
    assert tuned.id != base.release.id
    assert list(bench.incoming.iterdir()) == []


@pytest.mark.parametrize("first", ["adapter", "model"])
async def test_a_model_and_its_adapter_dropped_together_are_one_release(bench: Bench, first: str) -> None:
    """Whichever is looked at first: the adapter alone waits for who names it."""
    (bench.incoming / "whole.toml").write_text('[[adapters]]\nfile = "extra.gguf"')
    make_tiny_gguf(bench.incoming / "whole.gguf")
    make_tiny_lora(bench.incoming / "extra.gguf")
    os.utime(bench.incoming / ("extra.gguf" if first == "adapter" else "whole.gguf"), (1, 1))
    await bench.settle()
    (listed,) = await bench.registry.releases()
    assert (listed.release.name, len(listed.release.adapters)) == ("whole", 1)
    assert list(bench.incoming.iterdir()) == []
    assert len(bench.blobs()) == 2
    assert bench.rejected() == {}


@pytest.mark.parametrize(("sidecar", "code"), [("", "adapter_without_base"), ('base = "nothing"', "base_missing")])
async def test_an_adapter_whose_base_never_comes_is_refused_at_last(bench: Bench, sidecar: str, code: str) -> None:
    (bench.incoming / "tuned.toml").write_text(sidecar)
    make_tiny_lora(bench.incoming / "tuned.gguf")
    await bench.settle()
    assert bench.rejected() == {}
    await bench.settle(61)
    assert bench.rejected() == {"tuned.gguf": code}


async def test_an_adapter_may_come_before_its_base(bench: Bench) -> None:
    (bench.incoming / "tuned.toml").write_text('base = "base.gguf"')
    make_tiny_lora(bench.incoming / "tuned.gguf")
    await bench.settle(20)
    make_tiny_gguf(bench.incoming / "base.gguf")
    await bench.settle()
    await bench.settle(6)
    assert await bench.names() == {"base", "tuned"}


async def test_a_file_that_waits_for_another_is_not_read_at_each_of_the_others_events(bench: Bench) -> None:
    """A slow copy rings the bell a thousand times; the adapter beside it costs nothing meanwhile."""
    (bench.incoming / "tuned.toml").write_text('base = "base.gguf"')
    make_tiny_lora(bench.incoming / "tuned.gguf")
    await bench.settle()
    for _ in range(50):
        await bench.watcher.look()
    assert bench.inspected == ["tuned.gguf"]
    await bench.settle(6)
    assert bench.inspected == ["tuned.gguf"] * 2


async def test_an_adapter_of_another_architecture_is_refused(bench: Bench) -> None:
    make_tiny_gguf(bench.incoming / "base.gguf")
    await bench.settle()
    (bench.incoming / "tuned.toml").write_text('base = "base"')
    make_tiny_lora(bench.incoming / "tuned.gguf", architecture="qwen2")
    await bench.settle()
    assert bench.rejected() == {"tuned.gguf": "adapter_architecture"}
    assert len(bench.blobs()) == 1


async def test_a_model_named_as_an_adapter_is_refused(bench: Bench) -> None:
    (bench.incoming / "a.toml").write_text('[[adapters]]\nfile = "b.gguf"')
    make_tiny_gguf(bench.incoming / "a.gguf", seed=1)
    make_tiny_gguf(bench.incoming / "b.gguf", seed=2)
    await bench.settle()
    assert bench.rejected() == {"a.gguf": "adapter_is_model"}
    assert await bench.names() == {"b"}
