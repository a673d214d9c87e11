"""The layers and modules of a comparison: one cell for all experts that share them, and the spectra of a cell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from surgery.analysis.comparison import Array, Comparison

PLACE = ["stack", "layer", "module"]
PAIR = ["before", "after"]
SAMPLED = 8  # experts of a cell whose spectra are averaged, so that tens of thousands need not be read
_TEXT = frozenset({*PLACE, *PAIR, "matrix", "tensor", "expert", "group", "equal"})
_ORDER = ("q", "k", "v", "qkv", "o", "gate", "up", "down")  # of projections, in the order in which data pass them
_GROUPS = ("attention", "mlp", "embedding", "lm_head")


def cells(comparison: Comparison) -> pd.DataFrame:
    """A row for each stack, layer, module and pair: the mean of every number over the experts that share the cell.

    Of the finite ones; `moved_back` is that of all together. Besides: `count` (how many matrices), `unchanged` (how
    many of them are equal), and `matrix`, the one that rotated most, or changed most where no rotation is known.
    Modules come in the order in which data pass them.
    """
    matrices = comparison.matrices
    if not len(matrices):
        return matrices.assign(count=0, unchanged=0)
    numbers = [name for name in matrices.columns if name not in _TEXT]
    table = matrices.assign(stack=matrices["stack"].fillna(""), _turn=matrices["rotation"].fillna(-1.0))
    finite = table.assign(**{name: table[name].where(np.isfinite(table[name].astype(float))) for name in numbers})
    by = finite.groupby([*PLACE, *PAIR], sort=False, dropna=False)
    found = by[numbers].mean()
    found["moved_back"] = moved_back_by(comparison, table, [*PLACE, *PAIR])
    found["count"], found["unchanged"] = by.size(), by["equal"].sum()
    worst = table.sort_values(["_turn", "relative_change"], ascending=False, kind="stable")
    firsts = worst.groupby([*PLACE, *PAIR], sort=False, dropna=False)[["matrix", "group"]].first()
    found = found.join(firsts).reset_index()
    place = {module: i for i, module in enumerate(sorted_modules(found))}
    return found.assign(_place=found["module"].map(place)).sort_values(["_place"], kind="stable").drop(columns="_place")


def sorted_modules(table: pd.DataFrame) -> list[str]:
    """The modules in the order in which data pass them, as far as their names tell."""
    groups = dict(zip(table["module"], table["group"], strict=True))
    parents = list(dict.fromkeys(module.rpartition(".")[0] for module in groups))

    def key(module: str) -> tuple[int, int, int]:
        parent, _, leaf = module.rpartition(".")
        first = re.split("[._]", leaf)[0].lower()
        group = _GROUPS.index(groups[module]) if groups[module] in _GROUPS else len(_GROUPS)
        return group, parents.index(parent), _ORDER.index(first) if first in _ORDER else len(_ORDER)

    return sorted(groups, key=key)


def main_stack(comparison: Comparison) -> str:
    """The decoder's stack, or where it has no matrices that of most: figures over layers show this one."""
    matrices = comparison.matrices
    stacks = matrices.loc[matrices["layer"] >= 0, "stack"].fillna("")
    if not len(stacks):
        return ""
    there = bool(comparison.decoder) and comparison.decoder in set(stacks)
    return comparison.decoder if there else commonest(stacks)


def commonest(names: pd.Series) -> str:
    """The name that most rows have, of several the one that comes first."""
    return str(names.groupby(names, sort=False).size().idxmax())


def inside_layers(comparison: Comparison, table: pd.DataFrame) -> pd.DataFrame:
    """The rows, of matrices or of cells, in the main stack's layers."""
    return table[(table["layer"] >= 0) & (table["stack"].fillna("") == main_stack(comparison))]


def layer_label(comparison: Comparison) -> str:
    """What the axis of layers is called: with the stack, where there are others."""
    table = comparison.matrices
    several = table.loc[table["layer"] >= 0, "stack"].nunique() > 1
    return f"layer of {main_stack(comparison)}" if several else "layer"


def changed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the matrices, or of the heads of `gauge`, that changed: medians run over these."""
    return table[~table["equal"].astype(bool)] if "equal" in table.columns else table[table["change"] != 0]


def moved_back(comparison: Comparison, rows: pd.DataFrame) -> float:
    """How far the third model took back the change of all matrices in `rows`, as if they were one; NaN if unknown.

    sum_i m_i w_i / sum_i w_i, m_i the matrix's own `moved_back` and w_i = |tuned - base|_F^2.
    """
    parts = _returns(comparison, rows).sum(min_count=1)
    return float(parts["back"]) / float(parts["there"])


def moved_back_by(comparison: Comparison, rows: pd.DataFrame, by: list[str]) -> pd.Series:
    """`moved_back` for each group of rows that are alike in the columns `by`."""
    parts = _returns(comparison, rows).groupby([rows[name] for name in by], sort=False, dropna=False).sum(min_count=1)
    return parts["back"] / parts["there"]


def _returns(comparison: Comparison, rows: pd.DataFrame) -> pd.DataFrame:
    """Numerator and denominator of `moved_back`, row by row; NaN where either is not known or nothing changed."""
    first = of_pair(comparison.matrices, comparison.pairs[0])
    weight = rows["matrix"].map(first.set_index("matrix")["change_energy"]).astype(float)
    share = rows["moved_back"].astype(float)
    known = np.isfinite(weight) & np.isfinite(share) & (weight > 0)
    return (share * weight).where(known).to_frame("back").assign(there=weight.where(known))


def of_pair(table: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    """The rows of one pair."""
    return table[(table["before"] == pair[0]) & (table["after"] == pair[1])]


def short_names(modules: Iterable[str]) -> dict[str, str]:
    """Each module's shortest ending in whole words that no other shares: `q_proj`, but `experts.up_proj`."""
    modules = list(dict.fromkeys(modules))
    endings = Counter(ending for module in modules for ending in _endings(module))
    return {module: next((e for e in _endings(module) if endings[e] == 1), module) for module in modules}


def _endings(module: str) -> list[str]:
    words = module.split(".")
    return [".".join(words[i:]) for i in range(len(words) - 1, -1, -1)]


def three_layers(layers: Iterable[int]) -> tuple[int, ...]:
    """The first, the middle and the last, each once."""
    there = sorted(set(layers))
    return tuple(dict.fromkeys(there[i] for i in (0, len(there) // 2, -1))) if there else ()


def members(table: pd.DataFrame) -> dict[tuple[int, str], list[str]]:
    """The names of each cell's matrices, by layer and module; of many experts a sample spread over them."""
    found = {}
    rows = table[["layer", "module", "matrix"]].drop_duplicates()
    for (layer, module), names in rows.groupby(["layer", "module"], sort=False)["matrix"]:
        chosen = np.linspace(0, len(names) - 1, min(SAMPLED, len(names))).round().astype(int)
        found[int(layer), str(module)] = [str(name) for name in names.iloc[chosen]]
    return found


def mean_spectrum(spectra: Mapping[str, Array], names: Sequence[str]) -> Array | None:
    """The mean of the arrays that there are, index by index; of those of the commonest length. None without any."""
    arrays = [np.asarray(array, dtype=np.float64) for array in map(spectra.get, names) if array is not None]
    arrays = [array for array in arrays if array.size and np.isfinite(array).all()]
    if not arrays:
        return None
    size = Counter(array.size for array in arrays).most_common(1)[0][0]
    mean: Array = np.mean([array for array in arrays if array.size == size], axis=0)
    return mean
