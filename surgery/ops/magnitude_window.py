"""A window of magnitudes, without the largest and the smallest: the sparsifier of Model Breadcrumbs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from surgery.ops.magnitudes import Magnitudes, between
from surgery.ops.sparsifier import Sparsifier, everything, nothing

if TYPE_CHECKING:
    from surgery.ops.measures import Vectors
    from surgery.ops.whole import Whole


def windows(whole: Whole, vectors: Vectors, densities: Sequence[float], gammas: Sequence[float]) -> list[Sparsifier]:
    """For each of the tensors that `vectors` gives: of its n magnitudes, leave out the t = floor(gamma n) largest, keep
    the next k = floor(density n), and everything as large as the first or the last of these.

    Where t + k > n, t is n - k, so that k are kept. Density 1 keeps all, whatever gamma; k = 0 nothing. Magnitudes
    are compared in float32. Two passes, of `Magnitudes`. Source: Davari and Belilovsky 2024, arXiv
    2312.06795, in the parameters of mergekit. (Its code leaves out the largest of each row.)
    """
    ranks = [_ranks(whole.elements, density, gamma) for density, gamma in zip(densities, gammas, strict=True)]
    if not any(ranks):
        return [_window(density, []) for density in densities]
    bounds = Magnitudes(whole, vectors).largest(ranks)
    return [_window(density, found) for density, found in zip(densities, bounds, strict=True)]


def _ranks(n: int, density: float, gamma: float) -> list[int]:
    """Of the first and the last that is kept, counted from the largest."""
    kept = int(density * n)
    if density >= 1 or kept == 0:
        return []
    above = min(int(gamma * n), n - kept)
    return [above + 1, above + kept]


def _window(density: float, bounds: Sequence[float]) -> Sparsifier:
    if not bounds:
        return everything if density >= 1 else nothing
    high, low = bounds
    return lambda d, _: between(d, low, high)
