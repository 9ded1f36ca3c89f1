"""Web search over real HTTP against a stand-in of SearxNG, directly and through a CONNECT proxy on a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from images.agent.tests.conftest import answering

from loopbox_agent.egress_http import egress_client
from loopbox_agent.web_search import MAX_ANSWER, WebSearch, plain, read_answer


@dataclass
class SearxNG:
    """Answers as SearxNG does with format=json."""

    url: str = ""
    body: object = None
    status: int = 200
    raw: bytes | None = None
    asked: list[dict[str, str]] = field(default_factory=list)

    async def search(self, request: web.Request) -> web.Response:
        self.asked.append(dict(request.query))
        if request.query.get("format") != "json":
            return web.Response(text="<html>", content_type="text/html")
        if self.raw is not None:
            return web.Response(body=self.raw, content_type="application/json", status=self.status)
        return web.json_response(self.body, status=self.status)


def result(n: int, **more: object) -> dict[str, object]:
    return {"url": f"https://example.org/{n}", "title": f"Page {n}", "content": f"Text {n}", "engine": "x", **more}


@pytest.fixture
async def searx() -> AsyncIterator[SearxNG]:
    stub = SearxNG(body={"query": "q", "results": [result(n) for n in range(9)], "answers": [], "infoboxes": []})
    async with answering(web.get("/search", stub.search)) as url:
        stub.url = url
        yield stub


@pytest.fixture
async def search(searx: SearxNG) -> AsyncIterator[WebSearch]:
    made = WebSearch(searx.url + "/", None, timeout_s=5)
    yield made
    await made.close()


async def test_results_come_numbered_and_bounded(searx: SearxNG, search: WebSearch) -> None:
    outcome = await search.call({"query": "private agents", "limit": 2})
    assert searx.asked == [{"q": "private agents", "format": "json"}]
    assert outcome.text == (
        "1. Page 0\n   https://example.org/0\n   Text 0\n2. Page 1\n   https://example.org/1\n   Text 1"
    )
    assert not outcome.is_error


async def test_markup_doubles_and_other_addresses_are_taken_out(searx: SearxNG, search: WebSearch) -> None:
    searx.body = {
        "results": [
            result(1, title="<b>Bold</b> &amp; <script>steal()</script>safe\u202e", content="a<br>b" + "x" * 999),
            result(1),
            result(2, url="javascript:alert(1)"),
            result(3, url="file:///etc/passwd"),
            "text",
            {"title": "no address"},
            result(4, title=None, content=7),
        ],
        "answers": ["42 <i>exactly</i>", {"answer": "also", "url": None}, 3],
    }
    outcome = await search.call({"query": "q"})
    found = outcome.result["results"]
    assert isinstance(found, list)
    assert [one["url"] for one in found if isinstance(one, dict)] == ["https://example.org/1", "https://example.org/4"]
    assert "Bold & safe" in outcome.text
    assert "steal" not in outcome.text
    assert "<" not in outcome.text
    assert len(outcome.text) < 1200
    assert outcome.result["answers"] == ["42 exactly", "also"]


@pytest.mark.parametrize(
    ("status", "raw", "told"),
    [
        (403, b"", "Does it allow format=json"),
        (500, b"", "answered 500"),
        (200, b"<html>", "no JSON"),
        (200, b"[" * 100_000, "no JSON"),
        (200, b'{"results": 3}', "another form"),
        (200, b"x" * (MAX_ANSWER + 1), "more than"),
    ],
)
async def test_what_the_engine_does_wrong_is_told(
    searx: SearxNG, search: WebSearch, status: int, raw: bytes, told: str
) -> None:
    searx.status, searx.raw = status, raw
    outcome = await search.call({"query": "q"})
    assert outcome.is_error
    assert told in outcome.text


async def test_without_an_engine_it_is_listed_as_off_and_says_so() -> None:
    off = WebSearch(None, None)
    assert "AGENT_SEARCH_URL" in off.spec().unavailable
    outcome = await off.call({"query": "q"})
    assert outcome.is_error
    assert "nothing was sent" in outcome.text
    assert WebSearch("http://searx", None).spec().unavailable == ""


@pytest.mark.parametrize("arguments", [{}, {"query": ""}, {"query": "q", "limit": 99}, {"query": "q", "x": 1}])
async def test_wrong_arguments_are_told_and_nothing_is_sent(
    searx: SearxNG, search: WebSearch, arguments: dict[str, object]
) -> None:
    outcome = await search.call(arguments)  # type: ignore[arg-type]  # JSON
    assert outcome.is_error
    assert searx.asked == []


async def test_an_engine_that_is_not_there_is_told() -> None:
    search = WebSearch("http://127.0.0.1:1", None, timeout_s=2)
    outcome = await search.call({"query": "q"})
    await search.close()
    assert "does not answer" in outcome.text


values = st.recursive(
    st.none() | st.integers() | st.text(max_size=9) | st.just("http://a/b"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["results", "url", "title", "content", "answers"]), inner)
    ),
    max_leaves=12,
)


@given(values, st.integers(1, 20))
def test_any_answer_is_read_without_an_error(told: object, limit: int) -> None:
    outcome = read_answer(told, limit)
    found = outcome.result.get("results", [])
    assert isinstance(found, list)
    assert len(found) <= limit


@given(st.text(alphabet="<>&/!-ab \"'=;#x\u200b", max_size=60), st.integers(1, 40))
def test_plain_text_is_short_and_invisible_characters_are_gone(text: str, most: int) -> None:
    made = plain(text, most)
    assert len(made) <= most
    assert "\u200b" not in made


# The way out


@dataclass
class Proxy:
    """A CONNECT proxy on a unix socket that lets some targets through."""

    path: Path
    granted: set[str] = field(default_factory=set)
    asked: list[bytes] = field(default_factory=list)
    answer: bytes = b"HTTP/1.1 403 Forbidden\r\n\r\n"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head.split(b"\r\n")[0])
            target = head.split(b" ")[1].decode()
            if target in self.granted:
                host, _, port = target.rpartition(":")
                there, back = await asyncio.open_connection(host, int(port))
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                await asyncio.gather(self.copy(reader, back), self.copy(there, writer))
            else:
                writer.write(self.answer)
        writer.close()

    async def copy(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while chunk := await source.read(4096):
            to.write(chunk)
        to.close()


@pytest.fixture
async def proxy(run_dir: Path) -> AsyncIterator[Proxy]:
    stub = Proxy(run_dir / "egress.sock")
    server = await asyncio.start_unix_server(stub.serve, stub.path)
    async with server:
        yield stub


async def test_it_goes_through_the_proxy_and_nowhere_else(searx: SearxNG, proxy: Proxy) -> None:
    target = searx.url.removeprefix("http://")
    search = WebSearch(searx.url, f"unix:{proxy.path}", timeout_s=5)
    refused = await search.call({"query": "q"})
    assert "grant this host" in refused.text
    assert searx.asked == []
    proxy.granted.add(target)
    allowed = await search.call({"query": "q"})
    await search.close()
    assert allowed.text.startswith("1. Page 0")
    assert proxy.asked == [f"CONNECT {target} HTTP/1.1".encode()] * 2


@pytest.mark.parametrize("answer", [b"", b"x" * 20_000, b"HTTP/1.1 200 OK\r\n\r\nearly", b"rubbish\r\n\r\n"])
async def test_a_proxy_that_answers_rubbish_is_an_error_like_any_other(proxy: Proxy, answer: bytes) -> None:
    proxy.answer = answer
    search = WebSearch("http://searx.test", f"unix:{proxy.path}", timeout_s=5)
    outcome = await search.call({"query": "q"})
    await search.close()
    assert outcome.is_error
    assert "does not answer" in outcome.text


@pytest.mark.parametrize("proxy_url", ["ftp://x", "/run/x.sock", "https://x:1"])
async def test_a_proxy_address_of_another_kind_is_refused(proxy_url: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        await egress_client(proxy_url, timeout_s=1, most_bytes=1)
