"""The figures of a comparison, as PNG and SVG: over layers and modules. `draw` draws these and all others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from surgery.analysis.cells import (
    cells,
    inside_layers,
    layer_label,
    moved_back_by,
    of_pair,
    short_names,
)
from surgery.analysis.figures_gauge import embeddings, gauge
from surgery.analysis.figures_spectra import low_rank, principal_angles, singular_values
from surgery.plotting import (
    CHARACTER,
    draw_line,
    figure,
    legend_above,
    look,
    pair_label,
    plain,
    plain_log_axis,
    save,
    whole_numbers,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from surgery.analysis.comparison import Array, Comparison

LEAST_CELL = 0.29  # inches of width that a number in a cell needs
WIDTH = 7.2  # inches: the text width of a page
_UNITS: dict[str, tuple[str, float]] = {
    "rotation": ("mean principal angle, degrees", 180 / np.pi),
    "relative_change": ("relative change, %", 100.0),
    "values_change": ("change of values, %", 100.0),
}


def draw(comparison: Comparison, out: Path) -> tuple[Path, ...]:
    """Draw every figure for which there are data into the directory `out`, and return the paths, PNG and SVG each.

    Raises NotInstalledError without matplotlib, and OutputError where a file cannot be written.
    """
    drawn = (
        rotation_map,
        layers,
        values_or_rotation,
        singular_values,
        principal_angles,
        low_rank,
        gauge,
        embeddings,
        moved_back,
    )
    return tuple(path for one in drawn for path in one(comparison, out))


def rotation_map(comparison: Comparison, out: Path) -> tuple[Path, ...]:
    """Mean principal angle and relative change, layers against modules, a panel for each pair.

    Writes `rotation_map` and `relative_change_map`. Raises as `draw`.
    """
    table = cells(comparison)
    return _map(comparison, table, "rotation", out, "rotation_map") + _map(
        comparison, table, "relative_change", out, "relative_change_map"
    )


def _map(comparison: Comparison, table: pd.DataFrame, column: str, out: Path, name: str) -> tuple[Path, ...]:
    table = inside_layers(comparison, table)
    unit, scale = _UNITS[column]
    pairs = [pair for pair in comparison.pairs if np.isfinite(_column(of_pair(table, pair), column)).any()]
    if not pairs:
        return ()
    names = {module: plain(short) for module, short in short_names(table["module"]).items()}
    numbers = sorted(set(table["layer"]))
    margin = 1.5 + CHARACTER * max(map(len, names.values()))
    width = min(13.0, max(4.2, margin + 0.33 * len(numbers)))
    with figure(width, 0.5 + len(pairs) * (0.62 + max(0.9, 0.2 * len(names)))) as drawing:
        panels = drawing.subplots(len(pairs), 1, squeeze=False, sharex=True)[:, 0]
        grids = [scale * _grid(of_pair(table, pair), column, numbers, list(names)) for pair in pairs]
        finite = np.concatenate([grid[np.isfinite(grid)] for grid in grids])
        low, high = float(finite.min()), float(finite.max())
        if high - low < 1e-3 * high or high == 0:
            low, high = 0.0, high or 1.0  # no contrast where there is no difference
        written = (width - margin) / len(numbers) >= LEAST_CELL
        for axes, grid, pair in zip(panels, grids, pairs, strict=True):
            image = _heat(axes, grid, (low, high), written)
            axes.set_title(pair_label(pair), fontsize=9)
            axes.set_yticks(range(len(names)), list(names.values()))
        panels[-1].set_xlabel(layer_label(comparison))
        step = max(1, -(-len(numbers) // 20))
        panels[-1].set_xticks(range(0, len(numbers), step), [str(i) for i in numbers[::step]])
        bar = drawing.colorbar(image, ax=list(panels), pad=0.02, aspect=12 * len(pairs))
        bar.set_label(unit)
        return save(drawing, out, name)


def _heat(axes: Axes, grid: Array, limits: tuple[float, float], written: bool) -> AxesImage:
    """A heat map that is as readable in grey; an empty cell is white with a stroke."""
    image = axes.imshow(grid, aspect="auto", cmap="cividis", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    digits = 0 if limits[1] >= 9.95 else 1 if limits[1] >= 0.995 else 2
    for (row, column), value in np.ndenumerate(grid):
        if not np.isfinite(value):
            axes.text(column, row, "–", ha="center", va="center", color="#777777", fontsize=7, in_layout=False)
        elif written:
            dark = (value - limits[0]) / (limits[1] - limits[0]) < 0.5
            colour = "white" if dark else "black"
            text = f"{value:.{digits}f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7, in_layout=False)
    return image


def _grid(table: pd.DataFrame, column: str, layers: list[int], modules: list[str]) -> Array:
    """Modules x layers; NaN where there is no such matrix."""
    return np.asarray(
        table.pivot(index="module", columns="layer", values=column).reindex(index=modules, columns=layers), np.float64
    )


def layers(comparison: Comparison, out: Path) -> tuple[Path, ...]:
    """Rotation, relative change and change of values along the layers: the mean over modules, and their range.

    Writes `layers`. Raises as `draw`.
    """
    table = inside_layers(comparison, cells(comparison))
    shown = [column for column in _UNITS if np.isfinite(_column(table, column)).any()]
    if not shown:
        return ()
    with figure(WIDTH, 0.7 + 1.8 * len(shown)) as drawing:
        panels = drawing.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
        for axes, column in zip(panels, shown, strict=True):
            unit, scale = _UNITS[column]
            for i, pair in enumerate(comparison.pairs):
                _profile(axes, of_pair(table, pair), column, scale, i + 1, pair_label(pair))
            axes.set_ylabel(unit.replace("principal angle", "principal\nangle"))
            axes.set_ylim(bottom=0)
        whole_numbers(panels[-1], layer_label(comparison))
        legend_above(drawing, WIDTH, panels)
        return save(drawing, out, "layers")


def _profile(
    axes: Axes, table: pd.DataFrame, column: str, scale: float, i: int, label: str, line: pd.Series | None = None
) -> None:
    """The mean over a layer's modules as a line, or another `line`, and a band from the least to the greatest."""
    by = (scale * table.set_index("layer")[column]).groupby("layer").agg(["mean", "min", "max"])
    by = (by if line is None else by.assign(mean=scale * line)).dropna()
    if not len(by):
        return
    x = by.index.to_numpy()
    axes.fill_between(x, by["min"], by["max"], color=look(i).colour, alpha=0.13, linewidth=0)
    draw_line(axes, x, by["mean"].to_numpy(), look(i), label, 2 * i)


def values_or_rotation(comparison: Comparison, out: Path) -> tuple[Path, ...]:
    """How much of the change is of singular values and how much rotation, and both measured by themselves.

    Above, for each module, the share of the change within the base's singular basis that is on its diagonal, and the
    rest; below, change of values against mean principal angle, a point for each matrix. Writes `values_or_rotation`.
    Raises as `draw`.
    """
    table = inside_layers(comparison, cells(comparison))
    pairs = [pair for pair in comparison.pairs if np.isfinite(_column(of_pair(table, pair), "diagonal_share")).any()]
    points = [_points(of_pair(table, pair)) for pair in comparison.pairs]
    dots = any(len(x) for x, _ in points)
    if not pairs and not dots:
        return ()
    names = {module: plain(short) for module, short in short_names(table["module"]).items()}
    heights = [0.8 + 0.21 * len(names)] if pairs else []
    heights += [2.8] if dots else []
    with figure(WIDTH, sum(heights) + 0.3) as drawing:
        parts = drawing.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        if pairs:
            bars = parts[0].subplots(1, len(pairs), sharey=True, squeeze=False)[0]
            for axes, pair in zip(bars, pairs, strict=True):
                _bars(axes, of_pair(table, pair), names)
                axes.set_title(pair_label(pair, (WIDTH - 1.3) / len(pairs)), fontsize=9)
            legend_above(parts[0], WIDTH, bars[:1])
        if dots:
            axes = parts[-1].subplots()
            _scatter(axes, points, [pair_label(pair) for pair in comparison.pairs])
            legend_above(parts[-1], WIDTH, [axes])
        return save(drawing, out, "values_or_rotation")


def _bars(axes: Axes, table: pd.DataFrame, names: dict[str, str]) -> None:
    by = table.groupby("module")
    share = (100 * by["diagonal_share"].mean()).reindex(list(names)).to_numpy(np.float64)
    still = (by["unchanged"].sum() == by["count"].sum()).reindex(list(names), fill_value=False).to_numpy()
    rows = range(len(names))
    known = np.nan_to_num(share)
    axes.barh(rows, known, color=look(2).colour, label="singular values (diagonal)")
    rest = np.where(np.isfinite(share), 100 - share, 0.0)
    axes.barh(rows, rest, left=known, color="#C9DDEA", hatch="///", edgecolor="#7FA8C4", linewidth=0, label="rotation")
    for row, value in enumerate(share):
        text = f"{value:.2g} %" if np.isfinite(value) else "unchanged" if still[row] else "not known"
        right = bool(value < 60) if np.isfinite(value) else True
        axes.text(
            (known[row] + 2) if right else known[row] - 2,
            row,
            text,
            va="center",
            ha="left" if right else "right",
            fontsize=7,
            bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 0.8},
        )
    axes.set_yticks(rows, list(names.values()))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.grid(False)
    axes.set_xlabel("share of the change, %")


def _points(table: pd.DataFrame) -> tuple[Array, Array]:
    x, y = 100 * _column(table, "values_change"), np.degrees(_column(table, "rotation"))
    known = np.isfinite(x) & np.isfinite(y) & (x > 0)
    return x[known], y[known]


def _scatter(axes: Axes, points: list[tuple[Array, Array]], labels: list[str]) -> None:
    for i, ((x, y), label) in enumerate(zip(points, labels, strict=True), start=1):
        if len(x):
            face = look(i).colour if i == 1 else "none"
            axes.scatter(
                x,
                y,
                s=14 if len(x) < 300 else 7,
                linewidths=0.7,
                marker=look(i).marker,
                facecolors=face,
                edgecolors=look(i).colour,
                label=label,
            )
    plain_log_axis(axes, "x")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("change of singular values, % (log scale)")
    axes.set_ylabel("mean principal angle, degrees")


def moved_back(comparison: Comparison, out: Path) -> tuple[Path, ...]:
    """How far the third model undid what the second had changed, and how far each is from the base.

    Above, along the layers, the share of the change from base to second that the third has undone, of all matrices of
    a layer together, and a band over its modules; below, the mean principal angles of both from the base. Writes
    `moved_back`; nothing for two models. Raises as `draw`.
    """
    table = inside_layers(comparison, cells(comparison))
    pairs = comparison.pairs
    if len(pairs) < 3 or not np.isfinite(_column(of_pair(table, pairs[1]), "moved_back")).any():
        return ()
    angles = np.isfinite(_column(table, "rotation")).any()
    with figure(WIDTH, 4.6 if angles else 2.8) as drawing:
        panels = drawing.subplots(2 if angles else 1, 1, squeeze=False, sharex=True)[:, 0]
        back = f"{plain(pairs[1][1], 16)}: change of {pair_label(pairs[0])} undone"
        matrices = inside_layers(comparison, of_pair(comparison.matrices, pairs[1]))
        together = moved_back_by(comparison, matrices, ["layer"])
        _profile(panels[0], of_pair(table, pairs[1]), "moved_back", 100.0, 3, back, together)
        panels[0].axhline(0, color="black", linewidth=0.8)
        panels[0].set_ylabel("moved back, %")
        if angles:
            for i, pair in enumerate(pairs[:2], start=1):
                _profile(panels[1], of_pair(table, pair), "rotation", 180 / np.pi, i, pair_label(pair))
            panels[1].set_ylabel("mean principal\nangle, degrees")
            panels[1].set_ylim(bottom=0)
        whole_numbers(panels[-1], layer_label(comparison))
        legend_above(drawing, WIDTH, panels)
        return save(drawing, out, "moved_back")


def _column(table: pd.DataFrame, column: str) -> Array:
    """A column as numbers; nothing of a table without it."""
    return np.asarray(table[column], np.float64) if column in table.columns else np.empty(0)
