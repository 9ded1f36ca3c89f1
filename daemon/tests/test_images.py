"""Images: the digest that names them, their order, the record of them, and real builds of a tiny one."""

from __future__ import annotations

import io
import json
import os
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopd.docker_engine import LABEL_INSTANCE, Connection
from loopd.docker_images import LABEL_BUILT, BuildError, DockerImages, build_context, find_bundle, proxies
from loopd.images import (
    DEBIAN,
    Entry,
    ImagesError,
    ImageSet,
    Recipe,
    cpu_name,
    digest_of,
    image_set,
    load_images,
    plan_images,
    read_folder,
    save_images,
)

IMAGES = ("base", "gateway", "ollama", "agent", "toolrunner", "egress", "browser", "trainer")
TAGS = {name: f"loopbox/{name}:0123456789ab" for name in IMAGES}
CPUINFO = "processor\t: 0\nmodel name\t: Brand One\nflags\t\t: avx2 fma\ncpu MHz\t: 2100\n\nprocessor\t: 1\n"

names = st.text(st.characters(codec="ascii", exclude_characters="/\0", min_codepoint=32), min_size=1, max_size=9)
entries = st.lists(
    st.builds(
        Entry, path=names, mode=st.sampled_from([0o644, 0o755]), content=st.binary(max_size=20), link=st.booleans()
    ),
    unique_by=lambda e: e.path,
    max_size=5,
).map(tuple)


def folder(root: Path, name: str, dockerfile: str = "FROM debian:bookworm-slim\n", **files: str) -> Path:
    path = root / name
    path.mkdir(parents=True)
    (path / "Dockerfile").write_text(dockerfile)
    for file, text in files.items():
        (path / file).write_text(text)
    return path


def appliance(root: Path) -> Path:
    folder(root, "base")
    folder(root, "ollama")
    for name in ("gateway", "agent", "toolrunner", "egress", "trainer"):
        folder(root, name, "ARG BASE=loopbox/base:dev\nFROM ${BASE}\n")
    folder(root, "browser", "ARG BASE=loopbox/toolrunner:dev\nFROM ${BASE}\n")
    return root


@given(entries, entries)
def test_a_digest_is_the_same_exactly_for_the_same_content(one: tuple[Entry, ...], two: tuple[Entry, ...]) -> None:
    """A change that keeps the tag would leave the old image running."""

    def content(found: tuple[Entry, ...]) -> set[tuple[str, object, bytes]]:
        return {(e.path, "link" if e.link else e.mode, e.content) for e in found}

    assert (digest_of(one, ()) == digest_of(two, ())) == (content(one) == content(two))
    assert digest_of(one, ()) == digest_of(reversed(one), ())


@given(st.dictionaries(names, names, max_size=3), st.dictionaries(names, names, max_size=3), names, names)
def test_a_digest_differs_with_arguments_and_salt(
    one: dict[str, str], two: dict[str, str], salt: str, other: str
) -> None:
    """Two arguments whose texts run together must not meet in one digest."""
    mine, theirs = digest_of((), one.items(), salt=salt), digest_of((), two.items(), salt=other)
    assert (mine == theirs) == ((one, salt) == (two, other))


def test_readme_tests_and_leftovers_are_no_content(tmp_path: Path) -> None:
    """A typo in a README must not cost a rebuild of minutes."""
    path = folder(tmp_path, "base", source="1")
    before = read_folder(path)
    (path / "README.md").write_text("x")
    (path / "tests").mkdir()
    (path / "tests" / "test_x.py").write_text("x")
    (path / "src" / "__pycache__").mkdir(parents=True)
    (path / "src" / "__pycache__" / "a.pyc").write_text("x")
    assert read_folder(path) == before
    (path / "src" / "a.py").write_text("x")
    assert len(read_folder(path)) == len(before) + 1


def test_a_clones_umask_is_no_content_but_the_executable_bit_is(tmp_path: Path) -> None:
    """Two clones of one commit must share their images."""
    path = folder(tmp_path, "base", run="x")
    before = read_folder(path)
    (path / "run").chmod(0o664)
    assert read_folder(path) == before
    (path / "run").chmod(0o775)
    assert read_folder(path) != before


def test_a_change_of_the_base_changes_every_tag_on_it_and_no_other(tmp_path: Path) -> None:
    """The parent's tag is content: else a child keeps standing on the old base."""
    root = appliance(tmp_path)
    before = image_set(plan_images(root))
    (root / "base" / "new").write_text("x")
    after = image_set(plan_images(root))
    assert {n for n in ImageSet.model_fields if getattr(before, n) != getattr(after, n)} == {
        "base",
        "gateway",
        "agent",
        "toolrunner",
        "egress",
        "trainer",
        "browser",
    }


def test_the_browsers_image_stands_on_the_tool_runners(tmp_path: Path) -> None:
    """Its tools are the tool runner's and more, so a change there must reach it."""
    root = appliance(tmp_path)
    before = image_set(plan_images(root))
    (root / "toolrunner" / "new").write_text("x")
    after = image_set(plan_images(root))
    assert {n for n in ImageSet.model_fields if getattr(before, n) != getattr(after, n)} == {"toolrunner", "browser"}
    assert [r.name for r in plan_images(root, ["browser"])] == ["base", "toolrunner", "browser"]


def test_a_record_of_before_there_was_a_browser_is_read(tmp_path: Path) -> None:
    """After an update and before the next `make up`, the daemon must still start."""
    older = {name: tag for name, tag in TAGS.items() if name not in {"egress", "browser"}}
    (tmp_path / "images.json").write_text(json.dumps(older))
    assert load_images(tmp_path).tags() == tuple(older.values())


def test_parents_come_first_and_are_passed_to_their_children(tmp_path: Path) -> None:
    recipes = plan_images(appliance(tmp_path), ["agent"])
    assert [r.name for r in recipes] == ["base", "agent"]
    assert recipes[1].parent == recipes[0].tag
    assert recipes[1].arguments == (("BASE", recipes[0].tag),)


def test_the_processor_is_content_of_the_engine_alone(tmp_path: Path) -> None:
    """A native build that is kept on another processor ends with an illegal instruction."""
    root = appliance(tmp_path)
    portable, one, two = (image_set(plan_images(root, cpu=cpu)) for cpu in (None, "one", "two"))
    assert len({portable.ollama, one.ollama, two.ollama}) == 3
    assert {s.model_copy(update={"ollama": "x:y"}) for s in (portable, one, two)} == {
        portable.model_copy(update={"ollama": "x:y"})
    }
    ollama = next(r for r in plan_images(root, cpu="one") if r.name == "ollama")
    assert ollama.arguments == (("CPU_FLAGS", "-march=native"),)


def test_a_processors_name_is_what_it_can_do() -> None:
    """Its clock changes by the second, and the order of its flags means nothing."""
    again = CPUINFO.replace("2100", "1800").replace("avx2 fma", "fma avx2")
    assert cpu_name(CPUINFO) == cpu_name(again)
    assert cpu_name(CPUINFO) != cpu_name(CPUINFO.replace("avx2", "avx512f"))


def test_a_circle_a_missing_folder_and_a_giant_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, "one", "ARG BASE=loopbox/two:dev\nFROM ${BASE}\n")
    folder(tmp_path, "two", "ARG BASE=loopbox/one:dev\nFROM ${BASE}\n")
    with pytest.raises(ImagesError, match="circle"):
        plan_images(tmp_path, ["one"])
    with pytest.raises(ImagesError, match="three"):
        plan_images(tmp_path, ["three"])
    (tmp_path / "four").mkdir()
    with pytest.raises(ImagesError, match="no Dockerfile"):
        plan_images(tmp_path, ["four"])
    os.mkfifo(folder(tmp_path, "five") / "pipe")
    with pytest.raises(ImagesError, match="neither a file nor a link"):
        plan_images(tmp_path, ["five"])
    monkeypatch.setattr("loopd.images.MOST_BYTES", 10)
    with pytest.raises(ImagesError, match="holds more than"):
        read_folder(folder(tmp_path, "six"))


def test_the_record_of_images_is_read_as_it_was_written(tmp_path: Path) -> None:
    images = ImageSet(**TAGS)
    save_images(tmp_path, images)
    assert load_images(tmp_path) == images
    assert images.tags() == tuple(TAGS.values())
    assert [p.name for p in tmp_path.iterdir()] == ["images.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        json.dumps({**TAGS, "base": "no tag"}),
        json.dumps({**TAGS, "more": "a:b"}),
        json.dumps({"base": "a:b"}),
    ],
)
def test_a_broken_record_of_images_stops_the_start_with_advice(tmp_path: Path, text: str) -> None:
    (tmp_path / "images.json").write_text(text)
    with pytest.raises(ImagesError, match="make up"):
        load_images(tmp_path)


def test_a_missing_record_of_images_stops_the_start_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="make up"):
        load_images(tmp_path)
    (tmp_path / "images.json").mkdir()
    with pytest.raises(ImagesError, match="cannot be read"):
        load_images(tmp_path)


def test_a_link_to_another_images_file_is_that_file_and_no_other_link_is(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "images", "one"), folder(tmp_path / "images", "two")
    (one / "rules.py").write_text("shared")
    (tmp_path / "secret").write_text("elsewhere")
    links = {
        "shared.py": "../one/rules.py",
        "own": "Dockerfile",
        "out": "../../secret",
        "dir": "../one",
        "gone": "../one/x",
    }
    for name, leads_to in links.items():
        (two / name).symlink_to(leads_to)
    found = {entry.path: entry for entry in read_folder(two)}
    assert (found["shared.py"].link, found["shared.py"].content) == (False, b"shared")
    assert all(
        found[name].link and found[name].content == links[name].encode() for name in links if name != "shared.py"
    )
    before = digest_of(found.values(), ())
    (one / "rules.py").write_text("changed")
    assert digest_of(read_folder(two), ()) != before


def test_the_context_holds_the_bundle_links_and_our_label_in_every_stage() -> None:
    """Without the label `purge` leaves untagged build stages of gigabytes behind."""
    dockerfile = b"ARG BASE=x\nFROM ${BASE} AS build\nRUN true\nFROM debian\nCOPY --from=build /a /a\n"
    parts = (Entry("Dockerfile", 0o644, dockerfile), Entry("run", 0o755, b"x"), Entry("at", 0o644, b"run", link=True))
    with tarfile.open(fileobj=build_context("agent", parts, b"certificates")) as tar:
        found = {m.name: m for m in tar.getmembers()}
        text = _text(tar, "Dockerfile")
        assert _text(tar, "ca-certificates.crt") == "certificates"
    assert text.splitlines()[1:3] == ["FROM ${BASE} AS build", "LABEL loopbox.built=agent"]
    assert text.splitlines()[4:6] == ["FROM debian", "LABEL loopbox.built=agent"]
    assert text.count("LABEL") == 2
    assert (found["run"].mode, found["at"].linkname) == (0o755, "run")
    assert all(m.mtime == 0 and m.uid == 0 for m in found.values())


def _text(tar: tarfile.TarFile, name: str) -> str:
    file = tar.extractfile(name)
    assert file is not None
    return file.read().decode()


def test_the_bundle_is_the_one_the_environment_names(tmp_path: Path) -> None:
    named = tmp_path / "bundle"
    named.write_bytes(b"mine")
    assert find_bundle({"SSL_CERT_FILE": str(named)}) == b"mine"
    assert find_bundle({"SSL_CERT_FILE": str(tmp_path / "gone")}) == find_bundle({})


def test_only_proxies_are_passed_on() -> None:
    given_ = {"http_proxy": "http://p", "NO_PROXY": "a", "HTTPS_PROXY": "", "TOKEN": "secret"}
    assert proxies(given_) == {"http_proxy": "http://p", "NO_PROXY": "a"}


@pytest.fixture
def engine() -> Iterator[DockerImages]:
    instance = f"t{uuid.uuid4().hex[:10]}"
    with DockerImages(Connection(None, instance)) as opened:
        yield opened
        opened.remove_containers()


@pytest.fixture
def recipe(tmp_path: Path, engine: DockerImages) -> Iterator[Recipe]:
    """A tiny image of two stages that no other test's can be taken for; all it leaves is removed."""
    word = uuid.uuid4().hex[:12]
    dockerfile = (
        f"FROM {DEBIAN} AS build\nCOPY ca-certificates.crt word /\nRUN cat /word > /made\n"
        f"FROM {DEBIAN}\nCOPY --from=build /made /made\n"
    )
    path = folder(tmp_path, "tiny", dockerfile, word=word)
    yield Recipe(name=f"tiny-{word}", folder=path, tag=f"loopbox/tiny:{word}", parent=None, arguments=())
    client = Connection(None, "none").client()
    while left := client.images.list(filters={"label": f"{LABEL_BUILT}=tiny-{word}"}):
        for image in left:
            client.images.remove(str(image.id), force=True)
    client.close()


@pytest.mark.docker
def test_an_image_is_built_told_of_and_found(engine: DockerImages, recipe: Recipe) -> None:
    told: list[str] = []
    assert not engine.has(recipe.tag)
    engine.build(recipe, told.append)
    assert engine.has(recipe.tag)
    assert any("COPY --from=build" in line for line in told)
    assert not any("\x1b" in line for line in told)


@pytest.mark.docker
def test_a_build_that_fails_names_the_image_the_cause_and_the_last_lines(engine: DockerImages, recipe: Recipe) -> None:
    (recipe.folder / "Dockerfile").write_text(f"FROM {DEBIAN}\nRUN echo last words && exit 7\n")
    with pytest.raises(BuildError, match=r"(?s)tiny\S+ could not be built: .*code: 7.*last words.*make up"):
        engine.build(recipe, lambda _: None)
    assert not engine.has(recipe.tag)
    (recipe.folder / "Dockerfile").write_text("FROM\n")
    with pytest.raises(BuildError, match="tiny"):
        engine.build(recipe, lambda _: None)


@pytest.mark.docker
def test_containers_of_others_are_seen_and_left(engine: DockerImages, recipe: Recipe) -> None:
    """`down` of one instance must not take another's containers, and must know that they run."""
    engine.build(recipe, lambda _: None)
    client = Connection(None, "none").client()
    mine, other = engine.instance, f"t{uuid.uuid4().hex[:10]}"
    client.networks.create(f"{mine}-internal", internal=True, labels={LABEL_INSTANCE: mine})
    started = [
        client.containers.run(
            recipe.tag, ["sleep", "300"], detach=True, network_mode="none", name=owner, labels={LABEL_INSTANCE: owner}
        )
        for owner in (mine, other)
    ]
    try:
        assert engine.container_ids() == (started[0].id,)
        assert other in engine.foreign()
        assert mine not in engine.foreign()
        assert engine.remove_containers() == 1
        assert engine.container_ids() == ()
        assert other in engine.foreign()
        assert client.networks.list(names=[f"{mine}-internal"]) == []
        assert engine.remove_image(recipe.tag) == "kept"
    finally:
        for container in started[1:]:
            container.remove(force=True)
        client.close()
    assert engine.remove_image(recipe.tag) == "removed"
    assert engine.remove_image(recipe.tag) == "gone"


@pytest.mark.docker
def test_build_stages_are_found_by_our_label(engine: DockerImages, recipe: Recipe) -> None:
    """The untagged stage is the bigger part of what a build leaves."""
    before = set(engine.built())
    engine.build(recipe, lambda _: None)
    fresh = set(engine.built()) - before
    assert recipe.tag in fresh
    assert [name for name in fresh if name.startswith("sha256:")], "the build stage is not among them"
    for name in fresh:
        engine.remove_image(name)
    assert not set(engine.built()) & fresh


@pytest.mark.docker
def test_the_engine_says_its_version_and_where_it_keeps_things(engine: DockerImages) -> None:
    version = engine.version()
    assert version.number[0].isdigit()
    assert version.root.is_absolute()


def test_the_context_is_read_back_whole() -> None:
    """tarfile needs sizes that match: the label makes the Dockerfile longer."""
    packed = build_context("a", (Entry("Dockerfile", 0o644, b"FROM a"),), b"")
    with tarfile.open(fileobj=io.BytesIO(packed.getvalue())) as tar:
        assert _text(tar, "Dockerfile") == "FROM a\nLABEL loopbox.built=a"
