"""Sidecars: what they may say, what they are refused for, and what becomes of them beside their model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from intake_bench import Bench, make_bench

from loopd.draft import SAMPLING
from loopd.gguf_types import GgufError
from loopd.modelfile import MOST_COMMANDS
from loopd.sidecar import MOST_BYTES, Sidecar, find_drop, is_companion, parse_sidecar
from loopd.state import Database
from tiny_gguf import make_tiny_gguf

TOML = """
template = "{{ .Prompt }}"
system = "Be brief."
stop = ["END"]
num_ctx = 512
[parameters]
temperature = 0.7
top_k = 40
[lineage]
base = "tiny"
data = "notes-2026"
job = "train-7"
[lineage.scores]
accuracy = 0.93
"""
MODELFILE = '''# a comment
FROM ./one.gguf
TEMPLATE """{{ .System }}
{{ .Prompt }}"""
system "Be brief."
PARAMETER stop "END"
PARAMETER stop STOP
PARAMETER num_ctx 512
parameter temperature 0.7
LICENSE """any
text"""
MESSAGE user hello
'''


@pytest.fixture
def bench(tmp_path: Path, database: Database) -> Bench:
    return make_bench(tmp_path / "home", database)


def parse(name: str, text: str) -> Sidecar:
    return parse_sidecar(name, text.encode(), model="one.gguf")


def refused(name: str, text: str | bytes) -> str:
    with pytest.raises(GgufError) as caught:
        parse_sidecar(name, text.encode() if isinstance(text, str) else text, model="one.gguf")
    assert caught.value.code in ("sidecar_invalid", "modelfile_invalid")
    assert not caught.value.unfinished
    return str(caught.value)


def verdict(name: str, text: str) -> str:
    try:
        parse(name, text)
    except GgufError as error:
        return error.code
    return ""


def test_every_field_of_the_own_form_is_read() -> None:
    read = parse("one.toml", TOML)
    assert (read.template, read.system, read.stop, read.num_ctx) == ("{{ .Prompt }}", "Be brief.", ("END",), 512)
    assert read.parameters == {"temperature": 0.7, "top_k": 40.0}
    assert (read.lineage.base, read.lineage.job, read.lineage.scores) == ("tiny", "train-7", {"accuracy": 0.93})


def test_every_command_of_a_modelfile_is_read() -> None:
    read = parse("one.Modelfile", MODELFILE)
    assert (read.template, read.system, read.stop) == (
        "{{ .System }}\n{{ .Prompt }}",
        "Be brief.",
        ("END", "STOP"),
    )
    assert (read.num_ctx, read.parameters, read.adapters, read.base) == (512, {"temperature": 0.7}, (), "")


def test_an_adapter_beside_is_named_by_both_forms() -> None:
    assert parse("one.Modelfile", "FROM ./one.gguf\nADAPTER ./lora.gguf").adapters[0].file == "lora.gguf"
    assert parse("one.toml", '[[adapters]]\nfile = "lora.gguf"').adapters[0].file == "lora.gguf"


def test_the_modelfile_of_an_adapter_names_its_base() -> None:
    read = parse("one.Modelfile", "FROM tiny\nADAPTER one.gguf")
    assert (read.base, read.adapters) == ("tiny", ())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("FROM other.gguf", "is not one.gguf"),
        ("FROM ../one.gguf", "is not one.gguf"),
        ("FROM /etc/one.gguf", "is not one.gguf"),
        ("SYSTEM x", "no FROM"),
        ("FROM one.gguf\nRENDERER x", "line 2: RENDERER is not served here"),
        ("FROM one.gguf\nPARAMETER num_thread 4", "line 2: PARAMETER num_thread"),
        ("FROM one.gguf\n\nPARAMETER temperature hot", "line 3: PARAMETER temperature is 'hot', no number"),
        ("FROM one.gguf\nPARAMETER temperature nan", "temperature is nan"),
        ("FROM one.gguf\nPARAMETER temperature 99", "temperature is 99"),
        ("FROM one.gguf\nPARAMETER top_k 1.5", "a whole number"),
        ("FROM one.gguf\nPARAMETER top_k inf", "top_k is inf"),
        ("FROM one.gguf\nPARAMETER num_ctx 1", "num_ctx"),
        ("FROM one.gguf\nPARAMETER", "says nothing"),
        ("FROM one.gguf\nFROM one.gguf", "a second FROM"),
        ('FROM one.gguf\nTEMPLATE """open', "not closed"),
        ('FROM one.gguf\nTEMPLATE """a""" b', "something follows"),
        ("FROM one.gguf\n!!", "is no command"),
        ("FROM one.gguf\nADAPTER a.gguf\nADAPTER b.gguf", "adapters"),
        ("FROM one.gguf\nADAPTER ../a.gguf", "file:"),
        ("FROM one.gguf\n" + "MESSAGE x\n" * MOST_COMMANDS, "too many commands"),
    ],
)
def test_a_modelfile_that_cannot_be_served_is_refused_by_name_and_line(text: str, told: str) -> None:
    assert told in refused("one.Modelfile", text)


@pytest.mark.parametrize(
    "text",
    [
        "x = ",
        "unknown = 1",
        'template = "' + "x" * (257 << 10) + '"',
        "stop = [" + '"a",' * 40 + "]",
        'stop = [""]',
        "num_ctx = 100",
        "[parameters]\nnum_thread = 4",
        "[parameters]\ntemperature = nan",
        "[parameters]\ntop_k = inf",
        "[lineage.scores]\naccuracy = nan",
        '[[adapters]]\nfile = "../lora.gguf"',
        '[[adapters]]\nfile = "a"\n[[adapters]]\nfile = "b"',
        '[[adapters]]\nfile = "a"\nscale = 0.5',
        "a = " + "[" * 5000 + "]" * 5000,
        "num_ctx = " + "1" * 5000,
        "a." * 200_000 + "b = 1",
        "[" + "a." * 200_000 + "b]",
        "x = {" + "a." * 200_000 + "b = 1}",
        b"\xff\xfe",
    ],
)
def test_a_sidecar_beyond_its_bounds_is_refused(text: str | bytes) -> None:
    assert len(refused("one.toml", text)) < 1200


def test_companions_belong_to_the_model_of_their_name() -> None:
    names = {"one.gguf", "two.GGUF", "one.toml", "one.gguf.sig", "two.GGUF.sig", "two.Modelfile", "Modelfile"}
    drop = find_drop(Path("one.gguf"), names)
    assert [path.name for path in drop.companions] == ["one.toml", "one.gguf.sig"]
    assert [path.name for path in find_drop(Path("two.GGUF"), names).companions] == ["two.Modelfile", "two.GGUF.sig"]
    assert all(is_companion(name) is (not name.lower().endswith(".gguf")) for name in names)


def test_a_plain_modelfile_counts_for_the_only_model() -> None:
    assert find_drop(Path("one.gguf"), {"one.gguf", "Modelfile"}).sidecar == Path("Modelfile")
    assert find_drop(Path("one.gguf"), {"one.gguf", "two.gguf", "Modelfile"}).sidecar is None
    assert find_drop(Path("one.gguf"), {"one.gguf", "one.toml", "Modelfile"}).sidecar == Path("one.toml")


async def test_a_sidecar_decides_how_its_model_is_served(bench: Bench) -> None:
    (bench.incoming / "one.toml").write_text(TOML)
    make_tiny_gguf(bench.incoming / "one.gguf")
    await bench.settle()
    (listed,) = await bench.registry.releases()
    release = listed.release
    assert (release.template, release.system, release.num_ctx) == ("{{ .Prompt }}", "Be brief.", 512)
    assert release.stop[0] == "END"
    assert "<|im_end|>" in release.stop  # the model's own end token, whatever a sidecar says
    assert dict(release.sampling) == {**dict(SAMPLING), "temperature": 0.7, "top_k": 40.0}
    assert (listed.lineage.job, listed.lineage.scores) == ("train-7", {"accuracy": 0.93})
    assert list(bench.incoming.iterdir()) == []


async def test_the_same_weights_with_another_sidecar_are_another_release_of_one_blob(bench: Bench) -> None:
    for temperature in ("0.1", "0.2"):
        (bench.incoming / "one.Modelfile").write_text(f"FROM one.gguf\nPARAMETER temperature {temperature}")
        make_tiny_gguf(bench.incoming / "one.gguf")
        await bench.settle()
    assert len(await bench.registry.releases()) == 2
    assert len(bench.blobs()) == 1


async def test_a_sidecar_that_comes_within_the_settle_time_counts(bench: Bench) -> None:
    make_tiny_gguf(bench.incoming / "one.gguf")
    await bench.watcher.look()
    bench.clock.now += 0.9
    (bench.incoming / "one.toml").write_text('system = "late"')
    await bench.watcher.look()
    bench.clock.now += 0.9
    await bench.watcher.look()
    assert await bench.names() == set()
    bench.clock.now += 0.2
    await bench.watcher.look()
    assert [one.release.system for one in await bench.registry.releases()] == ["late"]


async def test_a_sidecar_that_is_still_written_holds_its_model_back(bench: Bench) -> None:
    make_tiny_gguf(bench.incoming / "one.gguf")
    for size in range(5):
        (bench.incoming / "one.toml").write_text("#" * size + '\nsystem = "whole"')
        await bench.watcher.look()
        bench.clock.now += 0.7
    assert await bench.names() == set()


async def test_a_sidecar_alone_waits_for_its_model_and_is_refused_at_last(bench: Bench) -> None:
    (bench.incoming / "one.toml").write_text('system = "x"')
    (bench.incoming / "two.gguf.sig").write_text("x")
    await bench.settle(59)
    assert bench.rejected() == {}
    bench.clock.now += 2
    await bench.watcher.look()
    assert bench.rejected() == {"one.toml": "sidecar_alone", "two.gguf.sig": "sidecar_alone"}


async def test_a_bad_sidecar_is_refused_together_with_its_model(bench: Bench) -> None:
    (bench.incoming / "one.toml").write_text("num_ctx = 1")
    make_tiny_gguf(bench.incoming / "one.gguf")
    await bench.settle()
    assert bench.rejected() == {"one.gguf": "sidecar_invalid"}
    assert list(bench.incoming.iterdir()) == []
    assert (bench.layout.rejected / "one.gguf.with.one.toml").read_text() == "num_ctx = 1"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda path: path.symlink_to("/etc/passwd"), "sidecar_invalid"),
        (lambda path: path.mkdir(), "sidecar_invalid"),
        (lambda path: path.write_bytes(b"#" * (MOST_BYTES + 1)), "sidecar_invalid"),
        (lambda path: path.write_text("num_ctx = 4096"), "num_ctx_invalid"),
    ],
)
async def test_a_sidecar_that_is_no_small_file_is_not_read(bench: Bench, make: object, code: str) -> None:
    assert callable(make)
    make(bench.incoming / "one.toml")
    make_tiny_gguf(bench.incoming / "one.gguf", context_length=2048)
    await bench.settle()
    waits = [str(entry.detail["code"]) for entry in await bench.ledger.read() if entry.event == "candidate.waits"]
    assert [*bench.rejected().values(), *waits] == [code]
    assert await bench.names() == set()


async def test_two_sidecars_for_one_model_are_refused(bench: Bench) -> None:
    (bench.incoming / "one.toml").write_text("")
    (bench.incoming / "one.Modelfile").write_text("FROM one.gguf")
    make_tiny_gguf(bench.incoming / "one.gguf")
    await bench.settle()
    assert bench.rejected()["one.gguf"] == "sidecar_twice"


@given(st.text(max_size=300), st.sampled_from(["one.toml", "one.Modelfile"]))
def test_any_text_is_read_or_refused(text: str, name: str) -> None:
    """Guards the watcher: a sidecar may hold anything."""
    for said in (text, f"FROM one.gguf\n{text}", f"[parameters]\n{text}"):
        assert verdict(name, said) in ("", "sidecar_invalid", "modelfile_invalid")
