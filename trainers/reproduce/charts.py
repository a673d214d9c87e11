"""Bars and lines of accuracies with their intervals, a panel for each split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.plotting import figure, legend_above, look, plain, save
from trainers.reproduce.across import Across
from trainers.reproduce.results import ID, OOD

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 7.2  # inches: the text width of a page
SPLITS = {ID: "in distribution (ID)", OOD: "out of distribution (OOD)"}
GREY = "#8C8C8C"
_BAR = 0.7  # of the room that a bar has
_APART = 0.08  # of the room of a tick, between the points of two lines


@dataclass(frozen=True, slots=True)
class Line:
    """What a line joins: for each split, points by what stands below them."""

    label: str
    points: Mapping[str, Sequence[tuple[str, Across]]]


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line: for each split its height."""

    label: str
    heights: Mapping[str, Across]
    colour: str
    dashes: Any


def draw_bars(
    bars: Mapping[str, Sequence[tuple[str, Across | None]]],
    labels: Mapping[str, str],
    looks: Mapping[str, tuple[str, str]],
    out: Path,
    name: str,
) -> Path | None:
    """A bar for each name, its interval, a dot for each seed; gives the path without an ending, None without data."""
    known = {split: [(key, found) for key, found in each if found is not None] for split, each in bars.items()}
    if not any(known.values()):
        return None
    with figure(WIDTH, 3.4) as drawing:
        panels = drawing.subplots(1, len(known), sharey=True, squeeze=False)[0]
        for axes, (split, each) in zip(panels, known.items(), strict=True):
            for place, (key, found) in enumerate(each):
                colour, hatch = looks[key]
                value = 100 * found.value
                axes.bar(place, value, _BAR, color=colour, alpha=0.75, hatch=hatch, edgecolor="white", linewidth=0)
                axes.errorbar(place, value, yerr=_error(found), color="black", linewidth=1, capsize=3)
                _dots(axes, place, found)
            axes.set_xticks(range(len(each)), [labels[key] for key, _ in each], rotation=35, ha="right")
            axes.set_title(SPLITS[split], fontsize=9)
            axes.grid(False, axis="x")
        panels[0].set_ylabel("accuracy, %")
        panels[0].set_ylim(bottom=0)
        save(drawing, out, name)
    return out / name


def _dots(axes: Axes, place: float, found: Across) -> None:
    """The seeds, where there are several."""
    if found.seeds > 1:
        axes.plot([place] * found.seeds, [100 * value for value in found.single], ".", color="black", markersize=3)


def _error(found: Across) -> list[list[float]]:
    """Lengths of both arms, of an interval that is known."""
    arms = (found.value - found.low, found.high - found.value)
    return [[100 * max(0.0, arm) if math.isfinite(arm) else 0.0] for arm in arms]


def draw_lines(lines: Sequence[Line], levels: Sequence[Level], axis: str, out: Path, name: str) -> Path:
    """Lines over what stands below their points, in the order in which that first comes; gives the path as above."""
    ticks = [*dict.fromkeys(tick for line in lines for points in line.points.values() for tick, _ in points)]
    with figure(WIDTH, 3.6) as drawing:
        panels = drawing.subplots(1, len(SPLITS), sharey=True, squeeze=False)[0]
        for axes, split in zip(panels, SPLITS, strict=True):
            for i, line in enumerate(lines):
                _line(axes, line, split, ticks, i, len(lines))
            for level in levels:
                if split in level.heights:
                    height = 100 * level.heights[split].value
                    axes.axhline(height, color=level.colour, linestyle=level.dashes, linewidth=1.2, label=level.label)
            axes.set_xticks(range(len(ticks)), [plain(tick, 14) for tick in ticks], rotation=35, ha="right")
            axes.set_xlabel(axis)
            axes.set_title(SPLITS[split], fontsize=9)
        panels[0].set_ylabel("accuracy, %")
        panels[0].set_ylim(bottom=0)
        legend_above(drawing, WIDTH, panels[:1])
        save(drawing, out, name)
    return out / name


def _line(axes: Axes, line: Line, split: str, ticks: Sequence[str], i: int, count: int) -> None:
    """Line i of so many, a little to the side, so that its intervals do not lie on another's."""
    style, points = look(i + 1), line.points.get(split, ())
    places = [ticks.index(tick) + _APART * (i - (count - 1) / 2) for tick, _ in points]
    arms = [[side for _, found in points for side in _error(found)[arm]] for arm in (0, 1)]
    axes.errorbar(
        places, [100 * found.value for _, found in points], yerr=arms, color=style.colour, linestyle=style.dashes,
        marker=style.marker, capsize=2, elinewidth=0.8, label=line.label,
    )  # fmt: skip
