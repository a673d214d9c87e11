"""A comparison in short: the figures of each pair, what rotated most, and the advice, as plain data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from surgery.analysis.advice import advise
from surgery.analysis.cells import changed, moved_back, of_pair

if TYPE_CHECKING:
    import pandas as pd

    from surgery.analysis.comparison import Comparison


def summary(comparison: Comparison) -> dict[str, object]:
    """The comparison in short, as plain data; commands name local models by absolute paths."""
    return {
        "models": dict(comparison.models),
        "ranks": list(comparison.ranks),
        "quick": comparison.quick,
        "decoder": comparison.decoder,
        "pairs": {f"{before}>{after}": pair_figures(comparison, (before, after)) for before, after in comparison.pairs},
        "most_rotated": [
            {"matrix": row.matrix, "rotation_degrees": _number(math.degrees(row.rotation))}
            for row in most_rotated(comparison, comparison.pairs[0]).itertuples()
        ],
        "advice": [{"text": item.text, "commands": list(item.commands)} for item in advise(comparison, absolute=True)],
        "remarks": list(comparison.remarks),
    }


def pair_figures(comparison: Comparison, pair: tuple[str, str]) -> dict[str, float | None]:
    """The few figures that tell most of a pair, medians over what changed; None for what is not known."""
    rows, heads = of_pair(comparison.matrices, pair), changed(of_pair(comparison.gauge, pair))
    moved = changed(rows)
    return {
        "matrices": len(rows),
        "equal": int(rows["equal"].sum()),
        "rotation_degrees_median": _number(math.degrees(moved["rotation"].median())),
        "relative_change_median": _number(moved["relative_change"].median()),
        "values_change_median": _number(moved["values_change"].median()),
        "cos_median": _number(moved[["cos_left", "cos_right"]].mean(axis=1).median()),
        "off_diagonal_share_median": _number(1 - moved["diagonal_share"].median()),
        "intruders_left": int(rows["intruders_left"].sum()),
        "intruders_right": int(rows["intruders_right"].sum()),
        "gauge_explained_median": _number(heads["explained"].median()),
        "gauge_chance": _number(heads["chance"].median()),
        "moved_back": _number(moved_back(comparison, rows)),
    }


def most_rotated(comparison: Comparison, pair: tuple[str, str], count: int = 10) -> pd.DataFrame:
    """The rows of the matrices that rotated most, the first most."""
    return of_pair(comparison.matrices, pair).nlargest(count, "rotation")


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
