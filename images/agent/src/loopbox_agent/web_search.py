"""web_search: owns the built-in tool that asks a search engine with SearxNG's JSON dialect, where an operator set one.

What comes back is strangers' text: parsed defensively, without markup, bounded, and marked by its address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html.parser import HTMLParser
from urllib.parse import urlsplit

import httpx2
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from loopbox_agent.egress_http import egress_client
from loopbox_agent.sandbox import Outcome
from loopbox_agent.tool_spec import ToolSpec, clean_text

NAME = "web_search"
MAX_QUERY = 400  # characters
MAX_RESULTS = 20
MAX_TITLE, MAX_SNIPPET, MAX_URL = 200, 500, 500  # characters
MAX_ANSWER = 2 << 20  # bytes
TIMEOUT_S = 15.0
OFF = "No search engine is set. Set AGENT_SEARCH_URL to a SearxNG that answers format=json, and grant its host."

_SCHEMA: dict[str, JsonValue] = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "minLength": 1, "maxLength": MAX_QUERY, "description": "What to search for."},
        "limit": {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_RESULTS,
            "default": 5,
            "description": "Most results.",
        },
    },
    "required": ["query"],
    "additionalProperties": False,
}


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")
    query: str = Field(min_length=1, max_length=MAX_QUERY)
    limit: int = Field(default=5, ge=1, le=MAX_RESULTS)


class WebSearch:
    """The tool. Without an endpoint it is listed as off, and says so when it is called."""

    def __init__(self, endpoint: str | None, proxy: str | None, *, timeout_s: float = TIMEOUT_S) -> None:
        self._endpoint = endpoint.rstrip("/") if endpoint else ""
        self._proxy = proxy
        self._timeout_s = timeout_s
        self._http: httpx2.AsyncClient | None = None

    def spec(self) -> ToolSpec:
        """Return the tool as the registry lists it."""
        return ToolSpec(
            NAME,
            "Search the web. Gives titles, addresses and short texts; the texts are by strangers.",
            _SCHEMA,
            source="builtin",
            kind="builtin",
            effect="network",
            level="network",
            capabilities=("web", "search", "internet", "news"),
            unavailable="" if self._endpoint else OFF,
        )

    async def call(self, arguments: Mapping[str, JsonValue]) -> Outcome:
        """Search. What goes wrong is an outcome marked as error."""
        if not self._endpoint:
            return _failed(f"web_search is off; nothing was sent. {OFF}")
        try:
            asked = _Arguments.model_validate(dict(arguments))
        except ValidationError as error:
            fault = error.errors()[0]
            return _failed(f"web_search was not run. {'.'.join(map(str, fault['loc']))}: {fault['msg']}")
        try:
            self._http = self._http or await egress_client(
                self._proxy, timeout_s=self._timeout_s, most_bytes=MAX_ANSWER
            )
            parameters = {"q": asked.query, "format": "json"}
            response = await self._http.get(f"{self._endpoint}/search", params=parameters)
        except (httpx2.HTTPError, ValueError) as error:
            return _failed(
                f"The search engine does not answer ({clean_text(str(error), 300) or type(error).__name__})."
            )
        if response.status_code != httpx2.codes.OK:
            hint = " Does it allow format=json?" if response.status_code == httpx2.codes.FORBIDDEN else ""
            return _failed(f"The search engine answered {response.status_code}.{hint}")
        try:
            told = json.loads(response.content)
        except (ValueError, RecursionError):
            return _failed("The search engine answered with no JSON; is AGENT_SEARCH_URL a SearxNG?")
        return read_answer(told, asked.limit)

    async def close(self) -> None:
        """Close every connection."""
        if self._http is not None:
            await self._http.aclose()


def read_answer(told: object, limit: int) -> Outcome:
    """Return the results in an answer of SearxNG's; what has no usable address or another form is passed over."""
    listed = told.get("results") if isinstance(told, dict) else None
    if not isinstance(listed, list):
        return _failed("The search engine answered in another form than SearxNG's.")
    found: list[JsonValue] = []
    seen: set[str] = set()
    for one in listed:
        if len(found) == limit:
            break
        shown = _result(one)
        if shown and shown["url"] not in seen:
            seen.add(shown["url"])
            found.append(dict(shown))
    direct = _answers(told.get("answers") if isinstance(told, dict) else None)
    lines = [f"Answer: {text}" for text in direct]
    for number, one in enumerate(found, 1):
        if isinstance(one, dict):
            lines.append(f"{number}. {one['title']}\n   {one['url']}\n   {one['snippet']}".rstrip())
    return Outcome(
        "\n".join(lines) or "Nothing was found.", {"results": found, "answers": list[JsonValue](direct)}, False
    )


def _result(one: object) -> dict[str, str] | None:
    if not isinstance(one, dict):
        return None
    url = one.get("url")
    if not isinstance(url, str) or len(url) > MAX_URL or not _is_web(url):
        return None
    title, snippet = one.get("title"), one.get("content")
    return {
        "title": plain(title if isinstance(title, str) else "", MAX_TITLE) or url,
        "url": clean_text(url, MAX_URL),
        "snippet": plain(snippet if isinstance(snippet, str) else "", MAX_SNIPPET),
    }


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def _answers(told: object) -> list[str]:
    """Return direct answers: text, or since 2024 objects that hold it."""
    if not isinstance(told, list):
        return []
    texts = (one.get("answer") if isinstance(one, dict) else one for one in told[:3])
    return [text for one in texts if isinstance(one, str) and (text := plain(one, MAX_SNIPPET))]


class _Text(HTMLParser):
    """Gathers what is not markup."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 the base asks so
        """Note what begins."""
        self._hidden += tag in {"script", "style"}
        self.parts.append(" " if tag in {"br", "p", "div", "li"} else "")

    def handle_endtag(self, tag: str) -> None:
        """Note what ends."""
        self._hidden -= tag in {"script", "style"} and self._hidden > 0

    def handle_data(self, data: str) -> None:
        """Keep text that is shown."""
        if not self._hidden:
            self.parts.append(data)


def plain(text: str, most: int) -> str:
    """Return a text without markup, control or invisible characters, ``most`` characters at most."""
    parser = _Text()
    parser.feed(text[: most * 8])
    parser.close()
    return clean_text("".join(parser.parts), most)


def _failed(text: str) -> Outcome:
    return Outcome(text, {"text": text}, is_error=True)
