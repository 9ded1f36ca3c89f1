"""tools: owns the browser's rows in the table of tools: what they take, return and show to a model."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from loopbox_browser.addresses import complete, find_fault
from loopbox_browser.browser import MEMORY_BYTES, MIB, Browser
from loopbox_browser.protocol import WORKSPACE
from loopbox_toolrunner.arguments import Arguments, PathText, Text, Timed, seconds_of
from loopbox_toolrunner.tool import Answer, Extension, Row, Seat, ToolError, Traits

SHOWN_IMAGE_BYTES = 256 << 10
WHICH = "Number of the element that browser_read gave, or a CSS selector, or text=…"


class Navigate(Timed):
    """Of browser_navigate."""

    url: Text = Field(min_length=1, max_length=4000, description="Address, or path of a file in /workspace.")


class Read(Timed):
    """Of browser_read."""

    offset: int = Field(default=0, ge=0, le=100_000_000, description="First character of the text.")


class Click(Timed):
    """Of browser_click."""

    element: Text = Field(min_length=1, max_length=1000, description=WHICH)


class Fill(Timed):
    """Of browser_fill."""

    element: Text = Field(min_length=1, max_length=1000, description=WHICH)
    text: Text = Field(max_length=20_000, description="What to put in; of a box to tick: true or false.")
    submit: bool = Field(default=False, description="Press Enter afterwards.")


class Screenshot(Timed):
    """Of browser_screenshot."""

    path: PathText = Field(default="screenshot.png", description="PNG file to write, relative to /workspace.")
    full_page: bool = Field(default=False, description="The whole page, not only what a window shows.")


class Close(Arguments):
    """Of browser_close."""


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True)


class PageView(_Result):
    """Where the browser is."""

    url: str
    title: str
    status: int | None = Field(default=None, description="HTTP status")
    notes: list[str] = Field(description="what else happened: dialogs, downloads, windows, requests not made")


class Element(_Result):
    """Something to click or to fill."""

    ref: int = Field(description="its number, for browser_click and browser_fill")
    kind: str = Field(description="link, button, select, textarea, or an input's type")
    text: str
    url: str | None = None
    value: str | None = None


class PageText(_Result):
    """What can be read."""

    url: str
    title: str
    text: str
    total_chars: int
    truncated: bool = Field(description="there is more text, or there are more elements")
    elements: list[Element]
    notes: list[str]


class Picture(_Result):
    """A screenshot."""

    url: str
    path: str
    width: int
    height: int
    size: int = Field(description="bytes")
    notes: list[str]


class Closed(_Result):
    """The end."""

    was_open: bool


@contextlib.asynccontextmanager
async def open_tools(seat: Seat) -> AsyncIterator[Extension]:
    """Have the browser's tools; the browser ends with the context."""
    worker = [
        "/usr/bin/env",
        f"{WORKSPACE}={seat.jail.root}",
        sys.executable,
        *("-I", "-m", "loopbox_browser.worker"),
    ]
    browser = Browser(seat, worker)
    try:
        yield Extension(_Table(seat, browser).rows(), lambda: {"browser": browser.running})
    finally:
        await browser.close()


class _Table:
    def __init__(self, seat: Seat, browser: Browser) -> None:
        self._seat = seat
        self._browser = browser

    def rows(self) -> list[Row]:
        goes = Traits(
            level="network",
            capabilities=("browser", "web"),
            memory_mb=MEMORY_BYTES // MIB,
            seconds=self._seat.settings.timeout_s,
            reaches_out=True,
        )
        acts = replace(goes, destructive=True)  # a click may buy something
        reads = replace(goes, level="read", capabilities=("browser", "web.read"))
        shoots = replace(goes, level="write", capabilities=("browser", "image"), idempotent=True)
        ends = Traits(level="execute", capabilities=("browser",), idempotent=True)
        return [
            Row(
                "browser_navigate",
                "Open a page in the browser. It stays open between calls.",
                Navigate,
                PageView,
                self._navigate,
                goes,
            ),
            Row(
                "browser_read",
                "Read the open page: its text, and its links, buttons and fields with their numbers.",
                Read,
                PageText,
                self._read,
                reads,
            ),
            Row("browser_click", "Click something on the open page.", Click, PageView, self._click, acts),
            Row("browser_fill", "Fill in a field of the open page.", Fill, PageView, self._fill, acts),
            Row(
                "browser_screenshot",
                "Save a picture of the open page.",
                Screenshot,
                Picture,
                self._screenshot,
                shoots,
            ),
            Row(
                "browser_close", "Close the browser; it forgets its pages and cookies.", Close, Closed, self._end, ends
            ),
        ]

    async def _navigate(self, told: Navigate) -> Answer:
        root = self._seat.jail.root
        url = complete(told.url, root)
        granted = self._seat.egress.granted
        if fault := await asyncio.to_thread(find_fault, url, workspace=root, granted=granted):
            raise ToolError(f"{url[:200]} was not opened: {fault}")
        answer = await self._ask("navigate", told, {"url": url}, opens=True)
        return _view(answer)

    async def _read(self, told: Read) -> Answer:
        found = PageText.model_validate(await self._ask("read", told, {"offset": told.offset}))
        lines = [f"# {found.title}", found.url, "", found.text or "(no text)", ""]
        for one in found.elements:
            value = f" = {one.value!r}" if one.value else ""
            lines.append(f"[{one.ref}] {one.kind}: {one.text}{value}{f' -> {one.url}' if one.url else ''}")
        if found.truncated:
            lines.append(f"[there is more; the text has {found.total_chars} characters, offset= goes on]")
        return Answer(found, "\n".join([*lines, *found.notes]))

    async def _click(self, told: Click) -> Answer:
        return _view(await self._ask("click", told, {"element": told.element}))

    async def _fill(self, told: Fill) -> Answer:
        given = {"element": told.element, "text": told.text, "submit": told.submit}
        return _view(await self._ask("fill", told, given))

    async def _screenshot(self, told: Screenshot) -> Answer:
        await asyncio.to_thread(self._seat.jail.resolve, told.path)  # refused before the work
        answer = await self._ask("screenshot", told, {"full_page": told.full_page})
        image = base64.b64decode(answer.pop("png"))
        written = await asyncio.to_thread(self._seat.files.write, told.path, image)
        made = Picture(path=written.path, size=written.size, **answer)
        text = f"{made.path}: {made.width} x {made.height}, {made.size} bytes"
        return Answer(made, "\n".join([text, *made.notes]), images=(image,) if len(image) <= SHOWN_IMAGE_BYTES else ())

    async def _end(self, _told: Close) -> Answer:
        was = await self._browser.close()
        return Answer(Closed(was_open=was), "closed" if was else "it was not open")

    async def _ask(
        self, what: str, told: Timed, given: dict[str, object], *, opens: bool = False
    ) -> dict[str, Any]:  # Any: JSON
        seconds = seconds_of(told, self._seat.settings)
        return await self._browser.ask(what, {**given, "seconds": seconds}, seconds + 1, opens=opens)


def _view(answer: dict[str, Any]) -> Answer:  # Any: JSON
    made = PageView.model_validate(answer)
    status = f" ({made.status})" if made.status and made.status >= 400 else ""  # noqa: PLR2004 HTTP's errors
    return Answer(made, "\n".join([f"{made.title or '(no title)'}{status}", made.url, *made.notes]))
