"""The report in a browser: it needs no network, fits a phone, and is readable in the dark and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import find_chromium
from tests.trainers.reproduce.fabricated import pipeline, write_records, write_seed
from trainers.reproduce.report import make_report
from trainers.reproduce.run import standings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for all tests of this file."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("options", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page(browser: Browser, tmp_path: Path, options: dict[str, Any], scheme: Any) -> None:
    """Nothing is fetched, nothing goes wrong, nothing sticks out; figures are shown as large as there is room."""
    made = pipeline()
    for seed in range(3):
        write_records(made, tmp_path, seed)
        write_seed(tmp_path, seed)
    path = make_report(made, tmp_path, standings(made, tmp_path, range(3)))
    context = browser.new_context(offline=True, color_scheme=scheme, **options)
    complaints: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(path.as_uri())
    assert [text for text in complaints if not text.startswith(("data:", path.as_uri()))] == []
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == 0
    assert page.locator("h1").inner_text() == "Numbers that are known."
    assert page.locator("figure img").count() == 5
    for image in page.locator("figure img").all():
        assert image.evaluate("node => node.complete && node.naturalWidth > 0")
    assert page.locator(".cards li").count() == 5
    assert page.locator("tr.average").count() == 3
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    page.emulate_media(media="print")
    assert page.locator("#paper-1").is_visible()
    context.close()
