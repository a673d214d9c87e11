"""Which singular triplets mean something, and which are those of rounding errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from surgery.spectral.triplets import Triplets

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.spectral.decomposer import Decomposer


def numerical_rank(S: Tensor, shape: Sequence[int], dtype: torch.dtype, scale: float | None = None) -> int:
    """How many values are above 4 sqrt(max(rows, cols)) eps s_1, eps of `dtype`, in which the matrix was decomposed.

    `scale` is meant instead of s_1 where the matrix is what is left of a larger one. The singular vectors of the others
    are those of rounding errors and mean nothing. Independent errors of eps |w_ij| have a norm near eps s_1 at most;
    the customary bound max(rows, cols) eps s_1 (Golub and Van Loan, Matrix Computations, 4th ed., section 5.4.1) is for
    the worst case, and would deny a meaning to directions of trained matrices that float32 holds well.
    """
    if scale is None:
        scale = float(S[0]) if len(S) else 0.0
    return int((S.double() > 4 * math.sqrt(max(shape)) * torch.finfo(dtype).eps * scale).sum())


def meaningful_triplets(W: Tensor, most: int, decomposer: Decomposer, scale: float | None = None) -> Triplets:
    """The leading triplets of W, at most so many, less those that `numerical_rank` denies a meaning; perhaps none."""
    if not most or not W.any():  # a zero matrix would take the most expensive route of `triplets`
        m, n = W.shape
        return Triplets(W.new_empty(m, 0), W.new_empty(0, dtype=torch.float64), W.new_empty(n, 0))
    found = decomposer.triplets(W, most)
    return found.leading(numerical_rank(found.S, W.shape, W.dtype, scale))
