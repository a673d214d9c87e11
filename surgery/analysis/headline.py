"""What a report says first: a paragraph, headline numbers, and the matrices that rotated most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from surgery.analysis.cells import changed, moved_back, of_pair
from surgery.analysis.measures import DEGREES, MEASURES, PERCENT, Measure, legible, number, pair_name

if TYPE_CHECKING:
    import pandas as pd

    from surgery.analysis.comparison import Comparison

LEAST_RETURN = 0.5  # percent of the way: less is neither back nor forth
TOP = 10  # matrices named as those that rotated most


@dataclass(frozen=True, slots=True)
class Card:
    """A headline number of the first pair, and of the others in small; `note` says what it is of."""

    label: str
    value: str
    note: str = ""
    others: tuple[tuple[str, str], ...] = ()


def cards(comparison: Comparison) -> list[Card]:
    """The headline numbers; what is not known has no card."""
    rank = comparison.ranks[0]
    found = [
        _median(comparison, "rotation", "Median rotation", f"mean principal angle, leading r = {rank}"),
        _median(comparison, "relative_change", "Median relative change", "of a matrix, Frobenius norm"),
        _median(comparison, "values_change", "Median change of values", "of a matrix's singular values"),
        _unchanged(comparison),
        _intruders(comparison),
        _median(comparison, "off_diagonal", "Rotation's share", "of the squared change, median"),
        _gauge(comparison),
    ]
    return [card for card in found if card is not None]


def _by_pair(comparison: Comparison, values: list[str | None], label: str, note: str) -> Card | None:
    named = [(pair_name(pair), v) for pair, v in zip(comparison.pairs, values, strict=True) if v is not None]
    return Card(label, named[0][1], note, tuple(named[1:])) if named else None


def measured(comparison: Comparison, pair: tuple[str, str], key: str) -> float | None:
    """The median of a measure over the changed matrices of a pair, in its unit; None where it is known of none."""
    values = _measure(key).values(changed(of_pair(comparison.matrices, pair)))
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else None


def _measure(key: str) -> Measure:
    return next(measure for measure in MEASURES if measure.key == key)


def _median(comparison: Comparison, key: str, label: str, note: str) -> Card | None:
    medians = [measured(comparison, pair, key) for pair in comparison.pairs]
    unit = _measure(key).unit
    if equal := int(of_pair(comparison.matrices, comparison.pairs[0])["equal"].sum()):
        note += f"; without the {equal:,} unchanged"
    return _by_pair(comparison, [None if m is None else number(m, unit) for m in medians], label, note)


def _unchanged(comparison: Comparison) -> Card | None:
    rows = [of_pair(comparison.matrices, pair) for pair in comparison.pairs]
    values = [f"{int(table['equal'].sum()):,}" for table in rows]
    return _by_pair(comparison, [*values], "Unchanged", f"of {len(rows[0]):,} matrices, equal in value")


def _intruders(comparison: Comparison) -> Card | None:
    values = []
    of = 0
    for pair in comparison.pairs:
        table = of_pair(comparison.matrices, pair)
        counts, ranks = _measure("intruders").values(table), table["rank"].to_numpy(np.float64)
        known = np.isfinite(counts) & np.isfinite(ranks)
        values.append(f"{counts[known].sum():,.0f}" if known.any() else None)
        of = of or int(2 * ranks[known].sum())
    return _by_pair(comparison, values, "Intruder directions", f"of {of:,} leading ones, left and right")


def gauge_share(comparison: Comparison, pair: tuple[str, str]) -> float | None:
    """The share of the change that a rotation of the inner space explains, in percent: median of changed heads."""
    if not len(comparison.gauge):
        return None
    values = 100 * changed(of_pair(comparison.gauge, pair))["explained"].to_numpy(np.float64)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else None


def _gauge_by_chance(comparison: Comparison) -> str:
    """What it would explain of a small change at random."""
    return number(100 * float(comparison.gauge["chance"].median()), PERCENT)


def _gauge(comparison: Comparison) -> Card | None:
    if not len(comparison.gauge):
        return None
    shares = [gauge_share(comparison, pair) for pair in comparison.pairs]
    texts = [None if share is None else number(share, PERCENT) for share in shares]
    chance = _gauge_by_chance(comparison)
    note = f"of the change of value and output projections, median of changed heads; by chance {chance}"
    return _by_pair(comparison, texts, "Gauge", note)


def top(comparison: Comparison) -> tuple[str, list[str], list[list[str]]]:
    """What the table of the most changed matrices is called, its columns, and its rows as text.

    Of the first pair, by rotation, or by relative change where no rotation is known.
    """
    pair, *others = comparison.pairs
    table = of_pair(comparison.matrices, pair)
    key = "rotation" if table["rotation"].notna().any() else "relative_change"
    chosen = table.sort_values(key, ascending=False, kind="stable").head(TOP)
    title = f"{'Most rotated' if key == 'rotation' else 'Most changed'}, {pair_name(pair)}"
    keys = ("rotation", "angle_left", "angle_right", "relative_change", "values_change", "intruders")
    shown = [m for m in map(_measure, keys) if np.isfinite(m.values(chosen)).any()]
    rows = [[legible(row.matrix), f"{int(row.rows):,} × {int(row.cols):,}"] for row in chosen.itertuples()]
    _add_columns(rows, chosen, shown)
    for other in others if key == "rotation" else []:
        same = of_pair(comparison.matrices, other).set_index("matrix").reindex(chosen["matrix"])
        _add_columns(rows, same, [_measure("rotation")])
    columns = ["matrix", "shape", *(measure.label for measure in shown)]
    return title, columns + [f"Rotation, {pair_name(p)}" for p in others if key == "rotation"], rows


def _add_columns(rows: list[list[str]], table: pd.DataFrame, shown: list[Measure]) -> None:
    for measure in shown:
        for row, value in zip(rows, measure.values(table), strict=True):
            row.append(number(value, measure.unit) if np.isfinite(value) else "–")


def verdict(comparison: Comparison) -> str:
    """One paragraph that says in words what was found."""
    first = comparison.pairs[0]
    table = of_pair(comparison.matrices, first)
    if not len(table):
        return "No matrix was compared."
    equal, total = int(table["equal"].sum()), len(table)
    base, tuned = map(legible, first)
    if equal == total:
        return f"All {total:,} matrices of {base} and {tuned} are equal in value: there is nothing to compare."
    count = f"{total - equal:,} of {total:,} matrices changed" if equal else f"All {total:,} matrices changed"
    sentences = [f"{count} from {base} to {tuned}.", *_sizes(comparison, first), *_kinds(comparison, first)]
    if len(comparison.pairs) > 1:
        sentences += _third(comparison)
    if comparison.quick:
        sentences.append("This was a quick comparison, of the leading directions alone; what needs all is left out.")
    return " ".join(sentences)


def _sizes(comparison: Comparison, pair: tuple[str, str]) -> list[str]:
    """How far directions, values and weights moved."""
    turned, values, change = (
        measured(comparison, pair, key) for key in ("rotation", "values_change", "relative_change")
    )
    parts = []
    if turned is not None:
        parts.append(f"the leading singular directions (r = {comparison.ranks[0]}) turned by {number(turned, DEGREES)}")
    if values is not None:
        parts.append(f"the singular values changed by {number(values, PERCENT)}")
    if change is not None:
        parts.append(f"the weights by {number(change, PERCENT)}")
    which = "changed matrix" if of_pair(comparison.matrices, pair)["equal"].any() else "matrix"
    if len(parts) > 1:
        return [f"In the median {which} {', '.join(parts[:-1])} and {parts[-1]}."]
    return [f"In the median {which} {parts[0]}."] if parts else []


def _off_diagonal_by_chance(comparison: Comparison, pair: tuple[str, str]) -> float:
    """The off-diagonal share of a change at random, in percent: all but 1 / max(rows, cols); median as measured."""
    table = changed(of_pair(comparison.matrices, pair))
    return float(100 * (1 - 1 / table[["rows", "cols"]].max(axis=1)).median())


def _kinds(comparison: Comparison, pair: tuple[str, str]) -> list[str]:
    """How much of the change is rotation, and how much of that is a gauge."""
    sentences = []
    if (share := measured(comparison, pair, "off_diagonal")) is not None:
        what = "rotation of directions" if share >= 50 else "less rotation of directions than change of values"
        sentences.append(
            f"{number(share, PERCENT)} of the change is off the diagonal of the base's basis: {what} (of a change at "
            f"random {number(_off_diagonal_by_chance(comparison, pair), PERCENT)} would be)."
        )
    if (gauge := gauge_share(comparison, pair)) is not None:
        sentences.append(
            f"Of the change of value and output projections, a rotation that leaves the heads' function as it is "
            f"explains {number(gauge, PERCENT)} (of a change at random {_gauge_by_chance(comparison)})."
        )
    return sentences


def _third(comparison: Comparison) -> list[str]:
    first, pair, _ = comparison.pairs
    base, tuned, third = map(legible, (*first, pair[1]))
    turned = measured(comparison, pair, "rotation")
    share = 100 * moved_back(comparison, of_pair(comparison.matrices, pair))
    sentences = []
    if turned is not None:
        sentences.append(f"{third} is turned from {base} by {number(turned, DEGREES)}.")
    if np.isfinite(share):
        if abs(share) < LEAST_RETURN:
            sentences.append(f"It went neither back nor further on the way from {base} to {tuned}.")
        else:
            moved = "went back" if share > 0 else "went on by"
            sentences.append(
                f"It {moved} {number(abs(share), PERCENT)} of the way from {base} to {tuned} (all matrices together)."
            )
    return sentences
