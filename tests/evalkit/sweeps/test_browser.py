"""The page of a sweep in a browser: without a network, on a desk and on a phone, with names of any kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evalkit.sweeps.figures import draw_pareto
from evalkit.sweeps.report import make_report
from evalkit.sweeps.result import SweepResult
from tests.browser import PHONE, ShowPage, sideways
from tests.evalkit.sweeps.made import HOSTILE, VARIANTS, aim, many, result

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
COMMAND = "surgery apply restore-top-20pct models/base models/sft OUT --set head=40%"
Open = Callable[..., "Page"]


@pytest.fixture
def page(show_page: ShowPage, tmp_path: Path) -> Open:
    """`page(result, **context)` opens its report."""

    def show(found: SweepResult, **options: Any) -> Page:
        picture = draw_pareto(found, tmp_path)[1].read_bytes()
        path = tmp_path / "report.html"
        path.write_bytes(make_report(found, picture, [COMMAND]))
        return show_page(path, **options)

    return show


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
