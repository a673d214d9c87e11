"""The leading triplets of a difference as the factors of an adapter.

D = U S V^T, and B = U_r sqrt(S_r), A = sqrt(S_r) V_r^T: the matrix B A of rank r that is closest to D (Eckart and
Young 1936), its norm shared by both factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.analysis.change import norm
from surgery.extraction.choice import Aim
from surgery.spectral.decomposer import Decomposer


@dataclass(frozen=True, slots=True)
class Fit:
    """B (rows x r) and A (r x cols) in the stored dtype, on the CPU; `left` is |D - B A|^2, of what is stored."""

    A: Tensor
    B: Tensor
    left: float

    @property
    def rank(self) -> int:
        """r."""
        return self.A.shape[0]


def fit(D: Tensor, aim: Aim, decomposer: Decomposer, dtype: torch.dtype) -> Fit:
    """The factors of D (rows x cols, finite, not zero, float32 or float64), which is overwritten by D - B A.

    Raises NumericalError where it cannot be decomposed.
    """
    rank = aim.most(min(D.shape)) if aim.error is None else smallest_rank(decomposer.values(D), aim.error)
    triplets = decomposer.triplets(D, rank)
    root = triplets.S.sqrt()
    B = triplets.times(root).to(dtype)
    A = (triplets.V * root.to(triplets.V.dtype)).mT.contiguous().to(dtype)
    D.addmm_(B.to(D.dtype), A.to(D.dtype), alpha=-1)
    return Fit(A.cpu(), B.cpu(), norm(D) ** 2)


def smallest_rank(S: Tensor, error: float) -> int:
    """The smallest r >= 1 for which the values (descending, float64) from the r-th on are at most `error` of all."""
    squares = S.double() ** 2
    rests = squares.flip(0).cumsum(0).flip(0)  # the rest from each on, the smallest added first
    enough = rests <= error * error * rests[0]
    return max(1, int(enough.int().argmax()) if bool(enough.any()) else len(S))
