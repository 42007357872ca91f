"""What a test sees of a page: its tags and words, or, in a browser, everything that the browser was told."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

STATES = "['ready', 'done', 'feedback'].includes(document.querySelector('.tu-label')?.dataset.state)"
SAVED = "document.querySelector('.tu-saved').dataset.saved === 'yes'"


class Page(HTMLParser):
    """The tags and the visible text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def launched() -> Iterator[Any]:
    """A real browser, as a fixture. Where there is none, its tests are skipped aloud, or fail if
    TRUEUP_REQUIRE_BROWSER=1."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        path = None
    if path is None:
        missing = "NO BROWSER: no page is tested (install chromium and playwright)"
        if os.environ.get("TRUEUP_REQUIRE_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield browser
        browser.close()


def intercept(target: Any, address: str, handler: Callable[[Any], object], **options: Any) -> None:
    """Have `handler` answer the requests to `address` of a page, or of all pages of a context, that are open.

    For a moment a page goes on with the connections that it had: of 84 presses right after `page.route`, on a busy
    machine, two went past it. So this waits until a request of each page comes through.
    """
    target.route(address, handler, **options)
    target.route("**/favicon.ico?intercepted", lambda route: route.fulfill(body="yes"))
    for page in getattr(target, "pages", [target]):
        probe = "async () => await (await fetch('/favicon.ico?intercepted')).text() === 'yes'"
        page.wait_for_function(probe, polling=50)


class Answering:
    """The page of labels or of votes, open in a browser, with every problem and every response that came."""

    def __init__(self, context: Any, url: str, path: str):
        self.context, self.url, self.path = context, url, path
        self.problems: list[str] = []
        self.responses: list[Any] = []
        self.page = context.new_page()
        self.page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("response", lambda response: self.responses.append(response))
        self.open()

    def open(self) -> None:
        self.page.goto(f"{self.url}{self.path}")
        self.settle()

    def settle(self) -> None:
        """Until the pair on screen takes presses, and every press before is saved."""
        self.page.wait_for_function(f"{STATES} && {SAVED}")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.settle()

    @property
    def texts(self) -> list[str]:
        return [text.strip() for text in self.page.locator(".tu-answer .tu-text").all_inner_texts()]

    def words(self, part: str) -> str:
        return str(self.page.locator(f".tu-{part}").first.inner_text())
