"""Long outputs as files."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from loopbox_toolrunner.outputs import FOLDER, Outputs


def outputs(workspace: Path, *, files: int = 3, most: int = 100) -> Outputs:
    return Outputs(workspace, most_files=files, most_bytes=most)


@given(chunks=st.lists(st.binary(max_size=40), max_size=12), inline=st.integers(1, 60), most=st.integers(1, 150))
def test_what_is_longer_than_shown_is_whole_in_the_file_up_to_its_limit(
    tmp_path_factory: object, chunks: list[bytes], inline: int, most: int
) -> None:
    workspace = tmp_path_factory.mktemp("w")  # type: ignore[attr-defined]  # pytest's, which hypothesis passes on
    spool = outputs(workspace, most=most).spool("out", inline)
    for chunk in chunks:
        spool.feed(chunk)
    spool.close()
    whole = b"".join(chunks)
    if len(whole) <= inline:
        assert (spool.name, spool.saved) == ("", 0)
        assert not (workspace / FOLDER).exists()
    else:
        assert (workspace / spool.name).read_bytes() == whole[:most]
        assert spool.saved == min(most, len(whole))


def test_the_oldest_go_and_nothing_else(tmp_path: Path) -> None:
    made = outputs(tmp_path)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "notes.txt").write_text("mine", encoding="ascii")
    for number in range(6):
        os.close(made.create("out")[1])
        assert len(list((tmp_path / FOLDER).iterdir())) <= 4, number
    assert {p.name for p in (tmp_path / FOLDER).iterdir()} == {"notes.txt", "4.out.txt", "5.out.txt", "6.out.txt"}


def test_files_of_another_sandbox_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "1.out.txt").write_text("theirs", encoding="ascii")
    name, handle = outputs(tmp_path).create("out")
    os.close(handle)
    assert name == f"{FOLDER}/2.out.txt"


def test_a_link_in_the_folders_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / FOLDER).symlink_to("../elsewhere")
    spool = outputs(tmp_path / "w").spool("out", 1)
    spool.feed(b"long")
    assert spool.name == ""
    assert list((tmp_path / "elsewhere").iterdir()) == []
