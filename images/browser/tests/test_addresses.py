"""Which addresses the browser may load."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from loopbox_browser.addresses import NOT_GRANTED, complete, find_fault, is_local


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = Path(os.path.realpath(tmp_path)) / "workspace"
    path.mkdir()
    (path / "a.html").touch()
    (path.parent / "secret").touch()
    (path / "out").symlink_to("../secret")
    (path / "up").symlink_to("..")
    return path


parts = st.sampled_from(
    ["..", ".", "", "a.html", "out", "up", "secret", "%2e%2e", "%2f", "etc", "é", "%00", "workspace"]
)


@given(st.lists(parts, min_size=1, max_size=6).map("/".join))
@example("up/secret")
@example("%2e%2e/secret")
@example("%2e%2e%2fsecret")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_files_address_leads_outside(workspace: Path, path: str) -> None:
    fault = find_fault(f"file://{workspace}/{path}", workspace=workspace, granted=True)
    real = os.path.realpath(f"{workspace}/{unquote(path)}".replace("\0", ""))
    assert (fault == "") == (real == str(workspace) or real.startswith(f"{workspace}/"))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "file://host/etc/passwd",
        "file:/etc/passwd",
        "FILE:///proc/self/environ",
        "chrome://crash",
        "chrome-untrusted://x",
        "devtools://devtools/bundled/x",
        "view-source:file:///etc/passwd",
        "javascript:alert(1)",
        "filesystem:http://localhost/x",
        "ftp://localhost/x",
        "http://[::1",
        "",
    ],
)
def test_other_kinds_of_address_are_refused_with_a_grant_too(workspace: Path, url: str) -> None:
    assert find_fault(url, workspace=workspace, granted=True)


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8000/x", "http://127.0.0.1/", "http://127.9.9.9/", "http://[::1]:1/", "http://a.localhost/"],
)
def test_the_sandbox_itself_is_open_without_a_grant(workspace: Path, url: str) -> None:
    assert find_fault(url, workspace=workspace, granted=False) == ""


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/",
        "http://localhost.example.org/",
        "http://localhost@example.org/",
        "http://127.0.0.1.example.org/",
        "http://169.254.169.254/",
        "http://0x7f.1.example/",
        "wss://example.org/",
    ],
)
def test_hosts_outside_need_a_grant(workspace: Path, url: str) -> None:
    assert find_fault(url, workspace=workspace, granted=False) == NOT_GRANTED
    assert find_fault(url, workspace=workspace, granted=True) == ""


@pytest.mark.parametrize("url", ["about:blank", "about:srcdoc", "data:text/html,x", "blob:null/1"])
def test_what_reaches_nothing_is_open(workspace: Path, url: str) -> None:
    assert find_fault(url, workspace=workspace, granted=False) == ""


def test_an_address_is_completed_as_people_mean_it(workspace: Path) -> None:
    (workspace / "é x.html").touch()
    assert complete("a.html", workspace) == f"file://{workspace}/a.html"
    assert complete("a.html?q=1#x", workspace) == f"file://{workspace}/a.html?q=1#x"
    assert complete("é x.html", workspace) == f"file://{workspace}/{quote('é x.html')}"
    assert complete(f"{workspace}/a.html", workspace) == f"file://{workspace}/a.html"
    assert complete("/etc/passwd", workspace) == "file:///etc/passwd"
    assert complete("example.org/x", workspace) == "https://example.org/x"
    assert complete("localhost:8000", workspace) == "http://localhost:8000"
    for whole in ("http://x/", "about:blank", "chrome://version", "javascript:x", "data:,x"):
        assert complete(whole, workspace) == whole


@given(st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_judged_without_an_error(workspace: Path, text: str) -> None:
    if text.isprintable() and "\0" not in text:
        find_fault(complete(text, workspace), workspace=workspace, granted=False)
    assert isinstance(is_local(text), bool)
