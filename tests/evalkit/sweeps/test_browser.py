"""The page of a sweep in a browser: without a network, on a desk and on a phone, with names of any kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evalkit.sweeps.figures import draw_pareto
from evalkit.sweeps.report import make_report
from evalkit.sweeps.result import SweepResult
from tests.analysis.test_browser import ARGUMENTS, PHONE, sideways
from tests.conftest import find_chromium
from tests.evalkit.sweeps.made import HOSTILE, VARIANTS, aim, many, result

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
COMMAND = "surgery apply restore-top-20pct models/base models/sft OUT --set head=40%"
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for all tests of this file."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """`page(result, **context)` opens its report offline; at the end nothing had been fetched or gone wrong."""
    complaints: list[str] = []
    contexts = []

    def show(found: SweepResult, **options: Any) -> Page:
        picture = draw_pareto(found, tmp_path)[1].read_bytes()
        path = tmp_path / "report.html"
        path.write_bytes(make_report(found, picture, [COMMAND]))
        context = browser.new_context(offline=True, **({"viewport": {"width": 1280, "height": 900}} | options))
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


SPLITS = ("id", "ood", "a-split-of-a-very-long-name")
RESULTS = {
    "few": result(),
    "many": result(many(60), n=20),
    "hostile": result({HOSTILE * 2: {"id": 0.9, HOSTILE: 0.9}}, aim(("id", HOSTILE)), summary=HOSTILE),
    "three": result(many(9, SPLITS), aim(SPLITS), n=20, models={"base": "x" * 300, "sft": "/y" * 100}),
    "one": result({"values": {"id": 0.9}}, aim(("id",))),
}


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("options", [{}, PHONE | {"color_scheme": "dark"}], ids=["desk", "phone"])
def test_nothing_is_wider_than_the_screen(page: Open, name: str, options: dict[str, Any]) -> None:
    """The table scrolls in itself; the figure is shown whole."""
    shown = page(RESULTS[name], **options)
    assert sideways(shown) == 0
    width = shown.locator("figure img").evaluate("image => [image.naturalWidth, image.getBoundingClientRect().width]")
    assert width[0] > 0
    assert 0 < width[1] <= shown.viewport_size["width"]  # type: ignore[index]
    assert shown.locator("#rows tbody tr").count() == len(RESULTS[name].rows)


def test_the_verdict_comes_first(page: Open) -> None:
    """What was chosen can be read without scrolling, on a phone as well."""
    found = result(VARIANTS)
    box = page(found, **PHONE).locator("#verdict").bounding_box()
    assert box is not None
    assert box["y"] < 300


def test_commands_can_be_copied(page: Open) -> None:
    """A button says that it has."""
    shown = page(result())
    shown.locator("button.copy").click()
    shown.wait_for_function("document.querySelector('button.copy').textContent === 'Copied'")
    assert shown.locator(".command code").inner_text() == COMMAND


def test_the_chosen_row_stands_out(page: Open) -> None:
    """In bold, and in words."""
    shown = page(result())
    row = shown.locator("tr.best")
    assert row.count() == 1
    assert int(row.locator("td").first.evaluate("cell => getComputedStyle(cell).fontWeight")) >= 600
    assert "chosen" in row.inner_text()
