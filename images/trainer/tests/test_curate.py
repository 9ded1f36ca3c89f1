from __future__ import annotations

import errno
import gzip
import json
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images.trainer.tests.test_normalise import INTERACTION, OPENAI
from images.trainer.tests.training_rows import call, result, row, rows, say, user
from pyarrow import parquet

from loopbox_trainer import curate
from loopbox_trainer.curate import CancelledError, Places, main, run
from loopbox_trainer.curate_spec import CurateSpec, SourceSpec
from loopbox_trainer.errors import TrainerError
from loopbox_trainer.rows import Row, encode, parse_pair, parse_row

FILES = ("train.jsonl", "valid.jsonl", "test.jsonl", "pairs.jsonl", "bad.jsonl", "rejected.jsonl", "manifest.json")
TINY: dict[str, Any] = {"least_rows": 1, "least_kinds": 1, "test": 0.0, "valid": 0.0}


def quiet(event: str, **more: Any) -> None:
    pass


@pytest.fixture
def places(tmp_path: Path) -> Places:
    made = Places(tmp_path / "job", tmp_path / "data")
    made.job.mkdir()
    made.data.mkdir()
    return made


def write(places: Places, some: list[Row] | list[bytes], name: str = "a.jsonl") -> str:
    lines = [one if isinstance(one, bytes) else encode(one) for one in some]
    (places.data / name).write_bytes(b"\n".join(lines) + b"\n")
    return name


def spec(*paths: str, **more: Any) -> CurateSpec:
    sources = tuple({"name": path.split(".")[0], "path": path} for path in paths)
    return CurateSpec.model_validate({"sources": sources, **TINY, **more})


def many(count: int, *, start: int = 0) -> list[Row]:
    """Rows that have nothing in common."""
    made = []
    for n in range(start, start + count):
        words = " ".join(f"{word}{n}" for word in ("show", "me", "what", "is", "in"))
        asked = user(words)
        said = (asked, call(f"p{n}"), result(f"r{n}"), say(f"answer {n} of {n}"))
        made.append(row(*said) if n % 2 else row(asked, say(f"yes {n} it is")))
    return made


def read(places: Places, name: str) -> list[Row]:
    return [parse_row(line) for line in (places.job / "out" / f"{name}.jsonl").read_bytes().splitlines()]


def texts(some: list[Row]) -> set[str]:
    return {str(one.messages) for one in some}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rows(), min_size=1, max_size=30), st.integers(0, 3))
def test_counts_add_up_splits_leak_nothing_and_the_same_comes_out_twice(
    tmp_path: Path, some: list[Row], seed: int
) -> None:
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    places = Places(tmp_path / "x" / "job", tmp_path / "x" / "data")
    places.job.mkdir(parents=True)
    places.data.mkdir()
    asked = spec(write(places, some), seed=seed, test=0.3, valid=0.3)
    try:
        made = run(asked, places, quiet)
    except TrainerError as error:
        assert error.code in {"too_few_rows", "nothing_to_test"}  # noqa: PT017 either way is fine
        assert not (places.job / "out").exists()
        return
    before = {name: (places.job / "out" / name).read_bytes() for name in FILES}
    assert run(asked, places, quiet) == made
    assert {name: (places.job / "out" / name).read_bytes() for name in FILES} == before
    for step in made["steps"]:
        assert step["in"] + step["added"] == step["out"] + sum(step["dropped"].values()), step
    for one, other in zip(made["steps"][:8], made["steps"][1:8], strict=False):
        assert one["out"] == other["in"]
    parts = {name: read(places, name) for name in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == made["steps"][7]["out"]
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not {r.conversation for r in parts[one]} & {r.conversation for r in parts[other]}
        assert not {r.messages[0].content for r in parts[one]} & {r.messages[0].content for r in parts[other]}
    ids = [r.id for part in parts.values() for r in part]
    assert len(ids) == len(set(ids))


def test_a_source_in_another_order_gives_the_same_files_where_no_copies_are(places: Places) -> None:
    some = many(60)
    run(spec(write(places, some), test=0.2), places, quiet)
    first = texts(read(places, "test"))
    run(spec(write(places, some[::-1]), test=0.2), places, quiet)
    assert texts(read(places, "test")) == first


def test_near_copies_go_and_near_relatives_stay_together(places: Places) -> None:
    words = [f"word{n}" for n in range(30)]
    near = [row(user(" ".join([*words, f"end{n}"])), say(" ".join(words[::-1]))) for n in range(6)]
    name = write(places, near + many(40))
    made = run(spec(name, test=0.4), places, quiet)
    assert next(step for step in made["steps"] if step["name"] == "near_dedup")["dropped"] == {"near_copy": 5}
    sources = [{"name": "a", "path": name, "keep_near": True}]
    run(CurateSpec.model_validate({"sources": sources, **TINY, "test": 0.4}), places, quiet)
    kept = Counter(
        part for part in ("train", "test") for one in read(places, part) if "word0" in one.messages[0].content
    )
    assert list(kept.values()) == [6]


def test_every_form_and_kind_of_file_is_read(places: Places) -> None:
    write(places, [json.dumps(INTERACTION).encode()], "interactions.jsonl")
    (places.data / "packed.jsonl.gz").write_bytes(
        gzip.compress(json.dumps({"prompt": "add", "completion": "3"}).encode())
    )
    (places.data / "list.json").write_text(json.dumps([{"instruction": "one", "output": "two"}]))
    parquet.write_table(
        pa.Table.from_pylist([{"question": "why not", "answer": "so\n#### 4"}]), places.data / "t.parquet"
    )
    write(places, [encode(row())], "rows.jsonl")
    (places.data / "tools.json").write_text(json.dumps(OPENAI["tools"]))
    paths = ("interactions.jsonl", "packed.jsonl.gz", "list.json", "t.parquet", "rows.jsonl")
    made = run(spec(*paths, tools="tools.json"), places, quiet)
    by_source = {"interactions": 1, "packed": 1, "list": 1, "t": 1, "rows": 1}
    assert made["splits"]["train"]["by_source"] == by_source
    assert {source["source"] for source in made["sources"]} == set(by_source)
    assert all(len(source["sha256"]) == 64 for source in made["sources"])


def test_a_parquet_file_that_unpacks_to_more_than_may_be_is_not_unpacked(places: Places) -> None:
    table = pa.Table.from_pylist([{"prompt": "x" * 1_000_000, "completion": "y"}])
    parquet.write_table(table, places.data / "t.parquet")
    with pytest.raises(TrainerError, match="most_bytes"):
        run(spec("t.parquet", most_bytes=10_000), places, quiet)
    (places.data / "u.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(TrainerError, match="no Parquet"):
        run(spec("u.parquet"), places, quiet)


def test_of_a_dump_only_what_users_agreed_to_is_read(places: Places) -> None:
    """The conversations in it are everybody's."""
    kept = INTERACTION | {"messages": json.dumps(INTERACTION["messages"]), "tools": json.dumps(OPENAI["tools"])}
    other = {"thread_id": "thread_2", "run_id": "run_2", "body": json.dumps(INTERACTION["messages"][0])}
    told = [{"table": "messages", "row": other}, {"table": "interactions", "row": kept}]
    lines = [{"format": "loopbox-agent-dump-1", "schema": 1}, *told, {"rows": 2, "sha256": "x"}]
    (places.data / "d.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    source = {"name": "store", "path": "d.gz", "form": "dump", "mask": False}
    made = run(CurateSpec.model_validate({"sources": [source], **TINY}), places, quiet)
    assert made["splits"]["train"]["by_outcome"] == {"good": 1}
    (only,) = read(places, "train")
    assert (only.conversation, only.meta["origin"]) == ("thread_1", "run_1")


@pytest.mark.parametrize(
    "lines",
    [b"{}", b'{"format": "other"}', b"[]", b'{"format": "loopbox-agent-dump-1"}\n{"table": "interactions", "row": {}}'],
)
def test_what_is_no_dump_is_said(places: Places, lines: bytes) -> None:
    (places.data / "d.gz").write_bytes(gzip.compress(lines))
    source = {"name": "store", "path": "d.gz", "form": "dump"}
    with pytest.raises(TrainerError, match="is no dump"):
        run(CurateSpec.model_validate({"sources": [source], **TINY}), places, quiet)


@pytest.mark.parametrize("failed", [[], ["c1"]])
def test_a_better_answer_is_learnt_and_preferred(places: Places, failed: list[str]) -> None:
    better = {"rating": "bad", "better": "It has 4, says jane.doe@example.org", "failed_calls": failed}
    (places.data / "tools.json").write_text(json.dumps(OPENAI["tools"]))
    name = write(places, [json.dumps(INTERACTION | better).encode()])
    run(spec(name, tools="tools.json"), places, quiet)
    (only,) = read(places, "train")
    assert only.messages[-1] == say("It has 4, says [pii:email]")
    assert only.outcome == "good"
    assert len(only.messages) == (2 if failed else 4)
    (pair,) = [parse_pair(line) for line in (places.job / "out/pairs.jsonl").read_bytes().splitlines()]
    assert pair.chosen == only.messages[-1:]
    assert pair.rejected[0].tool_calls if failed else pair.rejected == (say("3"),)


def test_bad_answers_are_not_trained_but_preferred_against(places: Places) -> None:
    good = [row(user(f"show file {n}"), call(f"a{n}.txt"), outcome="good") for n in range(4)]
    bad = [row(user(f"show file {n}"), say("no idea at all"), outcome="bad") for n in range(4)]
    made = run(spec(write(places, good + bad)), places, quiet)
    assert texts(read(places, "train")) == texts(good)
    assert texts(read(places, "bad")) == texts(bad)
    pairs = [parse_pair(line) for line in (places.job / "out/pairs.jsonl").read_bytes().splitlines()]
    assert sorted(pair.prompt[0].content for pair in pairs) == [f"show file {n}" for n in range(4)]
    assert all(pair.chosen[0].tool_calls and pair.rejected[0] == say("no idea at all") for pair in pairs)
    assert made["files"]["pairs.jsonl"]["lines"] == 4


def test_broken_rows_are_kept_aside_with_reasons_and_without_secrets(places: Places) -> None:
    lines = [b'{"password": "hunter2hunter2', b"[]", b'{"x": 1}', b'"' + b"x" * 300_000 + b'"', *map(encode, many(3))]
    made = run(spec(write(places, lines)), places, quiet)
    aside = (places.job / "out/rejected.jsonl").read_text()
    told = [json.loads(line) for line in aside.splitlines()]
    assert [one["reason"] for one in told] == ["broken_json", "not_an_object", "unknown_form", "too_large"]
    assert [one["number"] for one in told] == [1, 2, 3, 4]
    assert "hunter2" not in aside
    assert made["steps"][0]["dropped"] == {"broken_json": 1, "not_an_object": 1, "too_large": 1, "unknown_form": 1}


def test_total_and_weights_choose_the_mix(places: Places) -> None:
    one, other = write(places, many(40), "a.jsonl"), write(places, many(40, start=100), "b.jsonl")
    sources = [{"name": "a", "path": one, "weight": 3}, {"name": "b", "path": other}]
    made = run(CurateSpec.model_validate({"sources": sources, **TINY, "total": 20}), places, quiet)
    assert made["splits"]["train"]["by_source"] == {"a": 15, "b": 5}


def test_what_is_held_out_is_tested_never_trained(places: Places) -> None:
    one, other = write(places, many(20), "a.jsonl"), write(places, [*many(20, start=100), *many(1)], "b.jsonl")
    sources = [{"name": "a", "path": one}, {"name": "b", "path": other, "held_out": True}]
    made = run(CurateSpec.model_validate({"sources": sources, **TINY}), places, quiet)
    assert made["splits"]["train"]["by_source"] == {"a": 20}
    assert made["splits"]["test"]["by_source"] == {"b": 20}


@pytest.mark.parametrize(
    ("lines", "more", "code"),
    [
        ([], {}, "empty"),
        ([b"", b"  "], {}, "empty"),
        (many(5), {"least_rows": 32}, "too_few_rows"),
        (many(1) * 50, {"least_rows": 32}, "too_few_rows"),
        ([b"rubbish"] * 10, {}, "too_few_rows"),
        ([one for one in many(40) if len(one.messages) > 2], {"least_kinds": 2}, "one_class"),
        (many(40), {"most_rows": 10}, "too_many_rows"),
        (many(40), {"most_bytes": 100}, "too_many_bytes"),
        (many(40), {"most_seconds": 1e-9}, "too_slow"),
        ([b"[1, 2"], {}, "unreadable"),
        ([b"\x1f\x8bxxxxxxxxxx"], {}, "unreadable"),
        (many(40), {"tools": "a.jsonl"}, "bad_tools"),
        (many(40), {"tools": "../a"}, "no_source"),
    ],
)
def test_unfit_data_is_said_and_leaves_what_was_there(
    places: Places, lines: list[Row] | list[bytes], more: dict[str, Any], code: str
) -> None:
    (places.job / "out").mkdir()
    (places.job / "out" / "manifest.json").write_text("of before")
    (places.job / "spec.json").write_text(spec(write(places, lines), **more).model_dump_json())
    assert main(places.job, places.data) == 3
    told = json.loads((places.job / "result.json").read_text())
    assert (told["status"], told["code"]) == ("failed", code)
    assert told["message"]
    assert [path.name for path in (places.job / "out").iterdir()] == ["manifest.json"]


def test_tools_from_outside_count_as_bytes_that_are_kept(places: Places) -> None:
    big = [{"name": "read_file", "description": "x" * 50_000, "parameters": {}}]
    (places.data / "tools.json").write_text(json.dumps(big))
    name = write(places, [json.dumps(INTERACTION | {"run_id": f"r{n}"}).encode() for n in range(3)] + [b"", b""])
    with pytest.raises(TrainerError, match="What is kept"):
        run(spec(name, tools="tools.json", most_bytes=40_000), places, quiet)


@pytest.mark.parametrize("path", ["b.jsonl", "../data", "x/../../job", "/etc/passwd", ""])
def test_only_what_is_below_the_data_is_read(places: Places, path: str) -> None:
    raw = {"sources": [{"name": "a", "path": path}], **TINY}
    (places.job / "spec.json").write_text(json.dumps(raw))
    assert main(places.job, places.data) == 3
    assert json.loads((places.job / "result.json").read_text())["code"] in {"no_source", "bad_spec"}


def test_a_link_that_leads_elsewhere_is_not_followed(places: Places) -> None:
    (places.job / "secret.jsonl").write_text("{}")
    (places.data / "a.jsonl").symlink_to(places.job / "secret.jsonl")
    with pytest.raises(TrainerError, match="There is no"):
        run(spec("a.jsonl"), places, quiet)


def test_a_done_job_tells_figures_files_and_events(places: Places) -> None:
    (places.job / "spec.json").write_text(spec(write(places, many(20))).model_dump_json())
    assert main(places.job, places.data) == 0
    told = json.loads((places.job / "result.json").read_text())
    assert told["status"] == "done"
    assert told["figures"]["train"] == 20
    assert set(told["files"]) == set(FILES)
    events = [json.loads(line)["event"] for line in (places.job / "events.jsonl").read_text().splitlines()]
    assert events == ["phase", "phase", "phase", "done"]


def test_a_spec_that_cannot_be_used_is_unfit(places: Places) -> None:
    for text in ("{", "{}", '{"sources": [], "surprise": 1}'):
        (places.job / "spec.json").write_text(text)
        assert main(places.job, places.data) == 3
        assert json.loads((places.job / "result.json").read_text())["code"] == "bad_spec"


def test_stopping_writes_nothing(places: Places) -> None:
    with pytest.raises(CancelledError):
        run(spec(write(places, many(20))), places, quiet, lambda: True)
    assert not (places.job / "out").exists()


def test_a_signal_ends_the_job_as_cancelled(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spec(write(places, many(20)))

    def stopped(_path: Path) -> CurateSpec:
        signal.raise_signal(signal.SIGTERM)
        return asked

    monkeypatch.setattr(curate, "read_spec", stopped)
    assert main(places.job, places.data) == 0
    assert json.loads((places.job / "result.json").read_text())["status"] == "cancelled"
    assert not (places.job / "out").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("fault", "code"), [(OSError(errno.ENOSPC, "full"), "disk_full"), (MemoryError(), "out_of_memory")]
)
def test_a_full_disk_or_memory_is_said(
    places: Places, monkeypatch: pytest.MonkeyPatch, fault: Exception, code: str
) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(curate, "write_lines", fail)
    (places.job / "spec.json").write_text(spec(write(places, many(20))).model_dump_json())
    assert main(places.job, places.data) == 4
    assert json.loads((places.job / "result.json").read_text())["code"] == code
    assert not (places.job / "out").exists()


def test_an_unknown_field_of_a_source_is_refused() -> None:
    with pytest.raises(ValueError, match="surprise"):
        SourceSpec.model_validate({"name": "a", "path": "a", "surprise": 1})
