"""The page of a sweep: everything that was found, and nothing that a strange name could do."""

from __future__ import annotations

import math
from dataclasses import replace
from html.parser import HTMLParser

from evalkit.stats import Difference
from evalkit.sweeps.report import changes, make_report, marks, scores
from evalkit.sweeps.result import SweepResult
from tests.evalkit.sweeps.made import HOSTILE, VARIANTS, aim, failed, result

PICTURE = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
COMMAND = "surgery apply restore base sft OUT --set 'head=40%'"


class Page(HTMLParser):
    """The tags of a page, its texts, and the cells of its table, row by row."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.rows and self.rows[-1] and "table" in self.tags:
            self.rows[-1][-1] += data


def page(found: SweepResult, commands: tuple[str, ...] = (COMMAND,)) -> Page:
    """The report of a result."""
    return Page(make_report(found, PICTURE, commands))


def test_everything_is_on_the_page() -> None:
    """The words, the models, every row with scores and differences, the settings, the recipes, the commands."""
    found = result()
    shown = page(found)
    for text in (
        *found.words,
        "models/base",
        "sums: part test, id 60, ood 60",
        "What restore does.",
        COMMAND,
        "What is tried.",
    ):
        assert text in shown.text
    header, *rows = [[cell.strip() for cell in row] for row in shown.rows[:7]]
    assert header == ["name", "id", "ood", "id − sft", "ood − sft", ""]
    assert [row[0] for row in rows] == [f"{i} {row.name}" for i, row in enumerate(found.rows, 1)]
    for row, cells in zip(found.rows, rows, strict=True):
        assert cells[1:3] == scores(row, found)
        assert cells[3:5] == [change.strip() for change in changes(row, found)]
    assert rows[1][3:5] == ["", ""]
    assert rows[3][5] == "chosen, Pareto-optimal"


def test_the_same_result_gives_the_same_bytes() -> None:
    """No time and no random number is on the page."""
    assert make_report(result(), PICTURE, [COMMAND]) == make_report(result(), PICTURE, [COMMAND])


def test_strange_names_stay_text() -> None:
    """In names of rows, recipes, splits, models, in words, settings and commands."""
    plain, wanted = result(), aim(("id", HOSTILE))
    shares = {"id": 0.9, HOSTILE: 0.9}
    changed = {"models": {"base": HOSTILE, "sft": HOSTILE}, "name": HOSTILE, "summary": HOSTILE}
    found = result({HOSTILE: shares, "average": shares}, wanted, **changed, settings={"task": HOSTILE, "chat": True})
    shown = page(found, (HOSTILE,))
    expected = page(result({"a": shares, "average": shares}, wanted, summary="x"), ("x",))
    assert shown.tags == expected.tags
    assert not any(name.startswith("on") for name, _ in shown.attributes)
    assert shown.text.count("{{ 7*7 }}") > 8
    assert "49" not in shown.text
    assert plain.best


def test_stars_and_marks() -> None:
    """A star where the corrected p-value counts; what a row is, in words."""
    found = result(VARIANTS, aim(tolerate={"id": 0.02}))
    row = found.row("values")
    strong = {
        "all": {"id": Difference(0.1, 0.05, 0.15, 9, 0.01, 0.04), "ood": Difference(0.1, 0.0, 0.2, 9, 0.01, 0.06)}
    }
    assert changes(replace(row, to_start=strong), found) == ["+10.0 [+5.0, +15.0] *", "+10.0 [+0.0, +20.0]  "]
    endless = {"all": {split: Difference(0.1, -math.inf, math.inf, 1, 1.0) for split in found.splits}}
    assert changes(replace(row, to_start=endless), found) == ["+10.0  ", "+10.0  "]
    assert marks(found.row("restore head=40%")) == ["Pareto-optimal", "loses too much"]
    assert marks(found.row("base")) == []


def test_without_recipes_or_commands() -> None:
    """A result of models alone, and one that nothing was chosen of, have a page."""
    assert "nothing was chosen" in page(result({"values": {"id": 0.6, "ood": 0.2}}), ()).text
    assert page(result({}), ()).text


def test_what_could_not_be_made() -> None:
    """Has its row, without figures, and the reason, whatever is in it."""
    found = result(more=[failed("big w=1", HOSTILE)])
    page = Page(make_report(found, PICTURE, []))
    (row,) = [row for row in page.rows if "big w=1" in row[0]]
    assert {cell.strip() for cell in row[1:-1]} == {""}
    assert row[-1].partition("\n")[0] == f"could not be made: {HOSTILE}"
    assert "onerror" not in dict(page.attributes)
    assert found.json()["rows"][-1] | {"objective": None, "digest": None, "scores": {}} == found.json()["rows"][-1]
