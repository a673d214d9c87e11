"""The numbers that a report's page draws from, as plain data."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from surgery.analysis.cells import cells, short_names
from surgery.analysis.measures import MEASURES, legible, pair_name

if TYPE_CHECKING:
    from surgery.analysis.comparison import Array, Comparison

POINTS = 64  # of a spectrum on the page
FEWEST_POINTS = 12  # where there are very many cells
CELLS = 400  # from which on spectra are thinner, so that all together stay as large
DIGITS = 4


def page_data(comparison: Comparison) -> dict[str, Any]:
    """What the page's script draws from: a cell for each layer and module, its experts averaged.

    `cells` hold their numbers for each pair, in the units and the order of `measures`, None where not known, and
    their spectra, thinned. `grids` say where the cells stand: one for each stack, and one for what is outside.
    """
    table = cells(comparison)
    measures = [measure for measure in MEASURES if len(table) and np.isfinite(measure.values(table)).any()]
    columns = {measure.key: measure.values(table) for measure in measures}
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    pairs = {pair: i for i, pair in enumerate(comparison.pairs)}
    places = table[["stack", "layer", "module"]].drop_duplicates()
    points = max(FEWEST_POINTS, min(POINTS, POINTS * CELLS // max(1, len(places))))
    for i, row in enumerate(table.itertuples()):
        place = (str(row.stack), int(row.layer), str(row.module))
        pair = (row.before, row.after)
        if place not in found:
            found[place] = _cell(comparison, row, points, len(pairs))
        cell = found[place]
        cell["v"][pairs[pair]] = [_rounded(columns[measure.key][i]) for measure in measures]
        cell["equal"][pairs[pair]] = int(row.unchanged)
    keys = list(found)
    return {
        "models": [legible(model) for model in comparison.models],
        "pairs": [pair_name(pair) for pair in comparison.pairs],
        "measures": [{"key": m.key, "label": m.label, "unit": m.unit, "mapped": m.mapped} for m in measures],
        "cells": list(found.values()),
        "grids": _grids(keys),
    }


def _cell(comparison: Comparison, row: Any, points: int, pairs: int) -> dict[str, Any]:
    """A cell before its numbers; its spectra are those of the matrix that it names."""
    name = str(row.matrix)
    return {
        "name": legible(name),
        "module": legible(row.module),
        "layer": int(row.layer),
        "count": int(row.count),
        "shape": [int(row.rows), int(row.cols)],
        "v": [None] * pairs,
        "equal": [0] * pairs,
        "values": [_thinned(comparison.spectra.get(f"{name}/values/{model}"), points) for model in comparison.models],
        **{
            side: [
                _thinned(
                    comparison.spectra.get(f"{name}/angles_{side}@{comparison.ranks[0]}/{before}>{after}"),
                    points,
                    180 / np.pi,
                )
                for before, after in comparison.pairs
            ]
            for side in ("left", "right")
        },
    }


def _grids(keys: list[tuple[str, int, str]]) -> list[dict[str, Any]]:
    """A grid for each stack: its modules, and for each layer the number of each module's cell, or None."""
    index = {key: i for i, key in enumerate(keys)}
    grids = []
    for stack, outside in dict.fromkeys((stack, layer < 0) for stack, layer, _ in keys):
        inside = [key for key in keys if key[0] == stack and (key[1] < 0) == outside]
        modules = list(dict.fromkeys(module for _, _, module in inside))
        short = short_names(modules)
        rows = [
            {"layer": layer, "cells": [index.get((stack, layer, module)) for module in modules]}
            for layer in sorted({layer for _, layer, _ in inside})
        ]
        columns = [{"module": legible(module), "short": legible(short[module])} for module in modules]
        grids.append({"stack": legible(stack), "outside": outside, "columns": columns, "rows": rows})
    return sorted(grids, key=lambda grid: (grid["outside"], -len(grid["rows"])))


def _thinned(values: Array | None, points: int, scale: float = 1.0) -> list[Any] | None:
    """[n, values]: of n values the first, the last and evenly spaced ones between, at most so many."""
    if values is None or not len(values):
        return None
    array = scale * np.asarray(values, np.float64)
    chosen = np.linspace(0, array.size - 1, min(points, array.size)).round().astype(int)
    return [int(array.size), [_rounded(value) for value in array[chosen]]]


def _rounded(value: float) -> float | None:
    """To four digits; None for what JSON cannot say."""
    if not isfinite(value):
        return None
    rounded = float(f"{float(value):.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded
