"""Figures of spectra: singular values, principal angles, and the directions that the change has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from surgery.analysis.cells import inside_layers, mean_spectrum, members, short_names, sorted_modules, three_layers
from surgery.plotting import (
    LOOKS,
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

    from surgery.analysis.comparison import Array, Comparison

WIDTH = 7.2
COLUMNS = 4  # of small panels side by side
SHOWN_MODULES = 12  # panels of one figure
ANY = 3  # modules of which singular values are drawn where none is a query, key or value projection
CARRIED = 90  # percent of the change's energy that is marked
_QKV = re.compile(r"(?:^|_|w|to_)(?:qkv|[qkv])(?:_|$)|^(?:query|key|value)(?:_|$)|^c_attn$")


def singular_values(comparison: Comparison, out: Path) -> tuple[Path, ...]:
    """Singular values of the query, key and value projections of three layers, and below how they differ.

    The first, the middle and the last layer; of a model without such names the attention matrices, and without
    attention the first modules there are. All models on one axis, logarithmic. As figure 3 of arXiv 2509.12235.
    Writes `singular_values`. Raises NotInstalledError and OutputError.
    """
    table = inside_layers(comparison, comparison.matrices)
    modules = _projections(table)
    layers = three_layers(table.loc[table["module"].isin(modules), "layer"])
    named = members(table)
    spectra = {(i, module): _values(comparison, named.get((i, module), [])) for i in layers for module in modules}
    shown = [place for place, found in spectra.items() if found]
    if not shown:
        return ()
    layers = tuple(dict.fromkeys(layer for layer, _ in shown))
    short = short_names(table["module"])
    width = max(3.6, 2.6 * len(modules))
    with figure(width, 0.6 + 2.9 * len(layers)) as drawing:
        grid = drawing.subplots(2 * len(layers), len(modules), squeeze=False, height_ratios=[1.9, 1] * len(layers))
        for i, layer in enumerate(layers):
            for j, module in enumerate(modules):
                above, below = grid[2 * i, j], grid[2 * i + 1, j]
                if (layer, module) not in shown:
                    above.remove()
                    below.remove()
                    continue
                _draw_values(above, below, comparison, spectra[layer, module])
                above.set_title(f"layer {layer}, {plain(short[module])}", fontsize=9)
                if j == 0:
                    above.set_ylabel("singular value")
                    below.set_ylabel("difference")
        legend_above(drawing, width, grid.ravel())
        return save(drawing, out, "singular_values")


def _projections(table: pd.DataFrame) -> list[str]:
    modules = sorted_modules(table)
    found = [module for module in modules if _QKV.search(module.rsplit(".", 1)[-1].lower())]
    if not found:
        found = [*dict.fromkeys(table.loc[table["group"] == "attention", "module"])] or modules
    order = {"q": 0, "k": 1, "v": 2}
    key = {module: module.rsplit(".", 1)[-1].lower().removeprefix("to_").removeprefix("w")[:1] for module in found}
    return sorted(found, key=lambda module: order.get(key[module], 3))[:ANY]


def _values(comparison: Comparison, names: Sequence[str]) -> dict[str, Array]:
    """The singular values of one cell's matrices in each model, those that are known in all."""
    spectra = {
        model: mean_spectrum(comparison.spectra, [f"{name}/values/{model}" for name in names])
        for model in comparison.models
    }
    known = {model: values for model, values in spectra.items() if values is not None}
    n = min((values.size for values in known.values()), default=0)
    return {model: values[:n] for model, values in known.items()} if len(known) > 1 else {}


def _draw_values(above: Axes, below: Axes, comparison: Comparison, values: dict[str, Array]) -> None:
    names = list(comparison.models)
    for model, spectrum in values.items():
        i = names.index(model)
        index = np.arange(1, spectrum.size + 1)
        draw_line(above, index, np.where(spectrum > 0, spectrum, np.nan), look(i), plain(model), 2 * i)
    if any((spectrum > 0).any() for spectrum in values.values()):
        plain_log_axis(above, "y")
    for i, (before, after) in enumerate(comparison.pairs, start=1):
        if before in values and after in values:
            difference = values[after] - values[before]
            label = f"{plain(after, 18)} − {plain(before, 18)}"
            style = look(i) if i < 3 else look(3)
            draw_line(below, np.arange(1, difference.size + 1), difference, style, label, 2 * i, linewidth=1.0)
    below.axhline(0, color="black", linewidth=0.6)
    above.tick_params(labelbottom=False)
    above.sharex(below)
    whole_numbers(below, "index", ticks=5)
    below.ticklabel_format(axis="y", useOffset=False, useMathText=True, scilimits=(-2, 4))
    below.locator_params(axis="y", nbins=4)


def principal_angles(comparison: Comparison, out: Path) -> tuple[Path, ...]:
    """Principal angles between the leading-r singular subspaces before and after, in degrees against their index.

    A panel for each module of the first layer, left and right subspaces as two lines, each model beside the base on
    the same axes. As figure 4 of arXiv 2509.12235. Writes `principal_angles` for the first layer,
    `principal_angles_middle` and `principal_angles_last`. Raises as `singular_values`.
    """
    table = inside_layers(comparison, comparison.matrices)
    layers = three_layers(table["layer"])
    names = ["principal_angles", "principal_angles_last"] if len(layers) == 2 else _ANGLE_FIGURES
    return tuple(
        path for layer, name in zip(layers, names, strict=False) for path in _angles(comparison, layer, name, out)
    )


_ANGLE_FIGURES = ["principal_angles", "principal_angles_middle", "principal_angles_last"]


def _angles(comparison: Comparison, layer: int, name: str, out: Path) -> tuple[Path, ...]:
    table = inside_layers(comparison, comparison.matrices)
    modules = sorted_modules(table[table["layer"] == layer])
    named = members(table[table["layer"] == layer])
    spectra = {module: found for module in modules if (found := _angle_spectra(comparison, named[layer, module]))}
    spectra = dict(list(spectra.items())[:SHOWN_MODULES])
    if not spectra:
        return ()
    short = short_names(table["module"])
    columns = min(COLUMNS, len(spectra)) if len(spectra) != COLUMNS + 1 else 3
    rows = -(-len(spectra) // columns)
    highest = max(float(angles.max()) for found in spectra.values() for angles in found.values())
    width = max(3.6, 2.2 * columns)
    with figure(width, 0.9 + 1.9 * rows) as drawing:
        grid = drawing.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for i, (module, found) in enumerate(spectra.items()):
            axes = grid[i]
            for (pair, side), angles in found.items():
                _draw_angles(axes, comparison, pair, side, angles)
            r = max(angles.size for angles in found.values())
            axes.set_title(f"{plain(short[module])}, r = {r:,}", fontsize=9)
            axes.set_ylim(0, 90 if highest > np.pi / 4 else max(1.08 * np.degrees(highest), 1e-3))
            if highest > np.pi / 4:
                axes.set_yticks([0, 30, 60, 90])
            whole_numbers(axes, "index", ticks=5)
            if i % columns == 0:
                axes.set_ylabel("principal angle, degrees")
        for axes in grid[len(spectra) :]:
            axes.remove()
        heading = f"layer {layer}, leading subspaces of rank r = {plain(comparison.ranks[0])}"
        legend_above(drawing, width, grid[: len(spectra)], heading)
        return save(drawing, out, name)


def _angle_spectra(comparison: Comparison, names: Sequence[str]) -> dict[tuple[tuple[str, str], str], Array]:
    """Of each pair with the base, left and right, ascending, in radians."""
    rank, base = comparison.ranks[0], next(iter(comparison.models))
    found = {}
    for pair in comparison.pairs:
        for side in ("left", "right"):
            keys = [f"{name}/angles_{side}@{rank}/{pair[0]}>{pair[1]}" for name in names]
            if pair[0] == base and (angles := mean_spectrum(comparison.spectra, keys)) is not None:
                found[pair, side] = angles
    return found


def _draw_angles(axes: Axes, comparison: Comparison, pair: tuple[str, str], side: str, angles: Array) -> None:
    """Left subspaces with a full line and full markers, right ones dashed with empty markers."""
    i = comparison.pairs.index(pair) + 1
    label = f"{pair_label(pair, width=16)}, {side}"
    more = {"linestyle": "-"} if side == "left" else {"linestyle": "--", "markerfacecolor": "white"}
    shift = 4 * (i - 1) + (2 if side == "right" else 0)
    draw_line(axes, np.arange(1, angles.size + 1), np.degrees(angles), look(i), label, shift, **more)


def low_rank(comparison: Comparison, out: Path) -> tuple[Path, ...]:
    """How many directions the change has: its cumulative energy against their number, a line for each module.

    The median over layers; a panel for each pair. Writes `low_rank`, and nothing for a quick comparison. Raises as
    `singular_values`.
    """
    table = inside_layers(comparison, comparison.matrices)
    lines = {pair: _energies(comparison, table, pair) for pair in comparison.pairs}
    lines = {pair: found for pair, found in lines.items() if found}
    if not lines:
        return ()
    short = short_names(table["module"])
    modules = sorted_modules(table)
    width = max(4.4, 3.0 * len(lines))
    with figure(width, 3.6 + 0.06 * len(modules)) as drawing:
        panels = drawing.subplots(1, len(lines), squeeze=False, sharey=True)[0]
        for axes, (pair, found) in zip(panels, lines.items(), strict=True):
            for i, module in enumerate(modules):
                if (energy := found.get(module)) is None:
                    continue
                marks = (0.02 * (i % len(LOOKS)), 0.02 * len(LOOKS))  # evenly along the line: the axis is logarithmic
                index = np.arange(1, energy.size + 1)
                draw_line(axes, index, 100 * energy, look(i), plain(short[module]), markevery=marks)
            axes.axhline(CARRIED, color="black", linewidth=0.8, linestyle=":")
            plain_log_axis(axes, "x")
            axes.set_ylim(0, 102)
            axes.set_xlabel("directions of the change (log scale)")
            axes.set_title(pair_label(pair, 2.6), fontsize=9)
        panels[0].set_ylabel("energy of the change carried, %")
        legend_above(drawing, width, panels)
        return save(drawing, out, "low_rank")


def _energies(comparison: Comparison, table: pd.DataFrame, pair: tuple[str, str]) -> dict[str, Array]:
    """For each module the cumulative share of the squared change, the median over layers."""
    curves: dict[str, list[Array]] = {}
    for (_, module), names in members(table).items():
        values = mean_spectrum(comparison.spectra, [f"{name}/change_values/{pair[0]}>{pair[1]}" for name in names])
        if values is not None and (total := float(np.sum(values**2))) > 0:
            curves.setdefault(module, []).append(np.cumsum(values**2) / total)
    sizes = {module: min(curve.size for curve in found) for module, found in curves.items()}
    return {module: np.median([curve[: sizes[module]] for curve in found], axis=0) for module, found in curves.items()}
