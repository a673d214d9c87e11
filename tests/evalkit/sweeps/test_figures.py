"""The figure of a sweep: what is drawn equals the numbers, however many splits, rows and strange names there are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evalkit.stats import Estimate
from evalkit.sweeps import figures
from evalkit.sweeps.figures import CHOSEN, draw_pareto
from evalkit.sweeps.result import SweepResult
from surgery.errors import OutputError
from tests.evalkit.sweeps.made import HOSTILE, VARIANTS, aim, failed, many, result

Drawn = list[Figure]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The figures, instead of files."""
    kept: Drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, *_: kept.append(figure) or ())
    return kept


def panels(drawn: Drawn, found: SweepResult) -> list[Axes]:
    """What is drawn of a result."""
    draw_pareto(found, Path("nowhere"))
    return drawn[-1].axes


def points(axes: Axes) -> list[tuple[float, float]]:
    """Where markers stand, in the order of the rows."""
    return [
        (float(container.lines[0].get_xdata()[0]), float(container.lines[0].get_ydata()[0]))
        for container in axes.containers
    ]


def bars(axes: Axes, number: int) -> list[list[float]]:
    """The ends of a point's intervals: horizontally, vertically."""
    lines: Any = axes.containers[number].lines[2]
    (horizontal,), (vertical,) = (each.get_segments() for each in lines)
    return [[float(end[0]) for end in horizontal], [float(end[1]) for end in vertical]]


def test_points_are_the_scores_of_all_rows(drawn: Drawn) -> None:
    """In per cent with their intervals; the last point is the winner on the report half."""
    found = result()
    (axes,) = panels(drawn, found)
    expected = [tuple(100 * row.scores["all"][split].value for split in ("id", "ood")) for row in found.rows]
    report = found.winner.scores["report"]
    expected.append((100 * report["id"].value, 100 * report["ood"].value))
    assert points(axes) == [pytest.approx(point) for point in expected]
    for i, split in enumerate(("id", "ood")):
        score = found.rows[0].scores["all"][split]
        assert bars(axes, 0)[i] == pytest.approx([100 * score.low, 100 * score.high])
        assert bars(axes, -1)[i] == pytest.approx([100 * report[split].low, 100 * report[split].high])
    assert axes.get_xlabel() == "id: accuracy, %"
    assert axes.get_ylabel() == "ood: accuracy, %"


@pytest.mark.parametrize("splits", [("id",), ("id", "ood")])
def test_what_could_not_be_made_is_not_drawn(drawn: Drawn, splits: tuple[str, ...]) -> None:
    """The others are where they were, with the numbers of the table."""
    found = result(wanted=aim(splits))
    more = failed("big w=1")
    (expected,) = panels(drawn, found)
    (axes,) = panels(drawn, replace(found, rows=(*found.rows, more)))
    assert points(axes) == points(expected)
    assert axes.get_legend_handles_labels()[1] == expected.get_legend_handles_labels()[1]


def test_no_two_recipes_look_alike(drawn: Drawn) -> None:
    """Beyond the sixth colours recur, with another marker; black is the models' alone, and the winner's once more."""
    shares = {f"recipe{i} head={i}": {"id": i / 60, "ood": i / 60} for i in range(42)}
    (axes,) = panels(drawn, result(shares))
    looks = {(drawn.lines[0].get_color(), drawn.lines[0].get_marker()) for drawn in axes.containers}
    assert len(looks) == 1 + 42 + 1  # the models, the recipes, and the winner on the report half


def test_the_line_joins_what_no_other_beats(drawn: Drawn) -> None:
    """From left to right, and for losses downwards."""
    for found in (result(), result(wanted=aim(measure="loss_per_token"))):
        (axes,) = panels(drawn, found)
        (line,) = (line for line in axes.lines if line.get_label() == "Pareto front")
        scale = 100 if found.measure == "accuracy" else 1
        optimal = {tuple(scale * row.scores["all"][s].value for s in found.splits) for row in found.rows if row.pareto}
        front = list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        assert front == sorted(front)
        assert {(float(x), float(y)) for x, y in front} == optimal


def test_labels_name_every_row_once(drawn: Drawn) -> None:
    """Models by name, variants by the numbers of the table; rows at one point share a label."""
    found = result()
    (axes,) = panels(drawn, found)
    texts = {text.get_text(): text.get_fontweight() for text in axes.texts}
    assert texts == {"base": "bold", "sft, 5": "bold", "3": "normal", "4": "bold", "6": "normal"}
    labels = [text.get_text() for text in drawn[-1].legends[0].get_texts()]
    assert labels == ["Pareto front", "models", "restore", "values", "average", CHOSEN]


def test_one_split_is_a_list(drawn: Drawn) -> None:
    """Rows from top to bottom with their names, the winner's report half below its row."""
    wanted = aim(("id",))
    found = result({"a": {"id": 0.9}, "b": {"id": 0.3}}, wanted)
    (axes,) = panels(drawn, found)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1 base", "2 sft", "3 a", "4 b"]
    assert [y for _, y in points(axes)] == [1, 2, 3, 3.3, 4]
    assert [x for x, _ in points(axes)][2] == pytest.approx(100 * found.rows[2].scores["all"]["id"].value)
    assert axes.yaxis_inverted()


def test_three_splits_are_two_panels(drawn: Drawn) -> None:
    """Each later split against the first, with a front of its own; one legend for both."""
    splits = ("id", "ood", "hard")
    found = result(many(6, splits), aim(splits))
    first, second = panels(drawn, found)
    assert (first.get_ylabel(), second.get_ylabel()) == ("ood: accuracy, %", "hard: accuracy, %")
    assert [x for x, _ in points(first)] == [x for x, _ in points(second)]
    assert len(drawn[-1].legends) == 1


def test_without_a_winner(drawn: Drawn) -> None:
    """Nothing is drawn of the report half where the start itself is the best."""
    (axes,) = panels(drawn, result({"values": {"id": 0.6, "ood": 0.2}}))
    assert len(axes.containers) == 3
    assert CHOSEN not in axes.get_legend_handles_labels()[1]


def test_what_is_not_finite_is_left_out(drawn: Drawn) -> None:
    """A score that is not known is no point, an infinite interval no bar."""
    found = result()
    unknown = {half: {s: Estimate(math.nan, 0, 1, 0) for s in found.splits} for half in ("all", "selection", "report")}
    endless = {half: {s: Estimate(0.5, -math.inf, math.inf, 1) for s in found.splits} for half in unknown}
    rows = (replace(found.rows[0], scores=unknown), replace(found.rows[1], scores=endless), *found.rows[2:])
    (axes,) = panels(drawn, replace(found, rows=rows))
    assert points(axes)[0] == (50, 50)
    assert bars(axes, 0) == [[50, 50], [50, 50]]
    assert len(axes.containers) == 6
    assert "base" not in {text.get_text() for text in axes.texts}


def test_files_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    """PNG and SVG, for the same data."""
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        found = draw_pareto(result(), tmp_path / place)
        assert found == (tmp_path / place / "pareto.png", tmp_path / place / "pareto.svg")
    for kind in ("png", "svg"):
        assert (tmp_path / "a" / f"pareto.{kind}").read_bytes() == (tmp_path / "b" / f"pareto.{kind}").read_bytes()


def test_strange_names_stay_text(tmp_path: Path) -> None:
    """Markup and formulas in the names of recipes, roles and splits are drawn as they are, in a well-formed SVG."""
    shares = {"id": 0.5, HOSTILE: 0.4}
    found = result({HOSTILE: shares, "模型 \n": shares, "_hidden": shares}, aim(("id", HOSTILE)))
    svg = draw_pareto(found, tmp_path)[1].read_text()
    texts = "".join(ElementTree.fromstring(svg).itertext())
    assert "<script" not in svg
    assert "</script><img" in texts


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """One error that says what to do."""
    with pytest.raises(OutputError, match="cannot write the figure"):
        draw_pareto(result(VARIANTS), tmp_path / "nowhere")
