"""Trimming by magnitude: the sparsifier of TIES."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from surgery.ops.magnitudes import Magnitudes, between
from surgery.ops.sparsifier import Sparsifier, everything, nothing

if TYPE_CHECKING:
    from surgery.ops.measures import Vectors
    from surgery.ops.whole import Whole


def trims(whole: Whole, vectors: Vectors, densities: Sequence[float]) -> list[Sparsifier]:
    """For each of the tensors that `vectors` gives: keep the k = floor(density n) largest of its n magnitudes, at least
    one, and everything as large as the k-th, so that nothing depends on an order among equal ones.

    Density 1 keeps all, 0 nothing. Magnitudes are compared in float32. Two passes, of `Magnitudes`. Source: Yadav et
    al. 2023, arXiv 2306.01708, the step Trim.
    """
    n = whole.elements
    ranks = [[max(1, int(density * n))] if 0 < density < 1 else [] for density in densities]
    if n == 0:
        return [everything] * len(densities)
    thresholds = Magnitudes(whole, vectors).largest(ranks) if any(ranks) else [[] for _ in densities]
    return [_trim(density, found) for density, found in zip(densities, thresholds, strict=True)]


def _trim(density: float, threshold: Sequence[float]) -> Sparsifier:
    if not threshold:
        return everything if density else nothing
    return lambda d, _: between(d, threshold[0])
