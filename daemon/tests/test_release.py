"""What a release is named by, and that a record of an older loopd still means the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loopd.errors import ConflictError, NotFoundError
from loopd.registry import Registry
from loopd.release import Adapter, Release
from loopd.sidecar import Lineage

#: As loopd wrote it before releases had adapters and a system text.
OLD = (
    '{"architecture": "llama", "engine_image": "sha256:'
    + "e" * 64
    + '", "gguf_sha256": "'
    + "a" * 64
    + '", "name": "tiny", "num_ctx": 2048, "sampling": [["temperature", 0.2], ["top_p", 0.9]], "size_bytes": 467520, '
    '"stop": ["<|im_end|>", "<|im_start|>"], "template": "{{ .Prompt }}"}'
)
OLD_ID = "8367e58db35da970023a28d400e45d05f1d3d91ab24a7d5369daf0521e29df03"
ADAPTER = Adapter(sha256="b" * 64, size_bytes=10)


def test_an_older_record_keeps_its_id_and_its_form() -> None:
    """Guards champions over an upgrade: their containers are named by their ids."""
    release = Release.from_json(OLD)
    assert release.id == OLD_ID
    assert release.to_json() == OLD
    assert (release.adapters, release.system) == ((), "")


@pytest.mark.parametrize(
    "other",
    [
        {"adapters": (ADAPTER,)},
        {"system": "Be brief."},
        {"template": "x"},
        {"stop": ()},
        {"num_ctx": 4096},
        {"sampling": (("temperature", 0.3), ("top_p", 0.9))},
        {"engine_image": "sha256:other"},
        {"gguf_sha256": "c" * 64},
    ],
)
def test_what_makes_another_answer_makes_another_release(other: dict[str, object]) -> None:
    release = replace(Release.from_json(OLD), **other)  # type: ignore[arg-type]  # the table knows the fields
    assert release.id != OLD_ID
    assert Release.from_json(release.to_json()) == release
    assert Release.from_json(release.to_json()).id == release.id


def test_a_system_text_cannot_pass_for_an_adapter() -> None:
    """Guards the digest: two different releases never write the same identity."""
    one = replace(Release.from_json(OLD), system="b" * 64)
    two = replace(Release.from_json(OLD), adapters=(ADAPTER,))
    assert one.id != two.id


def test_the_name_is_for_people_only() -> None:
    assert replace(Release.from_json(OLD), name="other").id == OLD_ID


def test_it_names_every_file_it_needs() -> None:
    release = replace(Release.from_json(OLD), adapters=(ADAPTER,))
    assert release.blobs == (("a" * 64, 467520), ("b" * 64, 10))


async def test_a_release_is_found_by_its_name_or_the_digits_that_lists_show(registry: Registry) -> None:
    """A file may be called like the first digits of another's id."""
    one = Release.from_json(OLD)
    named = replace(one, name=OLD_ID[:3], num_ctx=4096)
    trap = replace(one, name=OLD_ID[:12], num_ctx=8192)
    for release in (one, named, trap):
        await registry.add(release, source="x.gguf")
    assert await registry.find("tiny") == one
    assert await registry.find(OLD_ID[:3]) == named
    assert await registry.find(OLD_ID[:4]) == one
    assert await registry.find(OLD_ID[:12]) == one
    assert await registry.find(OLD_ID) == one
    with pytest.raises(NotFoundError):
        await registry.find("zzz")
    with pytest.raises(ConflictError):
        await registry.find("")
    newer = replace(one, num_ctx=512)
    await registry.add(newer, source="y.gguf")
    assert await registry.find("tiny") == newer


async def test_an_older_row_is_read_with_nothing_it_did_not_say(registry: Registry) -> None:
    await registry._database.execute(
        "INSERT INTO releases (id, manifest, source, created_at) VALUES (?,?,?,?)", (OLD_ID, OLD, "tiny.gguf", "2026")
    )
    (listed,) = await registry.kept()
    assert (listed.release.id, listed.lineage, listed.signer, listed.pinned) == (OLD_ID, Lineage(), "", False)
