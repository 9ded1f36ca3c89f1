"""Small parts: names of downloads, lines of the protocol, what is taken out of a page."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox_browser import downloads
from loopbox_browser.downloads import Downloads, plain
from loopbox_browser.protocol import clean, pack, parse
from loopbox_browser.reading import ELEMENTS, TEXT_CHARS, fit


@given(st.text(max_size=300))
def test_a_downloads_name_is_one_plain_name(name: str) -> None:
    made = plain(name)
    assert made
    assert "/" not in made
    assert not made.startswith(".")
    assert len(made) <= 100
    assert made == made.strip()


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\x.exe", "x.exe"),
        ("...", "download"),
        ("a" * 300 + ".pdf", "a" * 96 + ".pdf"),
        ("a\nb.txt", "a_b.txt"),
    ],
)
def test_names_that_lead_elsewhere_do_not(name: str, made: str) -> None:
    assert plain(name) == made


class Download:
    """A finished download, as Playwright has it."""

    def __init__(self, came: Path, name: str = "x.bin", fault: str | None = None) -> None:
        self.suggested_filename = name
        self._came = came
        self._fault = fault

    async def failure(self) -> str | None:
        return self._fault

    async def path(self) -> Path:
        return self._came

    async def delete(self) -> None:
        self._came.unlink(missing_ok=True)


def keep(folder: Path, came: Path, name: str = "x.bin", fault: str | None = None) -> str:
    return asyncio.run(Downloads(folder).keep(Download(came, name, fault)))


def test_downloads_are_kept_beside_each_other_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MOST_FILES", 3)
    monkeypatch.setattr(downloads, "MOST_BYTES", 10)
    folder, came = tmp_path / "downloads", tmp_path / "came"
    for told in ("downloads/x.bin", "downloads/x-1.bin", "downloads/x-2.bin"):
        came.write_bytes(b"12345")
        assert keep(folder, came) == f"downloaded {told}, 5 bytes"
        assert not came.exists()
    came.write_bytes(b"12345")
    assert "holds 3 files already" in keep(folder, came)
    came.write_bytes(b"12345678901")
    assert "the limit is 10" in keep(folder, came)
    assert keep(folder, came, fault="canceled") == "the download of x.bin failed: canceled"
    assert len(list(folder.iterdir())) == 3


def test_a_link_in_the_downloads_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "downloads").symlink_to("elsewhere")
    (tmp_path / "came").write_bytes(b"x")
    assert "not kept" in keep(tmp_path / "downloads", tmp_path / "came")
    assert list((tmp_path / "elsewhere").iterdir()) == []


json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=[]), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(json_values)
def test_whatever_a_page_says_can_be_sent_on(value: Any) -> None:
    """Half a character, as a slice of a page's text has it, ends an answer that is UTF-8."""
    made = clean({"value": value})
    json.dumps(made, ensure_ascii=False).encode()
    assert parse(pack(made)) == made
    assert clean(made) == made


@pytest.mark.parametrize("line", [b"[]", b"7", b"{", b"\xff"])
def test_lines_that_are_no_object_are_errors(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 any of them
        parse(line)


def test_what_a_page_gives_is_bounded_again() -> None:
    """A page can replace the functions that the reading script uses."""
    one = {"ref": 1, "kind": "k" * 99, "text": "t" * 999, "url": "u" * 9999, "value": "v" * 999}
    made = fit({"text": "x" * 99_999, "total_chars": 99_999, "more": False, "elements": [one] * 999})
    assert (len(made["text"]), len(made["elements"]), made["truncated"]) == (TEXT_CHARS, ELEMENTS, True)
    assert {key: len(str(value)) for key, value in made["elements"][0].items()} == {
        "ref": 1,
        "kind": 20,
        "text": 120,
        "url": 500,
        "value": 120,
    }
