"""Everything that is measured of one matrix, or of one attention module, in two or three models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from surgery.analysis import change, spectrum
from surgery.analysis.gauge import ValueOutput, gauge
from surgery.analysis.overlap import Overlap, overlap
from surgery.spectral.rank import numerical_rank
from surgery.spectral.triplets import require_finite

if TYPE_CHECKING:
    from surgery.analysis.attention import Attention
    from surgery.analysis.matching import Matrix
    from surgery.spectral.decomposer import Decomposer
    from surgery.spectral.triplets import Triplets

ENERGY = 0.9
Row = dict[str, object]


@dataclass(frozen=True)
class Measured:
    """Rows of the tables, and arrays by the names that `Comparison.spectra` has, less the matrix."""

    rows: list[Row]
    arrays: dict[str, Tensor]


def measure_matrix(
    matrix: Matrix,
    weights: Mapping[str, Tensor],
    decomposer: Decomposer,
    *,
    ranks: tuple[str, ...],
    right_vectors: bool = False,
) -> Measured:
    """Compare one matrix of two or three models, `weights` (rows x cols, finite, float32 or float64), the base first.

    Each is decomposed once; models that are equal, once together. `ranks` name `matrix.ranks`. With `right_vectors`
    the leading right singular vectors are among the arrays, as `right/MODEL`. Raises NumericalError.
    """
    models = _decomposed(weights, decomposer, matrix.known)
    arrays = {f"values/{model}": found.triplets.S for model, found in models.items()}
    if right_vectors:
        arrays |= {f"right/{model}": found.triplets.V for model, found in models.items()}
    rows = []
    for before, after in pairs_of(weights):
        compared = _Compared(matrix, models[before], models[after], decomposer)
        row, found = compared.measure(ranks)
        if (before, after) == _returning(weights):
            base, tuned, third = weights.values()
            row["moved_back"] = change.moved_back(base, tuned, third)
        rows.append(_labels(matrix, before, after) | row)
        arrays |= {f"{name}/{before}>{after}": array for name, array in found.items()}
    return Measured(rows, arrays)


def pairs_of(models: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Before and after: the base with each other model, and those with each other."""
    base, *others = models
    for other in others:
        yield base, other
    if len(others) > 1:
        yield others[0], others[1]


def _returning(models: Mapping[str, object]) -> tuple[str, str] | None:
    """The pair (base, third)."""
    names = list(models)
    return (names[0], names[2]) if len(names) > 2 else None


@dataclass(frozen=True, slots=True)
class _Model:
    """A matrix in one model: its weights, their norm, and their triplets, which equal weights share."""

    W: Tensor
    norm: float
    triplets: Triplets


def _decomposed(weights: Mapping[str, Tensor], decomposer: Decomposer, known: int) -> dict[str, _Model]:
    found: dict[str, _Model] = {}
    for model, W in weights.items():
        twin = next((other for other in found.values() if torch.equal(other.W, W)), None)
        found[model] = twin or _Model(W, change.norm(W), decomposer.triplets(W, known))
    return found


def _labels(matrix: Matrix, before: str, after: str) -> Row:
    rows, cols = matrix.shape
    return {
        "matrix": matrix.name,
        "tensor": next(iter(matrix.infos.values())).name,
        "expert": matrix.expert,
        "stack": matrix.stack,
        "layer": matrix.layer,
        "module": matrix.module,
        "group": matrix.group,
        "rows": rows,
        "cols": cols,
        "known": matrix.known,
        "before": before,
        "after": after,
    }


class _Compared:
    """One matrix before and after."""

    def __init__(self, matrix: Matrix, before: _Model, after: _Model, decomposer: Decomposer) -> None:
        self.matrix = matrix
        self.before, self.after = before.triplets, after.triplets
        self.equal = before is after
        self.norm_before, self.norm_after = before.norm, after.norm
        self.delta = after.W - before.W
        require_finite(self.delta, "the change, whose size is beyond the arithmetic's numbers,")
        self.norm_change = 0.0 if self.equal else change.norm(self.delta)
        self.whole = matrix.known == min(matrix.shape)
        self.decomposer = decomposer
        shape, dtype = matrix.shape, before.W.dtype
        self.meaningful = min(numerical_rank(found.S, shape, dtype) for found in (self.before, self.after))

    def measure(self, ranks: tuple[str, ...]) -> tuple[Row, dict[str, Tensor]]:
        """The row, and the arrays by name."""
        row: Row = {
            "equal": self.equal,
            "relative_change": change.relative_change(self.norm_before, self.norm_change),
            "change_energy": self.norm_change * self.norm_change,
            "energy_ratio": _ratio(self.norm_after, self.norm_before),
        }
        row |= self._values() | self._ranks()
        directions, arrays = self._directions(ranks)
        row |= directions
        row["diagonal_share"] = math.nan if self.equal else change.diagonal_share(self.delta, self.before)
        values = self._change_values()
        row |= self._low_rank(values)
        if values is not None:
            arrays["change_values"] = values
        return row, arrays

    def _values(self) -> Row:
        found = spectrum.values_change(self.before.S, self.after.S, min(self.matrix.shape))
        return {
            "values_change": found.relative,
            "values_max_change": found.largest,
            "values_head_share": found.head_share,
            "values_bulk_share": found.bulk_share,
            "values_tail_share": found.tail_share,
        }

    def _ranks(self) -> Row:
        row: Row = {}
        for when, found, norm in (("before", self.before, self.norm_before), ("after", self.after, self.norm_after)):
            row[f"stable_rank_{when}"] = _stable_rank(norm, found.S)
            row[f"effective_rank_{when}"] = spectrum.effective_rank(found.S) if self.whole else math.nan
        return row

    def _directions(self, ranks: tuple[str, ...]) -> tuple[Row, dict[str, Tensor]]:
        """Figures and arrays of both sides."""
        main = min(self.matrix.ranks[0], self.meaningful)
        row: Row = {"rank": main}
        arrays: dict[str, Tensor] = {}
        means: list[float] = []
        for side, A, B in (("left", self.before.U, self.after.U), ("right", self.before.V, self.after.V)):
            found = self._side(A, B)
            for name, rank in zip(ranks, self.matrix.ranks, strict=True):
                arrays[f"angles_{side}@{name}"] = found.angles(min(rank, self.meaningful))
            arrays[f"cos_{side}"], arrays[f"best_cos_{side}"] = found.matching(), found.best()
            angles, cosines = arrays[f"angles_{side}@{ranks[0]}"], arrays[f"cos_{side}"][:main]
            mean, row[f"angle_{side}_max"] = self._mean_and_largest(angles)
            row[f"angle_{side}"] = mean
            row[f"cos_{side}"] = float(cosines.mean()) if main else 1.0 if self.equal else math.nan
            row[f"intruders_{side}"] = found.intruders(main)
            means.append(mean)
        row["rotation"] = sum(means) / 2
        return row, arrays

    def _side(self, A: Tensor, B: Tensor) -> Overlap:
        """The overlap of one side's vectors; of equal matrices without their rounding."""
        h = A.shape[1]
        columns = min(max(self.matrix.ranks), self.meaningful)
        if self.equal:
            return Overlap(torch.eye(h, dtype=A.dtype, device=A.device), A.new_zeros(columns, columns))
        return overlap(A, B, columns)

    def _mean_and_largest(self, angles: Tensor) -> tuple[float, float]:
        if not len(angles):  # no direction has a meaning
            return (0.0, 0.0) if self.equal else (math.nan, math.nan)
        return float(angles.mean()), float(angles.max())

    def _change_values(self) -> Tensor | None:
        """Singular values of the change; not where only the leading triplets of the models are known."""
        if not self.whole:
            return None
        return torch.zeros_like(self.before.S) if self.equal else self.decomposer.values(self.delta)

    def _low_rank(self, values: Tensor | None) -> Row:
        if values is None:
            names = ("change_stable_rank", "change_effective_rank", "change_rank_90", "change_head_share")
            return dict.fromkeys(names, math.nan)
        return {
            "change_stable_rank": _stable_rank(self.norm_change, values),
            "change_effective_rank": spectrum.effective_rank(values),
            "change_rank_90": float(spectrum.rank_for_energy(values, ENERGY)),
            "change_head_share": spectrum.energy_share(values, spectrum.OUTER.of(len(values)))
            if self.norm_change
            else math.nan,
        }


def _stable_rank(norm: float, S: Tensor) -> float:
    """|W|_F^2 / s_1^2, of which the leading value is known at least; 0 for a zero matrix."""
    ratio = norm / float(S[0]) if S[0] else 0.0
    return ratio * ratio


def _ratio(after: float, before: float) -> float:
    """after^2 / before^2."""
    if before == 0:
        return 1.0 if after == 0 else math.inf
    ratio = after / before
    return ratio * ratio


def measure_attention(attention: Attention, weights: Mapping[str, ValueOutput]) -> Measured:
    """Compare the value and output projections of one attention module; a row for each key/value head and pair."""
    rows: list[Row] = []
    for before, after in pairs_of(weights):
        for head, found in enumerate(gauge(weights[before], weights[after], attention.head_dim)):
            rows.append(
                {
                    "stack": attention.stack,
                    "layer": attention.layer,
                    "module": attention.module,
                    "head": head,
                    "before": before,
                    "after": after,
                    "change": found.change,
                    "explained": found.explained,
                    "chance": attention.chance,
                    "rotation": found.rotation,
                    "aligned_change": found.aligned_change,
                    "remainder": found.remainder,
                }
            )
    return Measured(rows, {})
