"""Dropping at random: the sparsifier of DARE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.ops.sparsifier import Sparsifier, everything, keeping, nothing

if TYPE_CHECKING:
    from surgery.ops.uniform import Uniform


def drop(density: float, uniform: Uniform) -> Sparsifier:
    """Keep each entry with the probability `density`, independently; 1 keeps all, 0 nothing.

    Source: Yu et al. 2024, arXiv 2311.03099, the step Drop, with density = 1 - p.
    """
    if density >= 1:
        return everything
    if density <= 0:
        return nothing
    return keeping(lambda d, first: uniform.below(density, first, d.shape, d.device))
