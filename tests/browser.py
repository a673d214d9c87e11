"""Pages in a Chromium: offline, on a desk or a phone, and with nothing fetched or gone wrong at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import find_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ShowPage = Callable[..., "Page"]


@pytest.fixture(scope="module")  # not for the session: while it is open no other test can start an event loop
def browser() -> Iterator[Browser]:
    """A Chromium for all tests of a file."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def show_page(browser: Browser) -> Iterator[ShowPage]:
    """`show_page(path, **context)` opens a page offline; at the end nothing had been fetched or gone wrong."""
    complaints: list[str] = []
    contexts = []

    def show(path: Path, **options: Any) -> Page:
        context = browser.new_context(offline=True, **(DESKTOP | options))
        contexts.append(context)
        shown = context.new_page()
        shown.on("console", lambda message: complaints.append(message.text))
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        shown.on("request", lambda request: complaints.append(request.url))
        shown.goto(path.as_uri())
        complaints.remove(path.as_uri())
        return shown

    yield show
    for context in contexts:
        context.close()
    assert [text for text in complaints if not text.startswith("data:")] == []


def sideways(page: Page) -> int:
    """How many pixels of the page lie beyond its right edge."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
