"""The report: what is in it, that names in it are only text, and how large it gets."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from surgery.analysis.comparison import Comparison
from surgery.analysis.headline import cards, top, verdict
from surgery.analysis.measures import MEASURES, number
from surgery.analysis.report import make_report
from surgery.errors import NotInstalledError
from tests.analysis.comparisons import ATTENTION, EXPERTS, HOSTILE, MLP, comparison, hostile

THREE = ("base", "sft", "rl")


def png() -> bytes:
    """A small picture of many colours."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(content, "PNG")
    return content.getvalue()


PNG = png()
SVG = b"<?xml version='1.0'?><svg onload='alert(1)'/>"


@dataclass(frozen=True)
class Hint:
    """Advice as `make_report` takes it."""

    text: str
    commands: tuple[str, ...] = ()


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text that is seen, scripts left out."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.seen = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the tag."""
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - the parser's
        """What follows is outside."""
        self._inside = ""

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.seen += data

    @property
    def data(self) -> Any:
        """The block that the script draws from."""
        return json.loads(self.scripts[0])


def changed(data: Comparison, **fields: Any) -> Comparison:
    """The comparison with other fields."""
    return Comparison(**{**vars(data), **fields})


def test_sections() -> None:
    """Verdict, numbers, advice, map, matrices, figures and definitions, in this order; pictures keep every pixel."""
    hint = Hint("Put them back:", ("surgery apply restore-top-20pct base sft out",))
    content = make_report(comparison(THREE), [hint], {"layers": PNG, "own": SVG}, {"surgery": "0.1.0", "torch": "2.13"})
    page = Page(content)
    headings = re.findall(r"<h[12][^>]*>([^<]*)", content.decode())
    assert headings == [
        "What changed between base, sft and rl",
        "What to try",
        "Matrix by matrix",
        "Most rotated, base → sft",
        "Figures",
        "How it was measured",
    ]
    assert "Put them back:" in page.seen
    assert "surgery apply restore-top-20pct base sft out" in page.seen
    assert "surgery 0.1.0, torch 2.13" in page.seen
    assert "`model.norm.weight` has one dimension and is not compared." in page.seen
    assert "Along the layers. The mean over a layer's modules" in page.seen
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert [str(source).partition(",")[0] for source in images] == [
        "data:image/webp;base64",
        "data:image/svg+xml;base64",
    ]
    kept = base64.b64decode(str(images[0]).partition(",")[2])
    with Image.open(io.BytesIO(kept)) as shown, Image.open(io.BytesIO(PNG)) as drawn:
        assert np.array_equal(np.asarray(shown), np.asarray(drawn))


def test_the_same_bytes_each_time() -> None:
    """No date, no random identifier."""
    pages = [make_report(comparison(THREE, seed=3), [Hint("x")], {"own": PNG}) for _ in range(2)]
    assert pages[0] == pages[1]


def test_nothing_is_fetched() -> None:
    """No address but of data within the page, and a policy that forbids any other."""
    page = Page(make_report(comparison(THREE), [], {"layers": PNG}))
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "poster"):
            assert str(attributes.get(name, "data:")).startswith("data:")
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    nonces = {a["nonce"] for tag, a in page.tags if tag == "script" and "nonce" in a}
    assert policy.count("'nonce-") == len(nonces) == 1
    assert f"script-src 'nonce-{nonces.pop()}'" in policy


def test_hostile_names_are_text() -> None:
    """Names that are markup appear as text, in the page and in its data, and make no tag; odd characters show."""
    data = hostile()
    bad = {HOSTILE: f"/models/{HOSTILE}"}
    data = changed(data, models=dict(data.models) | bad, remarks=(HOSTILE,), ranks=data.ranks)
    hint = Hint(HOSTILE, (f"surgery apply x '{HOSTILE}'",))
    content = make_report(data, [hint], {HOSTILE: PNG}, {HOSTILE: HOSTILE})
    page = Page(content)
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert [attributes for tag, attributes in page.tags if tag == "img" and "onerror" in attributes] == []
    assert HOSTILE.encode() not in content
    assert HOSTILE in page.data["models"]
    assert page.seen.count(HOSTILE) > 8
    assert "\u202e" not in content.decode()
    assert any("\\u202e\\x00" in cell["name"] for cell in page.data["cells"])
    assert not re.search("[<>&]", page.scripts[0])


def test_names_that_are_not_text() -> None:
    """A path that is not UTF-8 is shown with escapes."""
    data = comparison(layers=1)
    page = Page(make_report(changed(data, models={"base": "/m/\udcff", "sft": "/m/sft"}), [Hint("\udcff")], {}))
    assert "/m/\\udcff" in page.seen


def test_data_are_those_of_the_comparison() -> None:
    """Angles in degrees, shares in percent, four digits; spectra with their ends; None for what is not known."""
    data = comparison(THREE, layers=2, n=200)
    found = Page(make_report(data, [], {})).data
    assert found["pairs"] == ["base → sft", "base → rl", "sft → rl"]
    keys = [measure["key"] for measure in found["measures"]]
    cell = next(c for c in found["cells"] if c["name"] == "model.layers.1.mlp.up_proj.weight")
    for i, (before, after) in enumerate(data.pairs):
        rows = data.matrices[data.matrices["matrix"] == cell["name"]]
        row = rows[(rows["before"] == before) & (rows["after"] == after)].iloc[0]
        shown = dict(zip(keys, cell["v"][i], strict=True))
        assert shown["rotation"] == pytest.approx(math.degrees(row["rotation"]), rel=1e-3)
        assert shown["relative_change"] == pytest.approx(100 * row["relative_change"], rel=1e-3)
        assert shown["turned"] == pytest.approx(1 - (row["cos_left"] + row["cos_right"]) / 2, rel=1e-3)
        assert shown["intruders"] == row["intruders_left"] + row["intruders_right"]
        assert shown["off_diagonal"] == pytest.approx(100 * (1 - row["diagonal_share"]), rel=1e-3)
        assert (shown["moved_back"] is None) == (i != 1)
        n, angles = cell["left"][i]
        true = np.degrees(data.spectra[f"{cell['name']}/angles_left@20%/{before}>{after}"])
        assert (n, angles[0], angles[-1]) == (40, pytest.approx(true[0], rel=1e-3), pytest.approx(true[-1], rel=1e-3))
    n, values = cell["values"][2]
    true = data.spectra[f"{cell['name']}/values/rl"]
    assert (n, len(values)) == (200, 64)
    np.testing.assert_allclose(values, true[np.linspace(0, 199, 64).round().astype(int)], rtol=1e-3)


def test_every_cell_has_its_place() -> None:
    """Layers by modules for each stack, and one row for what is outside; None where a layer lacks a module."""
    data = comparison(layers=3)
    table = data.matrices[~((data.matrices["layer"] == 1) & (data.matrices["module"] == MLP[0]))]
    inside, outside = Page(make_report(changed(data, matrices=table), [], {})).data["grids"]
    assert [column["short"] for column in inside["columns"]] == [m.split(".")[1] for m in ATTENTION + MLP]
    assert [row["layer"] for row in inside["rows"]] == [0, 1, 2]
    assert [row["cells"].index(None) if None in row["cells"] else -1 for row in inside["rows"]] == [-1, 4, -1]
    assert [column["module"] for column in outside["columns"]] == ["model.embed_tokens", "lm_head"]
    places = [cell for grid in (inside, outside) for row in grid["rows"] for cell in row["cells"] if cell is not None]
    assert sorted(places) == list(range(3 * 7 - 1 + 2))


def test_experts_are_one_cell_with_the_worst_named() -> None:
    """Their mean, and the spectra of the one that rotated most."""
    data = comparison(modules=EXPERTS, experts=5, layers=2, outside=False)
    cell = Page(make_report(data, [], {})).data["cells"][0]
    rows = data.matrices[(data.matrices["layer"] == 0) & (data.matrices["module"] == cell["module"])]
    assert cell["count"] == 5
    assert cell["v"][0][0] == pytest.approx(math.degrees(rows["rotation"].mean()), rel=1e-3)
    assert cell["name"] == rows.loc[rows["rotation"].idxmax(), "matrix"]


def test_size_of_a_model_of_112_matrices() -> None:
    """16 layers of 7 matrices and three models, with all spectra, are below a megabyte without figures."""
    assert len(make_report(comparison(THREE, layers=16, n=2048, ranks=("20%",)), [], {})) < 1_000_000


def test_size_of_many_experts() -> None:
    """Thousands of expert matrices are as many cells as there are layers and modules."""
    data = comparison(modules=ATTENTION + EXPERTS, experts=64, layers=12, n=8)
    assert len(data.matrices) > 2300
    assert len(make_report(data, [], {})) < 400_000


def test_size_of_very_many_cells() -> None:
    """Where there are more cells their spectra are thinner."""
    modules = [f"m{i}.q_proj" for i in range(20)]
    found = Page(make_report(comparison(modules=modules, layers=40, n=128), [], {})).data
    assert {len(cell["values"][0][1]) for cell in found["cells"]} == {31}


def test_quick_hides_what_it_lacks() -> None:
    """No measure, card, column or definition of what was not computed, and a word about it."""
    page = Page(make_report(comparison(quick=True), [], {}))
    keys = {measure["key"] for measure in page.data["measures"]}
    assert "rotation" in keys
    assert keys.isdisjoint({"moved_back", "change_rank_90", "effective_rank_before"})
    for absent in ("Effective rank before", "nan", "NaN", "Moved back"):
        assert absent not in page.seen
    assert "This was a quick comparison" in page.seen


def test_nothing_known() -> None:
    """Of NaN and infinity nothing is shown, and the page is still one."""
    data = comparison(layers=1)
    numbers = [name for name in data.matrices.columns if data.matrices[name].dtype == float]
    for value in (math.nan, math.inf):
        blank = data.matrices.assign(**dict.fromkeys(numbers, value))
        page = Page(make_report(changed(data, matrices=blank, spectra={}, gauge=pd.DataFrame()), [], {}))
        assert not re.search(r"\b(nan|inf)\b", page.seen)
        assert page.data["cells"][0]["values"] == [None, None]
    page = Page(make_report(changed(data, matrices=data.matrices[:0], gauge=pd.DataFrame()), [], {}))
    assert "No matrix was compared." in page.seen


def test_verdict() -> None:
    """Counts, and medians of what changed in words; the third model too; equal models are said to be equal."""
    data = comparison(THREE, layers=2, equal=("model.layers.0.mlp.up_proj.weight",))
    table = data.matrices[(data.matrices["before"] == "base") & (data.matrices["after"] == "sft")]
    energy = table["change_energy"].to_numpy()
    table = table[~table["equal"]]
    text = verdict(data)
    assert text.startswith("15 of 16 matrices changed from base to sft. In the median changed matrix the leading sing")
    assert f"(r = 20%) turned by {math.degrees(table['rotation'].median()):.3g}°" in text
    assert f"the weights by {100 * table['relative_change'].median():.3g}\u00a0%" in text
    assert (
        f"{100 * (1 - table['diagonal_share'].dropna().median()):.3g}\u00a0% of the change is off the diagonal" in text
    )
    assert "(of a change at random 5\u00a0%)" in text
    shares = data.matrices.loc[(data.matrices["before"] == "base") & (data.matrices["after"] == "rl"), "moved_back"]
    back = 100 * np.nansum(shares * energy) / energy[~np.isnan(shares)].sum()
    assert f"It went back {back:.3g}\u00a0% of the way from base to sft" in text
    away = changed(data, matrices=data.matrices.assign(moved_back=-0.1))
    assert "It went on by 10\u00a0% of the way" in verdict(away)
    still = changed(data, matrices=data.matrices.assign(moved_back=0.004))
    assert "It went neither back nor further on the way" in verdict(still)
    names = list(data.matrices["matrix"])
    assert verdict(comparison(layers=2, equal=names)).startswith("All 16 matrices of base and sft are equal")


def test_cards() -> None:
    """A headline number each, of the first pair, with the others in small."""
    data = comparison(THREE, layers=2)
    found = {card.label: card for card in cards(data)}
    assert list(found) == [
        "Median rotation",
        "Median relative change",
        "Median change of values",
        "Unchanged",
        "Intruder directions",
        "Rotation's share",
        "Gauge",
    ]
    table = data.matrices.groupby(["before", "after"], sort=False)
    angles = [f"{math.degrees(value):.3g}°" for value in table["rotation"].median()]
    assert (found["Median rotation"].value, *(value for _, value in found["Median rotation"].others)) == tuple(angles)
    assert found["Unchanged"].value == "0"
    assert found["Unchanged"].note == "of 16 matrices, equal in value"
    total = table["intruders_left"].sum() + table["intruders_right"].sum()
    assert found["Intruder directions"].value == f"{total.iloc[0]}"
    assert found["Intruder directions"].note == f"of {16 * 2 * 19} leading ones, left and right"
    explained = data.gauge[data.gauge["after"] == "sft"]["explained"].median()
    assert found["Gauge"].value == f"{100 * explained:.3g}\u00a0%"


def test_cards_leave_out_what_did_not_change() -> None:
    """Medians are of the others, and say so; one frozen matrix is no rotation of 100 %."""
    data = comparison(layers=1, outside=False, equal=[f"model.layers.0.{module}.weight" for module in ATTENTION])
    found = {card.label: card for card in cards(data)}
    moved = data.matrices[4:]
    assert found["Median rotation"].value == f"{math.degrees(moved['rotation'].median()):.3g}°"
    assert found["Median rotation"].note == "mean principal angle, leading r = 20%; without the 4 unchanged"
    assert found["Rotation's share"].value == f"{100 * (1 - moved['diagonal_share'].median()):.3g}\u00a0%"
    assert found["Unchanged"].value == "4"


def test_top() -> None:
    """The ten that rotated most, the first most; where no angle is known, those that changed most."""
    data = comparison(layers=4)
    title, columns, rows = top(data)
    order = data.matrices.sort_values("rotation", ascending=False)
    assert title == "Most rotated, base → sft"
    assert [row[0] for row in rows] == list(order["matrix"][:10])
    assert [row[columns.index("Rotation")] for row in rows] == [
        f"{math.degrees(a):.3g}°" for a in order["rotation"][:10]
    ]
    blind = changed(data, matrices=data.matrices.assign(rotation=math.nan))
    title, columns, rows = top(blind)
    assert title == "Most changed, base → sft"
    assert "Rotation" not in columns
    assert rows[0][0] == data.matrices.loc[data.matrices["relative_change"].idxmax(), "matrix"]


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (31.234, "°", "31.2°"),
        (0.41444, "%", "0.414\u00a0%"),
        (12345.6, "", "12,346"),
        (0.0, "°", "0°"),
        (5e-5, "°", "< 0.00006°"),
        (-0.25, "%", "−0.25\u00a0%"),
        (0.0000123, "", "1.2e−05"),
        (99.96, "%", "100\u00a0%"),
    ],
)
def test_number(value: float, unit: str, shown: str) -> None:
    """Three digits, the unit, a true minus; short for what is large or tiny."""
    assert number(value, unit) == shown


def test_every_measure_of_the_map_is_defined() -> None:
    """What can be chosen can be looked up."""
    assert all(measure.definition for measure in MEASURES if measure.mapped)


def test_other_pictures_are_refused() -> None:
    """Bytes that are neither PNG nor SVG are an error of the caller's."""
    with pytest.raises(ValueError, match="the figure `x` is neither PNG nor SVG"):
        make_report(comparison(layers=1), [], {"x": b"GIF89a"})


def test_without_jinja(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message with the command that helps."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(NotInstalledError, match=r"a report needs `jinja2`.*pip install 'surgery\[diff\]'"):
        make_report(comparison(layers=1), [], {})
