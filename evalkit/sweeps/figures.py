"""The figure of a sweep: out of distribution against in distribution, with intervals and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.stats import Estimate
from evalkit.sweeps.report import heading
from evalkit.sweeps.result import Row, SweepResult
from evalkit.sweeps.words import scale_of
from surgery.plotting import BLACK, Look, figure, legend_above, look, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "pareto"
PANEL = (7.5, 6.0)  # inches
LINE = 0.22  # inches, of a row where rows stand below each other
FRONT = "#7d8792"
NAMED = 40  # characters of a recipe's name in the legend
FAINT = 0.4  # of intervals: with 60 rows they would hide the points
CHOSEN = "chosen, on the report half"
REPORT = Look(BLACK, "-", "D")

Bar = tuple[float, float, float]


def draw_pareto(result: SweepResult, out: Path) -> tuple[Path, ...]:
    """`pareto.png` and `pareto.svg`: a point for each row on all examples, a panel for each split against the first.

    Models are black, the variants of a recipe share a colour; numbers are those of the table; the line joins the rows
    that no other beats on both. The open diamond is the chosen variant on the report half. With one split rows stand
    below each other. Raises OutputError.
    """
    first, *others = result.splits
    width, height = PANEL
    if not others:
        height = 1.5 + LINE * len(result.rows)
    with figure(width * max(1, len(others)), height) as drawn:
        panels = drawn.subplots(1, max(1, len(others)), squeeze=False)[0]
        styles = _styles(result.rows)
        if not others:
            _draw_list(panels[0], result, first, styles)
        for axes, split in zip(panels, others, strict=False):
            _draw_panel(axes, result, (first, split), styles)
        legend_above(drawn, width * max(1, len(others)), panels)
        return save(drawn, out, NAME)


def _styles(rows: Sequence[Row]) -> Mapping[str | None, Look]:
    """By recipe; models have none, and are alone in black. Up to 42 recipes differ in colour or marker."""
    recipes = dict.fromkeys(row.recipe for row in rows if row.recipe and row.error is None)
    coloured = (look(i) for i in count(1) if look(i).colour != BLACK)
    return {None: look(0), **dict(zip(recipes, coloured, strict=False))}


def _numbered(result: SweepResult) -> list[tuple[int, Row]]:
    """The rows that have scores, with their numbers in the table."""
    return [(number, row) for number, row in enumerate(result.rows, 1) if row.error is None]


def _draw_panel(axes: Axes, result: SweepResult, splits: tuple[str, str], styles: Mapping[str | None, Look]) -> None:
    """One split against another."""
    labels: dict[tuple[float, float], list[str]] = {}
    bold = set()
    for number, row in _numbered(result):
        bars = [_bar(row.scores["all"][split], result) for split in splits]
        at = bars[0][0], bars[1][0]
        if all(map(math.isfinite, at)):
            _draw_point(axes, bars, styles[row.recipe], row.recipe)
            labels.setdefault(at, []).append(row.name if row.kind == "model" else str(number))
            if row.kind == "model" or row.best:
                bold.add(at)
    for at, names in labels.items():  # rows at one point share a label
        weight = "bold" if at in bold else "normal"
        axes.annotate(
            plain(", ".join(names)), at, (4, 4), textcoords="offset points", fontsize=7.5, fontweight=weight, zorder=4,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )  # fmt: skip
    front = _front([*labels], result)
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=FRONT, linewidth=1.2, linestyle="--", zorder=1, label="Pareto front")
    if result.winner.kind != "model":
        told = [_bar(result.winner.scores["report"][split], result) for split in splits]
        _draw_point(axes, told, REPORT, CHOSEN)
    axes.set_xlabel(plain(f"{splits[0]}: {heading(result)}", NAMED))
    axes.set_ylabel(plain(f"{splits[1]}: {heading(result)}", NAMED))


def _draw_list(axes: Axes, result: SweepResult, split: str, styles: Mapping[str | None, Look]) -> None:
    """One split: rows from top to bottom."""
    for number, row in _numbered(result):
        _draw_point(axes, [_bar(row.scores["all"][split], result), (number, 0, 0)], styles[row.recipe], row.recipe)
        if row.best and row.kind != "model":
            told = [_bar(row.scores["report"][split], result), (number + 0.3, 0, 0)]
            _draw_point(axes, told, REPORT, CHOSEN)
    names = [plain(f"{number} {row.name}", NAMED) for number, row in enumerate(result.rows, 1)]
    axes.set_yticks(range(1, len(names) + 1), names)
    axes.set_ylim(len(names) + 0.8, 0.2)
    axes.set_xlabel(plain(f"{split}: {heading(result)}", NAMED))


def _draw_point(axes: Axes, bars: Sequence[Bar], style: Look, name: str | None) -> None:
    """A marker and its intervals; labelled once in each panel."""
    (x, *x_bar), (y, *y_bar) = bars
    label = plain(name or "models", NAMED)
    known = axes.get_legend_handles_labels()[1]
    chosen = style is REPORT
    drawn = axes.errorbar(
        [x], [y], xerr=[[length] for length in x_bar], yerr=[[length] for length in y_bar], color=style.colour,
        marker=style.marker, markerfacecolor="none" if chosen else style.colour, markersize=9 if chosen else 6,
        linestyle="", elinewidth=1.4 if chosen else 0.8,
        label="_" if label in known else label,
    )  # fmt: skip
    drawn.lines[0].set_zorder(5)  # above the labels, which are above the intervals
    for each in drawn.lines[2]:
        each.set_alpha(1 if chosen else FAINT)


def _bar(estimate: Estimate, result: SweepResult) -> Bar:
    """A value, and how far its interval reaches down and up; an infinite one is not drawn."""
    scale = scale_of(result.measure)[0]
    reach = (estimate.value - estimate.low, estimate.high - estimate.value)
    down, up = (scale * max(0.0, length) if math.isfinite(length) else 0.0 for length in reach)
    return scale * estimate.value, down, up


def _front(points: Sequence[tuple[float, float]], result: SweepResult) -> list[tuple[float, float]]:
    """Those that no other beats on both axes, from left to right."""
    sign = result.sign
    beaten = {
        point
        for point in points
        for other in points
        if other != point and all(sign * a >= sign * b for a, b in zip(other, point, strict=True))
    }
    return sorted(set(points) - beaten)
