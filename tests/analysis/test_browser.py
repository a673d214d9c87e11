"""The report in a browser: it works without a network, by mouse, keyboard and finger, and foreign names stay text."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from surgery.analysis.comparison import Comparison
from surgery.analysis.report import make_report
from tests.analysis.comparisons import ATTENTION, EXPERTS, HOSTILE, comparison, hostile
from tests.analysis.test_report import Hint
from tests.browser import PHONE, ShowPage, sideways

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
THREE = ("base", "sft", "rl")
Open = Callable[..., "Page"]


@pytest.fixture
def page(show_page: ShowPage, tmp_path: Path) -> Open:
    """`page(comparison, **context)` opens its report."""

    def show(data: Comparison, **options: Any) -> Page:
        path = tmp_path / "report.html"
        path.write_bytes(make_report(data, [Hint("Try:", ("surgery apply x",))], {}, {"surgery": "0"}))
        return show_page(path, **options)

    return show


def cell(page: Page, layer: int, module: int) -> Any:
    """The cell of the first grid."""
    return page.locator("table.map").first.locator("tbody tr").nth(layer).locator("td").nth(module)


def degrees(data: Comparison, name: str, column: str = "rotation", pair: int = 0) -> str:
    """An angle of a matrix as the page shows it."""
    rows = data.matrices[data.matrices["matrix"] == name]
    row = rows[(rows["before"] == data.pairs[pair][0]) & (rows["after"] == data.pairs[pair][1])].iloc[0]
    return f"{float(f'{math.degrees(row[column]):.3g}'):g}°"


def test_hovering_shows_the_numbers(page: Open) -> None:
    """The tooltip names the matrix and has its numbers; it goes when the pointer goes."""
    data = comparison(THREE)
    shown = page(data)
    assert shown.locator("#tip").is_hidden()
    cell(shown, 2, 1).hover()
    tip = shown.locator("#tip").inner_text()
    name = "model.layers.2.self_attn.k_proj.weight"
    assert "layer 2, self_attn.k_proj" in tip
    for column in ("rotation", "angle_left", "angle_right"):
        assert degrees(data, name, column) in tip
    shown.mouse.move(2, 2)
    assert shown.locator("#tip").is_hidden()


def test_clicking_pins_the_details(page: Open) -> None:
    """All numbers for each pair, and two charts with a line for each spectrum; a second click closes them."""
    data = comparison(THREE)
    shown = page(data)
    cell(shown, 1, 2).click()
    details = shown.locator("#details")
    text = details.inner_text()
    assert "layer 1, self_attn.v_proj" in text
    assert "model.layers.1.self_attn.v_proj.weight" in text
    rotation = details.locator("tr", has=shown.get_by_text("Rotation", exact=True)).locator("td").all_inner_texts()
    expected = [degrees(data, "model.layers.1.self_attn.v_proj.weight", pair=i) for i in range(3)]
    assert rotation == ["Rotation", *expected]
    charts = details.locator("figure.chart")
    assert [len(charts.nth(i).locator("svg[role=img] path[fill=none]").all()) for i in range(charts.count())] == [6, 3]
    assert cell(shown, 1, 2).evaluate("node => node.classList.contains('pinned')")
    cell(shown, 1, 2).click()
    assert details.is_hidden()


def test_charts_draw_the_spectra(page: Open) -> None:
    """The heights of the line of left angles are in the proportion of the angles."""
    data = comparison()
    shown = page(data)
    cell(shown, 3, 0).click()
    line = shown.locator("figure.chart").first.locator("svg[role=img] path[fill=none]").first.get_attribute("d")
    heights = [float(y) for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", line or "")]
    angles = data.spectra["model.layers.3.self_attn.q_proj.weight/angles_left@20%/base>sft"]
    assert len(heights) == angles.size == 19
    slope = (heights[-1] - heights[0]) / (angles[-1] - angles[0])
    assert slope < 0
    assert heights == pytest.approx([heights[0] + slope * (angle - angles[0]) for angle in angles], abs=0.2)


def test_keyboard(page: Open) -> None:
    """Tab reaches the map once; arrows, Home and End move; Enter pins, Escape closes; the tooltip follows."""
    shown = page(comparison(THREE))
    shown.locator("#pair").focus()
    shown.keyboard.press("Tab")
    where = "document.activeElement.getAttribute('aria-label')"
    assert str(shown.evaluate(where)).startswith("layer 0, self_attn.q_proj: Rotation ")
    for key, place in (
        ("ArrowDown", "layer 1, self_attn.q_proj"),
        ("ArrowRight", "layer 1, self_attn.k_proj"),
        ("End", "layer 1, mlp.down_proj"),
        ("ArrowUp", "layer 0, mlp.down_proj"),
        ("ArrowUp", "layer 0, mlp.down_proj"),
        ("ArrowLeft", "layer 0, mlp.up_proj"),
        ("Home", "layer 0, self_attn.q_proj"),
    ):
        shown.keyboard.press(key)
        assert str(shown.evaluate(where)).startswith(f"{place}: ")
    assert "layer 0, self_attn.q_proj" in shown.locator("#tip").inner_text()
    shown.keyboard.press("Enter")
    assert shown.locator("#details-title").inner_text() == "layer 0, self_attn.q_proj"
    shown.keyboard.press("Escape")
    assert shown.locator("#details").is_hidden()
    shown.keyboard.press("Enter")
    shown.locator("#close").click()
    assert shown.locator("#details").is_hidden()
    assert str(shown.evaluate(where)).startswith("layer 0, self_attn.q_proj: ")


def test_measure_and_pair_change_the_map(page: Open) -> None:
    """Numbers, colours, the scale and its unit follow both choices; every measure can be shown."""
    shown = page(comparison(THREE))
    states = set()

    def state() -> tuple[str, ...]:
        one = cell(shown, 0, 0)
        colour = one.evaluate("node => node.style.background")
        return str(colour), one.inner_text(), str(one.get_attribute("aria-label")), shown.locator("#unit").inner_text()

    states.add(state())
    shown.select_option("#pair", "2")
    states.add(state())
    assert "sft → rl" in shown.locator("#unit").inner_text()
    shown.select_option("#measure", "values_change")
    states.add(state())
    assert "%" in shown.locator("#high").inner_text()
    assert len({colour for colour, *_ in states}) == len(states) == 3
    for option in shown.locator("#measure option").all():
        value = str(option.get_attribute("value"))
        shown.select_option("#measure", value)
        for pair in ("0", "1", "2"):
            shown.select_option("#pair", pair)
            known = shown.locator("td[data-cell]:not(:text-is('–'))").count()
            assert known == (30 if value != "moved_back" or pair == "1" else 0)


def test_the_scale_is_that_of_the_pair_and_can_be_heard(page: Open) -> None:
    """A pair that changed far less has contrast too; the label of the scale has its numbers."""
    data = comparison(THREE)
    table = data.matrices
    small = table.assign(rotation=table["rotation"].where(table["before"] != "sft", table["rotation"] / 1e3))
    shown = page(Comparison(**{**vars(data), "matrices": small}))
    shown.select_option("#pair", "2")
    rows = small[small["before"] == "sft"]["rotation"]
    low, high = (f"{float(f'{math.degrees(value):.3g}'):g}°" for value in (rows.min(), rows.max()))
    label = f"Colour scale of Rotation, sft → rl: from {low}, dark, to {high}, bright"
    assert shown.locator("#scale").get_attribute("aria-label") == label
    shown.select_option("#measure", "moved_back")
    assert shown.locator("#high").inner_text() == "–"


def test_angles_that_are_rounding(page: Open) -> None:
    """They are said to be small; none at all is zero."""
    data = comparison()
    rotation = data.matrices["rotation"].where(data.matrices.index > 1, [1e-7, 0.0, *[0.5] * 28])
    shown = page(Comparison(**{**vars(data), "matrices": data.matrices.assign(rotation=rotation)}))
    for module, text in ((0, "< 0.00006°"), (1, "0°")):
        cell(shown, 0, module).click()
        row = shown.locator("#numbers tbody tr").first
        assert row.locator("td").all_inner_texts() == ["Rotation", text]


def test_a_list_that_is_cut_says_so(page: Open) -> None:
    """Of more than 2,000 cells the first are listed."""
    shown = page(comparison(layers=101, modules=[f"m{i}.q_proj" for i in range(20)], n=4, outside=False))
    shown.locator("#full summary").click()
    assert shown.locator("#all tbody tr").count() == 2000
    assert shown.locator("#cut").inner_text() == "The first 2,000 of 2,020 cells, as they are sorted."
    shown = page(comparison())
    shown.locator("#full summary").click()
    assert shown.locator("#cut").is_hidden()


def test_the_scale_is_even_in_brightness(page: Open) -> None:
    """A greater value is brighter, so that the map reads in grey, and its number has enough contrast."""
    data = comparison(layers=30)
    shown = page(data)
    cells = shown.evaluate(
        """() => [...document.querySelectorAll("td[data-cell]")].map((td) => [td.getAttribute("aria-label"),
             getComputedStyle(td).backgroundColor.match(/\\d+/g).map(Number), getComputedStyle(td).color])"""
    )

    def brightness(rgb: list[int]) -> float:
        linear = [c / 12.92 / 255 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    found = sorted((float(label.split()[-1].rstrip("°")), brightness(rgb)) for label, rgb, _ in cells)
    for (low, dark), (high, bright) in itertools.pairwise(found):
        assert low == high or bright >= dark - 0.004
    for _, rgb, colour in cells:
        text = 0.0 if colour == "rgb(0, 0, 0)" else 1.0
        contrast = (max(text, brightness(rgb)) + 0.05) / (min(text, brightness(rgb)) + 0.05)
        assert contrast >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(scheme: str, page: Open) -> None:
    """Nothing is wider than 390 pixels, with the widest map and the longest names; a tap pins, and the map scrolls."""
    models = ("a-model-of-a-very-long-name-v1.0", "another-model-of-a-long-name", "the-third-of-them")
    shown = page(comparison(models, modules=ATTENTION + EXPERTS, experts=2), color_scheme=scheme, **PHONE)
    assert sideways(shown) == 0
    cell(shown, 1, 6).tap()
    assert "mean of 2 matrices" in shown.locator("#details").inner_text()
    shown.evaluate("document.getElementById('full').open = true")
    assert sideways(shown) == 0
    wider = "node => node.scrollWidth > node.clientWidth"
    assert shown.locator(".scroll").first.evaluate(wider)


def test_dark_and_light(page: Open) -> None:
    """The page follows the reader's scheme, and its text stands out in both."""
    found = []
    for scheme in ("light", "dark"):
        shown = page(comparison(), color_scheme=scheme)
        style = "getComputedStyle(document.{}).{}"
        back = shown.evaluate(style.format("documentElement", "backgroundColor"))
        front = shown.evaluate(style.format("body", "color"))
        found.append([sum(map(int, re.findall(r"\d+", colour))) for colour in (back, front)])
    assert found[0][0] > 700 > 150 > found[0][1]
    assert found[1][0] < 150 < 600 < found[1][1]


def test_hostile_names_are_inert(page: Open) -> None:
    """Markup in names is shown as it is wherever the script writes it, makes no element and runs nothing."""
    shown = page(hostile())
    for module in range(cell(shown, 0, 0).evaluate("node => node.parentNode.cells.length") - 1):
        cell(shown, 0, module).hover()
        cell(shown, 0, module).click()
    shown.select_option("#pair", "1")
    shown.evaluate("document.getElementById('full').open = true")
    assert shown.locator("img").count() == 0
    assert shown.locator("script").count() == 3
    shown.locator("#all").get_by_text(HOSTILE).first.wait_for()
    assert HOSTILE in shown.locator("#details").inner_text()
    assert shown.locator("h1").inner_text().count(HOSTILE) == 1


def test_the_table_of_all_cells_sorts(page: Open) -> None:
    """It is made when opened, sorted by rotation; a click on a heading sorts by it, another one the other way."""
    data = comparison()
    shown = page(data)
    assert shown.locator("#all tbody tr").count() == 0
    shown.locator("#full summary").click()
    first = shown.locator("#all tbody tr").first.locator("td").first
    order = data.matrices.sort_values("rotation")
    assert first.inner_text() == order["matrix"].iloc[-1]
    shown.locator("#all").get_by_role("button", name="Rotation", exact=False).first.click()
    assert first.inner_text() == order["matrix"].iloc[0]
    shown.locator("#all").get_by_role("button", name="matrix").click()
    assert first.inner_text() == "lm_head.weight"


def test_commands_can_be_copied(page: Open) -> None:
    """The button copies the command and says so."""
    shown = page(comparison(), permissions=["clipboard-read", "clipboard-write"])
    shown.locator(".copy").click()
    shown.get_by_role("button", name="Copied").wait_for()
    assert shown.evaluate("navigator.clipboard.readText()") == "surgery apply x"


def test_quick_and_empty_reports(page: Open) -> None:
    """What was not computed cannot be chosen; one pair needs no choice; nothing compared is no error."""
    shown = page(comparison(quick=True))
    options = [str(option.get_attribute("value")) for option in shown.locator("#measure option").all()]
    assert "rotation" in options
    assert "moved_back" not in options
    assert shown.locator("#pair").is_hidden()
    data = comparison()
    empty = Comparison(**{**vars(data), "matrices": data.matrices[:0]})
    assert "No matrix was compared." in page(empty).locator("#verdict").inner_text()


def test_paper(page: Open) -> None:
    """Printed, the map keeps its colours and what can only be clicked is gone."""
    shown = page(comparison())
    shown.emulate_media(media="print")
    assert shown.locator("#measure").is_hidden()
    assert shown.locator(".copy").is_hidden()
    assert cell(shown, 0, 0).evaluate("node => getComputedStyle(node).printColorAdjust") == "exact"
