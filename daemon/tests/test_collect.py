"""Garbage collection: it frees what the budget asks for, and never what serves or what a rollback needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from intake_bench import Bench, make_bench

from loopd.collect import Collector, Holding, plan_collection
from loopd.config import RegistrySettings
from loopd.registry import CollectedError
from loopd.rejected import Refused, plan_trim, trim
from loopd.release import Release
from loopd.state import Database
from tiny_gguf import make_tiny_gguf

BLOBS = st.dictionaries(st.sampled_from([f"blob{n}" for n in range(8)]), st.just(0), min_size=1, max_size=3)
SIZES = st.lists(st.integers(0, 100), min_size=8, max_size=8)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Holding], frozenset[str], int, int]:
    """Releases that share blobs, some of them protected, a number to keep, a budget."""
    sizes = dict(zip([f"blob{n}" for n in range(8)], draw(SIZES), strict=True))
    held = draw(st.lists(BLOBS, max_size=8))
    releases = [
        Holding(id=f"release{n}", blobs=tuple((blob, sizes[blob]) for blob in blobs)) for n, blobs in enumerate(held)
    ]
    protected = draw(st.frozensets(st.sampled_from([f"release{n}" for n in range(8)])))
    return releases, protected, draw(st.integers(1, 9)), draw(st.integers(0, 500))


def size_of(releases: list[Holding]) -> int:
    return sum(dict(pair for one in releases for pair in one.blobs).values())


@given(cases())
def test_a_plan_keeps_what_it_must_and_frees_what_it_can(case: tuple[list[Holding], frozenset[str], int, int]) -> None:
    releases, protected, keep, budget = case
    plan = plan_collection(releases, protected=protected, keep=keep, budget=budget)
    gone = set(plan.releases)
    stay = [one for one in releases if one.id not in gone]
    assert not gone & protected
    assert not gone & {one.id for one in releases[:keep]}
    held = {blob for one in stay for blob, _ in one.blobs}
    assert not held & set(plan.blobs)
    assert {blob for one in releases for blob, _ in one.blobs} == held | set(plan.blobs)
    assert plan.freed_bytes == size_of(releases) - size_of(stay)
    assert plan.kept_bytes == size_of(stay)
    if size_of(releases) <= budget:
        assert not gone
    if plan.kept_bytes > budget:
        # Whatever else may go would free nothing.
        fixed = [one for n, one in enumerate(releases) if n < keep or one.id in protected]
        assert size_of(stay) == size_of(fixed)
    for release_id in gone:
        # Each one that goes frees bytes of its own or with others that go.
        (one,) = (one for one in releases if one.id == release_id)
        assert set(dict(one.blobs)) & set(plan.blobs)
    again = plan_collection(stay, protected=protected, keep=keep, budget=budget)
    assert set(again.releases) <= gone


def test_the_oldest_goes_first_and_no_more_than_needed() -> None:
    releases = [Holding(id=name, blobs=((name, 10),)) for name in ("new", "mid", "old")]
    plan = plan_collection(releases, protected=frozenset(), keep=1, budget=25)
    assert (plan.releases, plan.blobs, plan.freed_bytes, plan.kept_bytes) == (("old",), ("old",), 10, 20)


def test_shared_weights_go_only_with_the_last_that_holds_them() -> None:
    releases = [
        Holding(id="new", blobs=(("new", 1),)),
        Holding(id="tuned", blobs=(("base", 10), ("lora", 1))),
        Holding(id="base", blobs=(("base", 10),)),
    ]
    assert plan_collection(releases, protected={"tuned"}, keep=1, budget=5).releases == ()
    assert plan_collection(releases, protected=frozenset(), keep=1, budget=5).releases == ("base", "tuned")


@pytest.fixture
def bench(tmp_path: Path, database: Database) -> Bench:
    return make_bench(tmp_path / "home", database)


def collector(bench: Bench, *, budget: int = 1, keep: int = 1) -> Collector:
    return Collector(
        layout=bench.layout,
        blobs=bench.intake.blobs,
        registry=bench.registry,
        rollouts=bench.rollouts,
        ledger=bench.ledger,
        settings=RegistrySettings(budget_bytes=budget, keep=keep),
    )


async def releases(bench: Bench, count: int) -> list[Release]:
    """Take so many models in, oldest first; nothing is being rolled out afterwards."""
    found = []
    for seed in range(count):
        make_tiny_gguf(bench.incoming / f"m{seed}.gguf", seed=seed)
        await bench.settle()
        found.append((await bench.registry.releases())[0].release)
        home = bench.layout.engines / found[-1].short / "blobs"
        home.mkdir(parents=True)
        sha256 = found[-1].gguf_sha256
        os.link(bench.layout.blob(sha256), home / f"sha256-{sha256}")
    await bench.registry._database.execute("UPDATE rollouts SET phase = 'superseded', finished_at = '2026'")
    return found


async def test_what_serves_and_what_served_before_and_what_is_pinned_stays(bench: Bench) -> None:
    old, previous, champion, pinned, gone, newest = await releases(bench, 6)
    for release in (previous, champion):
        await bench.registry.promote(release.id)
    await bench.registry.set_pinned(pinned.id, pinned=True)
    dry = await collector(bench).collect(dry_run=True)
    assert set(dry.releases) == {old.id, gone.id}
    assert len(bench.blobs()) == 6
    assert await collector(bench).collect() == dry
    assert bench.blobs() == {f"{one.gguf_sha256}.gguf" for one in (previous, champion, pinned, newest)}
    assert {path.name for path in bench.layout.engines.iterdir()} == {
        one.short for one in (previous, champion, pinned, newest)
    }
    events = [entry for entry in await bench.ledger.read() if entry.event == "release.collected"]
    assert {entry.subject for entry in events} == {old.short, gone.short}
    assert (await collector(bench).collect()).releases == ()


async def test_a_release_that_is_being_rolled_out_stays(bench: Bench) -> None:
    old, _, _ = await releases(bench, 3)
    await bench.rollouts.request(old, kind="rollout", reason="test")
    assert old.id not in (await collector(bench).collect()).releases
    assert bench.layout.blob(old.gguf_sha256).exists()


async def test_a_release_asked_for_between_plan_and_removal_stays(bench: Bench) -> None:
    """The operator's promote and the collection may come in the same moment."""
    old, _, _ = await releases(bench, 3)
    plan = await collector(bench)._plan()
    assert old.id in plan.releases
    await bench.rollouts.request(old, kind="rollout", reason="test")
    await collector(bench)._remove(plan)
    assert bench.layout.blob(old.gguf_sha256).exists()
    assert (await bench.registry.listed(old.id)).removed_at is None


async def test_a_kill_between_the_record_and_the_removal_is_made_good(bench: Bench) -> None:
    old, newest = await releases(bench, 2)
    assert await bench.registry.mark_removed(old.id)
    await collector(bench, budget=1 << 30).collect()
    assert bench.blobs() == {f"{newest.gguf_sha256}.gguf"}
    assert {path.name for path in bench.layout.engines.iterdir()} == {newest.short}


async def test_a_collected_release_says_so_and_comes_back_with_its_file(bench: Bench) -> None:
    old, _ = await releases(bench, 2)
    await collector(bench).collect()
    with pytest.raises(CollectedError, match=r"drop m0\.gguf into models/incoming again"):
        await bench.registry.check_kept(old.id)
    make_tiny_gguf(bench.incoming / "back.gguf", seed=0)
    await bench.settle()
    await bench.registry.check_kept(old.id)
    assert bench.layout.blob(old.gguf_sha256).exists()
    assert len(await bench.registry.releases()) == 2


async def test_files_of_which_nothing_is_known_go_only_when_a_person_asks(bench: Bench) -> None:
    """After the loss of state.db they are all that is left of the models; a half copy is nothing."""
    unknown = f"{'f' * 64}.gguf"
    (bench.layout.blobs / unknown).write_bytes(b"lost")
    await collector(bench, budget=1 << 30).collect(unknown=True)
    assert bench.blobs() == {unknown}
    (kept,) = await releases(bench, 1)
    (bench.layout.blobs / ".copying-0011").write_bytes(b"half")
    (bench.layout.engines / ("0" * 12)).mkdir()
    (bench.layout.engines / "something-else").mkdir()
    await collector(bench, budget=1 << 30).collect()
    assert bench.blobs() == {f"{kept.gguf_sha256}.gguf", unknown}
    await collector(bench, budget=1 << 30).collect(unknown=True)
    assert bench.blobs() == {f"{kept.gguf_sha256}.gguf"}
    assert {path.name for path in bench.layout.engines.iterdir()} == {kept.short, "something-else"}


REFUSED = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 10)), max_size=20)


@given(REFUSED, st.integers(0, 10), st.integers(0, 300))
def test_refused_files_are_bounded_and_the_newest_stay(facts: list[tuple[int, int]], files: int, size: int) -> None:
    refused = [Refused(Path(f"{n:02}"), size=one, at=float(at)) for n, (one, at) in enumerate(facts)]
    going = plan_trim(refused, files=files, size=size)
    stay = [one for one in refused if one not in going]
    assert len(stay) <= files
    assert sum(one.size for one in stay) <= size
    assert all(old.at <= new.at for old in going for new in stay)
    if len(refused) <= files and sum(one.size for one in refused) <= size:
        assert going == ()


async def test_old_refused_files_go_with_their_reasons(bench: Bench) -> None:
    for number in range(4):
        (bench.incoming / f"bad{number}.gguf").write_bytes(b"no model" * 1000)
        await bench.settle()
    trim(bench.layout.rejected, files=2)
    assert {path.name for path in bench.layout.rejected.iterdir()} == {
        *("bad2.gguf", "bad2.gguf.reason.json"),
        *("bad3.gguf", "bad3.gguf.reason.json"),
    }
    trim(bench.layout.rejected, size=0)
    assert list(bench.layout.rejected.iterdir()) == []


async def test_a_refused_folder_and_a_refused_link_are_removed_without_following(bench: Bench, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    (bench.layout.rejected / "folder").mkdir()
    (bench.layout.rejected / "folder" / "link").symlink_to(outside)
    (bench.layout.rejected / "link").symlink_to(outside)
    trim(bench.layout.rejected, files=0)
    assert list(bench.layout.rejected.iterdir()) == []
    assert (outside / "kept").exists()
